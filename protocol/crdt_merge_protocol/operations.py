"""The signed operation, the only thing that is ever replicated (PROTOCOL R1, R2, R5).

An operation names its group, author, log and place in that log, the operations it was made after, and an
opaque body. Its *envelope* (size, canonical bytes, signature, R5) is judged once, on arrival, by the same
frozen rules everywhere; what its body means is judged in the view. ``id`` is the hash of the canonical bytes
and the signature covers the id, so one operation has one encoding, one id, and no bit of it can be changed
(SCENARIOS T4, T5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from . import bodies
from .bodies import Act, Add, Admit, Ban, Body, Erase, Hold, Kind, PolicyAct, Receipt, Remove, Revoke
from .canonical import decode, digest, encode
from .envelope import read_envelope, signed_wire, split_wire
from .errors import LocalProtocolError, MalformedMessageError, RemoteProtocolError
from .fields import Fields
from .identity import SIGNATURE_BYTES, NodeKey, verify
from .limits import CONTROL_BODY_BYTES_MAX, DEPS_MAX, OPERATION_BYTES_MAX, REFS_MAX

__all__ = [
    "LOG_BYTES",
    "Act",
    "Add",
    "Admit",
    "Ban",
    "Body",
    "Erase",
    "Hold",
    "Kind",
    "Operation",
    "PolicyAct",
    "Receipt",
    "Remove",
    "Revoke",
    "SignedOperation",
    "operation_id",
    "read_body",
    "sign_operation",
]

ENVELOPE_VERSION: Final = 1
LOG_BYTES: Final = 16
KIND_MAX: Final = 255
_SIGNATURE_DOMAIN: Final = b"crdt-merge/sig/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What an author says, and after what. The signature is added by :func:`sign_operation`."""

    group: bytes
    author: bytes
    """Node id, which is the key that the signature verifies under."""
    log: bytes
    """16 random bytes, fresh at every start of a node (PROTOCOL R4)."""
    seq: int
    """Place in the log, from 0."""
    prev: bytes | None
    """Id of the operation before it in the same log; None exactly at 0 (R5)."""
    deps: tuple[bytes, ...]
    """Heads of the group that the author knew, sorted and unique."""
    refs: tuple[bytes, ...]
    """Every id that the body names, sorted and unique."""
    kind: int
    """A :class:`Kind`, or a number that only newer releases know (R22)."""
    body: bytes

    @property
    def id(self) -> bytes:
        """The hash of the canonical bytes, 32 bytes. For an ADD this is its tag."""
        return operation_id(self.encode())

    @property
    def parents(self) -> frozenset[bytes]:
        """Everything that must be delivered before it: prev, deps and refs (R3)."""
        own = () if self.prev is None else (self.prev,)
        return frozenset((*own, *self.deps, *self.refs))

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return encode(
            [
                ENVELOPE_VERSION,
                self.group,
                self.author,
                self.log,
                self.seq,
                self.prev,
                self.deps,
                self.refs,
                self.kind,
                self.body,
            ]
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the operation in canonical bytes.

        Raises:
            RemoteProtocolError: Not an operation within the limits.
        """
        if (known := read_envelope(data)) is not None:
            group, author, log, seq, prev, deps, refs, kind, body = known
            return cls(
                group=group,
                author=author,
                log=log,
                seq=seq,
                prev=prev,
                deps=deps,
                refs=refs,
                kind=kind,
                body=body,
            )
        fields = Fields(decode(data, bytes_max=OPERATION_BYTES_MAX), what="operation")
        version = fields.integer()
        if version != ENVELOPE_VERSION:
            raise MalformedMessageError(f"envelope version {version} is unknown, {ENVELOPE_VERSION} is read.")
        operation = cls(
            group=fields.id(),
            author=fields.id(),
            log=fields.blob(size=LOG_BYTES),
            seq=fields.integer(),
            prev=fields.optional_id(),
            deps=fields.sorted_ids(count_max=DEPS_MAX),
            refs=fields.sorted_ids(count_max=REFS_MAX),
            kind=fields.integer(high=KIND_MAX),
            body=fields.blob(size_max=OPERATION_BYTES_MAX),
        )
        fields.end()
        if (operation.seq == 0) != (operation.prev is None):
            raise MalformedMessageError(f"operation {operation.seq} of a log must have prev except at 0.")
        return operation


@dataclass(frozen=True, slots=True)
class SignedOperation:
    """An operation with its canonical bytes, its id and its author's signature."""

    operation: Operation
    encoded: bytes
    signature: bytes
    id: bytes

    def wire(self) -> bytes:
        """Return the bytes that travel and are stored: the canonical list of encoded and signature."""
        if len(self.signature) == SIGNATURE_BYTES and len(self.encoded) <= OPERATION_BYTES_MAX:
            return signed_wire(self.encoded, self.signature)
        return encode([self.encoded, self.signature])

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return the operation in bytes from a peer, after every check that needs no other operation.

        Raises:
            RemoteProtocolError: The envelope is not valid (PROTOCOL R2).
        """
        signed = cls.load(data)
        signed.check_signature()
        return signed

    def check_signature(self) -> None:
        """Check that the author signed this operation.

        Raises:
            BadSignatureError: It did not, or its id is no acceptable key.
        """
        verify(self.operation.author, self.signature, _SIGNATURE_DOMAIN + self.id)

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Return the operation in bytes that this node verified before it stored them.

        Like :meth:`parse` but for the signature, whose check costs most of the time.

        Raises:
            RemoteProtocolError: The bytes are not a signed operation.
        """
        if (parts := split_wire(data)) is not None:
            encoded, signature = parts
            return cls(Operation.decode(encoded), encoded, signature, operation_id(encoded))
        fields = Fields(decode(data, bytes_max=CONTROL_BODY_BYTES_MAX), what="signed operation")
        encoded = fields.blob(size_max=OPERATION_BYTES_MAX)
        signature = fields.blob(size=SIGNATURE_BYTES)
        fields.end()
        return cls(Operation.decode(encoded), encoded, signature, operation_id(encoded))


def operation_id(encoded: bytes) -> bytes:
    """Return the id of the operation with these canonical bytes, 32 bytes."""
    return digest("crdt-merge/op/1", encoded)


def sign_operation(operation: Operation, key: NodeKey) -> SignedOperation:
    """Return the operation with its author's signature.

    Raises:
        LocalProtocolError: The key is not the author's, or no node would accept the operation.
    """
    if operation.author != key.node_id:
        raise LocalProtocolError(
            f"the author is {operation.author.hex()[:12]}, the key that of {key.node_id.hex()[:12]}."
        )
    encoded = operation.encode()
    try:
        Operation.decode(encoded)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"this operation would be refused: {error}") from None
    id_ = operation_id(encoded)
    return SignedOperation(operation, encoded, key.sign(_SIGNATURE_DOMAIN + id_), id_)


def read_body(operation: Operation) -> Body | None:
    """Return what the body says, or None if this release cannot read it (PROTOCOL R22). Never raises."""
    return bodies.read(operation.kind, operation.body)
