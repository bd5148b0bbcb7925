"""From what a person typed to an id: a whole id, an unambiguous prefix of one, or a name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from crdt_merge_node.errors import AmbiguousNameError, NotFoundError, did_you_mean, quoted
from crdt_merge_node.services import Services

PREFIX_DIGITS_MIN = 4


def find(text: str, names: Mapping[bytes, str], *, what: str, listing: str) -> bytes:
    """Return the one id that ``text`` means.

    Args:
        text: An id, a prefix of at least four hex digits, or a name.
        names: Every id there is and its name, which may be empty.
        what: ``group``, ``peer`` or ``contribution``, for the message.
        listing: The command that lists them, for the hint.

    Raises:
        NotFoundError: Nothing fits.
        AmbiguousNameError: More than one does.
    """
    named = [key for key, name in names.items() if name and name == text]
    lowered = text.lower()
    is_prefix = len(lowered) >= PREFIX_DIGITS_MIN and all(c in "0123456789abcdef" for c in lowered)
    prefixed = [key for key in names if key.hex().startswith(lowered)] if is_prefix else []
    found = named or prefixed
    if len(found) == 1:
        return found[0]
    if not found:
        known = [name for name in names.values() if name]
        hint = did_you_mean(text, known) or f"`{listing}` shows what there is."
        raise NotFoundError(f"there is no {what} {quoted(text)}.", hint=hint)
    ids = ", ".join(sorted(key.hex()[:12] for key in found))
    raise AmbiguousNameError(
        f"{quoted(text)} is {len(found)} {what}s: {ids}.", hint="Name one by more digits of its id."
    )


def find_group(services: Services, text: str) -> bytes:
    """Return the id of a group of this cluster that is known here."""
    names = {group: replica.state.genesis.name for group, replica in services.engine.replicas.items()}
    return find(text, names, what="group", listing="crdt-merge-node group list")


def find_peer(services: Services, text: str) -> bytes:
    """Return the id of a known peer."""
    return find(text, peer_names(services), what="peer", listing="crdt-merge-node peer list")


def peer_names(services: Services) -> dict[bytes, str]:
    """Return the name of every known peer, by id."""
    return {peer: services.driver.name(peer) for peer in services.driver.known}


def find_tag(text: str, tags: Iterable[bytes], *, group_name: str) -> bytes:
    """Return the tag of a contribution."""
    listing = f"crdt-merge-node contribution list {group_name}"
    return find(text, dict.fromkeys(tags, ""), what="contribution", listing=listing)
