"""What operations say: the bodies of all kinds, and how unreadable ones are told apart.

The envelope of an operation is judged when it arrives; its body only when the view is computed (PROTOCOL
R2). So reading a body never raises: a body that this release cannot read is ``None``, which means stored,
relayed, counted in the root and without effect (R22). ``body[0]`` is the version of the body, the rest a
canonical list. What needs signatures of administrators is in ``acts.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

from .acts import Act, Admit, Ban, Erase, PolicyAct, Revoke, Signatures, read_signatures, signature_fields
from .blobs import contribution_digest
from .body_form import BODY_VERSION, Kind, Said
from .canonical import encode
from .envelope import read_add
from .errors import RemoteProtocolError
from .fields import Fields
from .limits import REFS_MAX, WEIGHT_MAX

__all__ = [
    "BODY_VERSION",
    "Act",
    "Add",
    "Admit",
    "Ban",
    "Body",
    "Erase",
    "Hold",
    "Kind",
    "PolicyAct",
    "Receipt",
    "Remove",
    "Revoke",
    "read",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Said):
    """A contribution to a slot (PROTOCOL R9). The id of the operation that carries it is its tag."""

    KIND = Kind.ADD
    slot: str
    """A name; of several by one author and type in a slot, the newest is visible (R16)."""
    type: str
    """``model``, or the name of an artefact."""
    content: bytes
    """Content id of the manifest, 32 bytes."""
    weight: int
    """Over 2^32. Its sign and size are judged where contributions are used (R14)."""
    payload: bytes | None
    """Salted hash of the erasable metadata, 32 bytes, if there is any."""

    @property
    def digest(self) -> bytes:
        """The digest by which contributions are ordered and deduplicated: no author, slot or payload."""
        return contribution_digest(kind=self.type, content=self.content, weight=self.weight)

    def fields(self) -> list[Any]:
        """Return the values of the body, in order."""
        return [self.slot, self.type, self.content, self.weight, self.payload]

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read the fields in order."""
        return cls(
            slot=fields.name(),
            type=fields.name(),
            content=fields.id(),
            weight=fields.integer(low=-WEIGHT_MAX, high=WEIGHT_MAX),
            payload=fields.optional_id(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove(Act):
    """Removes contributions by tag (PROTOCOL R10). A tag that is not in ``refs`` is not removed.

    One's own need no signature but the operation's: the body is the targets alone, and there is no nonce.
    With a nonce and the signatures of administrators behind them, it removes others' as well.
    """

    KIND = Kind.REMOVE
    targets: tuple[bytes, ...]
    """Sorted and unique; at least one."""
    nonce: bytes = b""
    """16 random bytes, or none."""
    signatures: Signatures = ()

    @property
    def action(self) -> bytes:
        """The targets."""
        return encode([list(self.targets)])

    def fields(self) -> list[Any]:
        """Return the values of the body, in order."""
        own = [list(self.targets)]
        return own if not self.nonce else [*own, self.nonce, signature_fields(self.signatures)]

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read the fields in order."""
        targets = fields.sorted_ids(count_max=REFS_MAX, count_min=1)
        nonce, signatures = (b"", ()) if fields.is_at_end else read_signatures(fields)
        return cls(targets=targets, nonce=nonce, signatures=signatures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold(Said):
    """States that the author's node holds the bytes of these contributions (PROTOCOL R16, R21)."""

    KIND = Kind.HOLD
    tags: tuple[bytes, ...]
    """Sorted and unique; at least one. A tag that is not in ``refs`` is not held."""

    def fields(self) -> list[Any]:
        """Return the values of the body, in order."""
        return [list(self.tags)]

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read the fields in order."""
        return cls(tags=fields.sorted_ids(count_max=REFS_MAX, count_min=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Said):
    """States that the author's node has destroyed what these ERASEs name (SCENARIOS T36)."""

    KIND = Kind.RECEIPT
    erasures: tuple[bytes, ...]
    """Ids of ERASEs, sorted and unique; at least one. One that is not in ``refs`` is ignored."""

    def fields(self) -> list[Any]:
        """Return the values of the body, in order."""
        return [list(self.erasures)]

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read the fields in order."""
        return cls(erasures=fields.sorted_ids(count_max=REFS_MAX, count_min=1))


Body: TypeAlias = Add | Remove | PolicyAct | Admit | Revoke | Ban | Erase | Receipt | Hold

_TYPES: Final[dict[int, type[Body]]] = {
    body.KIND: body for body in (Add, Remove, PolicyAct, Admit, Revoke, Ban, Erase, Receipt, Hold)
}
_ADD: Final = int(Kind.ADD)


def read(kind: int, body: bytes) -> Body | None:
    """Return what a body says, or None if this release cannot read it (PROTOCOL R22). Never raises."""
    if kind == _ADD and (known := read_add(body)) is not None:
        slot, name, content, weight, payload = known
        return Add(slot=slot, type=name, content=content, weight=weight, payload=payload)
    type_ = _TYPES.get(kind)
    if type_ is None or len(body) < 1 or body[0] != BODY_VERSION:
        return None
    try:
        return type_.decode(body)
    except RemoteProtocolError:
        return None
