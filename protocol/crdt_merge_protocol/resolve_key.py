"""The names of results: used root, resolve key and seed (PROTOCOL R17).

Equal sync roots say "we hold the same operations"; equal resolve keys say "we would write the same file".
Only what changes the output enters: the digests of the contributions used, and the recipe. Who sent a
contribution, when, and in which order never does.
"""

from __future__ import annotations

from collections.abc import Iterable

from .canonical import digest
from .merkle import root_of


def used_root(digests: Iterable[bytes]) -> bytes:
    """Return the trie root over the *set* of contribution digests, 32 bytes; duplicates count once."""
    return root_of(set(digests))


def resolve_key(
    models_root: bytes, recipe: bytes, *, artefacts: Iterable[bytes] = (), task: bytes = b""
) -> bytes:
    """Return the key of the result of merging the contributions of ``models_root`` by ``recipe``, 32 bytes.

    Args:
        models_root: Used root over the digests of the contributions.
        recipe: Canonical bytes of all of a policy that decides the output.
        artefacts: Contribution digests of the artefacts that were chosen. Without any the key is the same as
            if there were no such thing.
        task: Digest of the contribution whose task's model is the result; empty for the common one.
    """
    chosen = sorted(set(artefacts))
    if not chosen and not task:
        return digest("crdt-merge/resolve/1", models_root, recipe)
    return digest("crdt-merge/resolve-with/1", models_root, recipe, used_root(chosen), task)


def seed_of(model_digests: Iterable[bytes]) -> bytes:
    """Return the seed of everything random in a merge of these contributions of type ``model``, 32 bytes."""
    return digest("crdt-merge/seed/1", used_root(model_digests))
