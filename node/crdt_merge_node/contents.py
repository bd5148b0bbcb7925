"""What a group's contributions consist of and what of it is here: values only (PROTOCOL R14).

Filled in by ``keeper.py``, read by the API.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from crdt_merge_protocol.adapter_rules import AdapterRules, split_params
from crdt_merge_protocol.adapters import ADAPTER, AdapterHeader
from crdt_merge_protocol.blobs import Manifest, Schema
from crdt_merge_protocol.canonical import decode, encode
from crdt_merge_protocol.errors import ParameterError, RemoteProtocolError
from crdt_merge_protocol.limits import PAYLOAD_BYTES_MAX
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.resolve_key import resolve_key, used_root
from crdt_merge_protocol.strategies.artefacts import SCOPES, Artefact, ArtefactNeed
from crdt_merge_protocol.strategies.choosing import (
    Choice,
    Offer,
    choose,
    named_artefact,
    needs_of,
    whole_recipe,
)
from crdt_merge_protocol.strategies.registry import get
from crdt_merge_protocol.view import View, Visible

ID_BYTES: Final = 32
MODEL: Final = "model"
"""The type of the contributions that are merged, in all groups but those of adapters."""
MERGED: Final = frozenset({MODEL, ADAPTER})
"""Types of contributions that are merged; those of other types are artefacts, or not known here."""


class Selection(NamedTuple):
    """What a resolve uses of a group's contributions."""

    models: list[Item]
    """In canonical order."""
    artefacts: list[Item]
    """In canonical order; each has its ``artefact``."""
    choice: Choice


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
    judged_by: tuple[bytes, int, bool, AdapterRules | None] | None = None
    """What of the policy the manifest was judged by: see ``GroupContents.judging``."""
    is_judged: bool = False
    """Nothing about it can change any more: its bytes are here, or it is quarantined without them."""
    is_withheld: bool = False
    """Nothing of it is fetched: its author has more of unknown types than there is room for."""
    is_scanning: bool = False
    """Its bytes are here and are being looked through."""
    artefact: Artefact | None = None
    """Once it is judged and sound, if it is of a type that the policy's strategy works with."""
    adapter: AdapterHeader | None = None
    """Once it is judged and sound, if it is an adapter."""
    missing: dict[bytes, int] = field(default_factory=dict)
    """Id -> size in bytes, of the blobs that are not here; of the manifest 0."""
    meta: dict[str, str] = field(default_factory=dict)
    packing: bytes = b""
    """Id of the object that says how its author had it in files; empty if there is none."""
    has_meta: bool = False
    """Whether the notes and the packing, if there are any, are here."""

    @property
    def is_model(self) -> bool:
        """Whether it is one of those that are merged: a whole model, or an adapter."""
        return self.visible.type in MERGED

    @property
    def is_artefact(self) -> bool:
        """Whether it is an artefact of a type that this release knows."""
        return self.visible.type in SCOPES

    @property
    def is_sound(self) -> bool:
        """Whether nothing about itself keeps it from being used."""
        return self.is_judged and not self.problem and not self.is_pending


