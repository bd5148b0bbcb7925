"""What operations say: the bodies of ADD, REMOVE, POLICY and HOLD, and how unreadable ones are told apart.

The envelope of an operation is judged when it arrives; its body only when the view is computed (PROTOCOL
R2). So reading a body never raises: a body that this release cannot read is ``None``, which means stored,
relayed, counted in the root and without effect (R22). ``body[0]`` is the version of the body, the rest a
canonical list.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Self, TypeAlias

from .blobs import contribution_digest
from .canonical import decode, encode
from .errors import LocalProtocolError, MalformedMessageError, RemoteProtocolError
from .fields import Fields
from .identity import SIGNATURE_BYTES
from .limits import OPERATION_BYTES_MAX, POLICY_SIGNATURES_MAX, REFS_MAX, WEIGHT_MAX
from .policy import NONCE_BYTES, Policy

BODY_VERSION: Final = 1


class Kind(IntEnum):
    """Kinds of operations. Numbers are never reused; those without a body class are not judged yet."""

    ADD = 1
    REMOVE = 2
    POLICY = 3
    ADMIT = 4
    REVOKE = 5
    BAN = 6
    ERASE = 7
    RECEIPT = 8
    HOLD = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Add:
    """A contribution to a slot (PROTOCOL R9). The id of the operation that carries it is its tag."""

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

    def encode(self) -> bytes:
        """Return the body.

        Raises:
            LocalProtocolError: No node could read it.
        """
        return _pack(self, [self.slot, self.type, self.content, self.weight, self.payload])

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
class Remove:
    """Removes contributions by tag (PROTOCOL R10). A tag that is not in ``refs`` is not removed."""

    targets: tuple[bytes, ...]
    """Sorted and unique; at least one."""

    def encode(self) -> bytes:
        """Return the body.

        Raises:
            LocalProtocolError: No node could read it.
        """
        return _pack(self, [list(self.targets)])

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read the fields in order."""
        return cls(targets=read_sorted_ids(fields, count_max=REFS_MAX, count_min=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """States that the author's node holds the bytes of these contributions (PROTOCOL R16, R21)."""

    tags: tuple[bytes, ...]
    """Sorted and unique; at least one. A tag that is not in ``refs`` is not held."""

    def encode(self) -> bytes:
        """Return the body.

        Raises:
            LocalProtocolError: No node could read it.
        """
        return _pack(self, [list(self.tags)])

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read the fields in order."""
        return cls(tags=read_sorted_ids(fields, count_max=REFS_MAX, count_min=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyAct:
    """A change of policy with the signatures of administrators over it (PROTOCOL R12).

    Whoever sends the operation, only the signatures give it effect.
    """

    policy: Policy
    nonce: bytes
    """16 random bytes."""
    signatures: tuple[tuple[bytes, bytes], ...]
    """(administrator, signature over :func:`~crdt_merge_protocol.policy.act_digest`)."""

    def encode(self) -> bytes:
        """Return the body.

        Raises:
            LocalProtocolError: No node could read it.
        """
        return _pack(self, [self.policy.encode(), self.nonce, [list(pair) for pair in self.signatures]])

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read the fields in order."""
        policy = Policy.decode(fields.blob(size_max=OPERATION_BYTES_MAX))
        nonce = fields.blob(size=NONCE_BYTES)
        signatures = []
        for record in fields.records(count_max=POLICY_SIGNATURES_MAX):
            signatures.append((record.id(), record.blob(size=SIGNATURE_BYTES)))
            record.end()
        return cls(policy=policy, nonce=nonce, signatures=tuple(signatures))


Body: TypeAlias = Add | Remove | PolicyAct | Hold

_READERS: Final[dict[int, Callable[[Fields], Body]]] = {
    Kind.ADD: Add.read,
    Kind.REMOVE: Remove.read,
    Kind.POLICY: PolicyAct.read,
    Kind.HOLD: Hold.read,
}


def read(kind: int, body: bytes) -> Body | None:
    """Return what a body says, or None if this release cannot read it (PROTOCOL R22). Never raises."""
    reader = _READERS.get(kind)
    if reader is None or len(body) < 1 or body[0] != BODY_VERSION:
        return None
    try:
        fields = Fields(decode(body[1:], bytes_max=OPERATION_BYTES_MAX), what=f"body of kind {kind}")
        said = reader(fields)
        fields.end()
    except RemoteProtocolError:
        return None
    return said


def read_sorted_ids(fields: Fields, *, count_max: int, count_min: int = 0) -> tuple[bytes, ...]:
    """Return ids that are sorted and unique, so that a set of ids has one encoding."""
    ids = fields.ids(count_max=count_max)
    if len(ids) < count_min or any(first >= second for first, second in itertools.pairwise(ids)):
        raise MalformedMessageError("a set of ids is empty, not sorted or not unique.")
    return ids


def _pack(said: Body, values: list[Any]) -> bytes:
    """Return the body with these fields, and make sure that it reads back as ``said``."""
    kind = {Add: Kind.ADD, Remove: Kind.REMOVE, PolicyAct: Kind.POLICY, Hold: Kind.HOLD}[type(said)]
    body = bytes([BODY_VERSION]) + encode(values)
    if read(kind, body) != said:
        raise LocalProtocolError(
            f"{said!r:.200} cannot be encoded: a field is outside its range or not sorted."
        )
    return body
