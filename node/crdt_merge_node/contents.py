"""What a group's contributions consist of and what of it is here: values only (PROTOCOL R14).

Filled in by ``keeper.py``, read by the API.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from crdt_merge_protocol.blobs import Manifest, Schema
from crdt_merge_protocol.canonical import decode
from crdt_merge_protocol.errors import RemoteProtocolError
from crdt_merge_protocol.limits import PAYLOAD_BYTES_MAX
from crdt_merge_protocol.resolve_key import resolve_key, used_root
from crdt_merge_protocol.view import View, Visible

MODEL: Final = "model"
"""The one type of contribution that strategies of this release use."""


@dataclass(slots=True)
class Item:
    """One visible or pending contribution and how much of it is here."""

    visible: Visible
    is_pending: bool
    manifest: Manifest | None = None
    """Once it is here; not kept of what is quarantined for what the manifest says."""
    tensors: int = 0
    nbytes: int = 0
    """As the manifest says."""
    problem: str = ""
    """Why it is quarantined; empty if it is not, or not yet judged."""
    judged_by: tuple[bytes, int] | None = None
    """Schema and weight cap that the manifest was judged by."""
    is_judged: bool = False
    """Nothing about it can change any more: its bytes are here, or it is quarantined without them."""
    is_scanning: bool = False
    """Its bytes are here and are being looked through."""
    missing: dict[bytes, int] = field(default_factory=dict)
    """Id -> size in bytes, of the blobs that are not here; of the manifest 0."""
    meta: dict[str, str] = field(default_factory=dict)
    has_meta: bool = False
    """Whether the notes, if there are any, are here."""

    @property
    def is_model(self) -> bool:
        """Whether strategies use contributions of its type."""
        return self.visible.type == MODEL

    @property
    def is_used(self) -> bool:
        """Whether it goes into a resolve."""
        return self.is_judged and not self.problem and not self.is_pending and self.is_model

    @property
    def is_awaited(self) -> bool:
        """Whether a resolve has to wait for it."""
        return not self.is_judged and not self.is_pending and self.is_model


@dataclass(slots=True)
class GroupContents:
    """The last comparison of a group's view with the blob store."""

    view: View
    damage: int = 0
    """How often bytes had gone away when it was made."""
    problem: str = ""
    """Why nothing can ever be resolved under this policy; empty if something can."""
    schema: Schema | None = None
    base: Manifest | None = None
    shared_missing: dict[bytes, int] = field(default_factory=dict)
    """What all contributions need: the schema, the base's manifest and blobs. Id -> size, 0 if not known."""
    items: dict[bytes, Item] = field(default_factory=dict)
    """By tag."""

    @property
    def used(self) -> list[Item]:
        """The contributions that go into a resolve, in canonical order."""
        chosen = [item for item in self.items.values() if item.is_used]
        return sorted(chosen, key=lambda item: item.visible.order)

    @property
    def missing(self) -> dict[bytes, int]:
        """Everything that is not here, with its size; 0 if that is not known."""
        wanted = dict(self.shared_missing)
        for item in self.items.values():
            wanted |= item.missing
        return wanted

    def awaited(self, without: frozenset[bytes] = frozenset()) -> list[Item]:
        """Return the contributions that a resolve waits for, in canonical order."""
        waiting = [item for tag, item in self.items.items() if item.is_awaited and tag not in without]
        return sorted(waiting, key=lambda item: item.visible.order)

    def needed(self, without: frozenset[bytes] = frozenset()) -> dict[bytes, int]:
        """Return what a resolve waits for, with its size; pending and unused contributions are not."""
        wanted = dict(self.shared_missing)
        for item in self.awaited(without):
            wanted |= item.missing
        return wanted

    @property
    def is_complete(self) -> bool:
        """Whether a resolve of all that the view shows can begin."""
        return self.is_ready(frozenset())

    def is_ready(self, without: frozenset[bytes]) -> bool:
        """Whether a resolve can begin that leaves these tags out."""
        return not (self.problem or self.shared_missing or self.awaited(without)) and self.schema is not None

    def keys(self, without: frozenset[bytes] = frozenset()) -> tuple[bytes, bytes]:
        """Return (used root, resolve key); meaningful once complete."""
        root = used_root(item.visible.digest for item in self.used if item.visible.tag not in without)
        return root, resolve_key(root, self.view.policy.recipe())


def read_payload(data: bytes) -> dict[str, str]:
    """Return the notes in a payload, or nothing if it is not one: notes never change an output."""
    try:
        value = decode(data, bytes_max=PAYLOAD_BYTES_MAX)
    except RemoteProtocolError:
        return {}
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], list):
        return {}
    return {pair[0]: pair[1] for pair in value[1] if _is_note(pair)}


def _is_note(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


def notes(meta: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return notes in the order in which a payload has them."""
    return sorted([key, value] for key, value in meta)