@dataclass(slots=True)
class GroupContents:
    """The last comparison of a group's view with the blob store."""

    view: View
    damage: int = 0
    """How often bytes had gone away when it was made."""
    problem: str = ""
    """Why nothing can ever be resolved under this policy; empty if something can."""
    schema: Schema | None = None
    rules: AdapterRules | None = None
    """How adapters are merged, if the group is one of adapters."""
    base: Manifest | None = None
    shared_missing: dict[bytes, int] = field(default_factory=dict)
    """What all contributions need: the schema, the base's manifest and blobs. Id -> size, 0 if not known."""
    items: dict[bytes, Item] = field(default_factory=dict)
    """By tag."""
    needs: tuple[ArtefactNeed, ...] = ()
    """What the policy's strategy works with besides models."""
    admins: frozenset[bytes] = frozenset()
    _selections: dict[frozenset[bytes], Selection] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The type of the contributions that the group merges."""
        return MODEL if self.rules is None else ADAPTER

    @property
    def judging(self) -> tuple[bytes, int, bool, AdapterRules | None]:
        """What of the policy every contribution is judged by: schema, cap, types, rules of adapters."""
        policy = self.view.policy
        return policy.schema, policy.weight_cap, policy.takes_any_float, self.rules

    @property
    def used(self) -> list[Item]:
        """The contributions that go into a resolve, in canonical order."""
        return self.select().models

    def select(self, without: frozenset[bytes] = frozenset()) -> Selection:
        """Return what goes into a resolve that leaves these tags out: models, and artefacts for them."""
        if without not in self._selections:
            self._selections[without] = self._select(without)
        return self._selections[without]

    def _select(self, without: frozenset[bytes]) -> Selection:
        sound = [item for tag, item in self.items.items() if item.is_sound and tag not in without]
        models = sorted((item for item in sound if item.is_model), key=lambda item: item.visible.order)
        authors: dict[bytes, set[bytes]] = {}
        for item in models:
            authors.setdefault(item.visible.digest, set()).add(item.visible.author)
        offered = [item for item in sound if item.artefact is not None]
        choice = choose(
            self.needs,
            (offer_of(item, self.admins) for item in offered),
            authors,
            base_content=self.view.policy.base or b"",
            named=named_artefact(dict(self.view.policy.params)),
            sets_aside=True,
        )
        by_digest = {item.visible.digest: item for item in offered}
        return Selection(
            models=[item for item in models if item.visible.digest not in choice.lacking],
            artefacts=[by_digest[artefact.digest] for artefact in choice.artefacts],
            choice=choice,
        )

    @property
    def missing(self) -> dict[bytes, int]:
        """Everything that is not here, with its size; 0 if that is not known."""
        wanted = dict(self.shared_missing)
        for item in self.items.values():
            wanted |= item.missing
        return wanted

    def awaited(self, without: frozenset[bytes] = frozenset()) -> list[Item]:
        """Return the contributions that a resolve waits for, in canonical order."""
        waiting = [item for tag, item in self.items.items() if self._is_awaited(item) and tag not in without]
        return sorted(waiting, key=lambda item: item.visible.order)

    def is_needed(self, type_: str) -> bool:
        """Whether the policy's strategy works with contributions of a type."""
        return type_ == self.kind or any(need.type == type_ for need in self.needs)

    def _is_awaited(self, item: Item) -> bool:
        return not item.is_judged and not item.is_pending and self.is_needed(item.visible.type)

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
        chosen = self.select(without)
        root = used_root(item.visible.digest for item in chosen.models)
        artefacts = (item.visible.digest for item in chosen.artefacts)
        return root, resolve_key(root, whole_recipe(self.view.policy), artefacts=artefacts)


def needs_in(policy: Policy) -> tuple[ArtefactNeed, ...]:
    """Return what a policy's strategy works with besides models; nothing if this release cannot know."""
    if split_params(dict(policy.params))[1]:
        return ()  # Artefacts are of whole models.
    try:
        return needs_of(get(policy.strategy), dict(policy.params))
    except ParameterError:
        return ()


def offer_of(item: Item, admins: frozenset[bytes]) -> Offer:
    """Return a sound artefact as an offer."""
    assert item.artefact is not None, "only what was judged is offered"
    visible = item.visible
    return Offer(
        artefact=item.artefact,
        author=visible.author,
        order=(visible.depth, visible.tag),
        is_admin=visible.author in admins,
    )


class Payload(NamedTuple):
    """What an author said of a contribution besides its tensors; it never changes an output."""

    meta: dict[str, str]
    packing: bytes
    """Id of a packing; empty if there is none."""


def read_payload(data: bytes) -> Payload:
    """Return what is in a payload, or nothing if it is not one."""
    try:
        value = decode(data, bytes_max=PAYLOAD_BYTES_MAX)
    except RemoteProtocolError:
        return Payload({}, b"")
    if not isinstance(value, list) or len(value) not in (2, 3) or not isinstance(value[1], list):
        return Payload({}, b"")
    packing = value[2] if len(value) == 3 and type(value[2]) is bytes and len(value[2]) == ID_BYTES else b""
    return Payload({pair[0]: pair[1] for pair in value[1] if _is_note(pair)}, packing)


def write_payload(salt: bytes, meta: Iterable[tuple[str, str]], packing: bytes) -> bytes:
    """Return the salted payload: its hash tells nobody what it was once it is erased."""
    fields: list[object] = [salt, notes(meta)]
    return encode([*fields, packing] if packing else fields)


def _is_note(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


def notes(meta: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return notes in the order in which a payload has them."""
    return sorted([key, value] for key, value in meta)
