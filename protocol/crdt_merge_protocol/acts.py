"""Acts of administrators: what takes effect by m signatures, whoever sends it (PROTOCOL R12).

An act is an action, a nonce and signatures over both, the kind and the group. Signatures can be gathered one
after another, on machines that never meet: an act without enough of them is readable, and has no effect.

    body of an act = [action, nonce, [[administrator, signature], ...]]
    action         = a canonical list, as bytes
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from .body_form import Kind, Said
from .canonical import decode, encode
from .errors import MalformedMessageError
from .fields import Fields
from .identity import SIGNATURE_BYTES, NodeKey, check_public_key
from .limits import ACT_CONTENTS_MAX, OPERATION_BYTES_MAX, POLICY_SIGNATURES_MAX, REASON_CHARS_MAX, REFS_MAX
from .policy import NONCE_BYTES, Policy, act_digest, sign_act

Signatures = tuple[tuple[bytes, bytes], ...]
"""(administrator, signature over the act's digest), in any order."""


class Act(Said):
    """Something that only signatures of administrators give effect to."""

    __slots__ = ()
    nonce: bytes
    signatures: Signatures

    @property
    def action(self) -> bytes:
        """What is signed besides group, kind and nonce."""
        raise NotImplementedError

    def digest(self, group: bytes) -> bytes:
        """Return what administrators sign to let it happen in ``group``, 32 bytes."""
        return act_digest(group, self.KIND, self.action, self.nonce)

    def signed_by(self, key: NodeKey, group: bytes) -> Self:
        """Return the act with one more signature, or as it is if this administrator has signed."""
        if any(admin == key.node_id for admin, _ in self.signatures):
            return self
        added = (*self.signatures, sign_act(key, self.digest(group)))
        return dataclasses.replace(self, signatures=added)  # type: ignore[type-var]  # Every act is one.

    def fields(self) -> list[Any]:
        """Return the values of the body, in order."""
        return [self.action, self.nonce, signature_fields(self.signatures)]

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Read the fields in order."""
        action = fields.blob(size_max=OPERATION_BYTES_MAX)
        return cls.read_action(action, *read_signatures(fields))

    @classmethod
    def read_action(cls, action: bytes, nonce: bytes, signatures: Signatures) -> Self:
        """Return the act whose action has these bytes.

        Raises:
            RemoteProtocolError: They are not an action of this kind.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyAct(Act):
    """A change of policy."""

    KIND = Kind.POLICY
    policy: Policy
    nonce: bytes
    """16 random bytes."""
    signatures: Signatures = ()

    @property
    def action(self) -> bytes:
        """The policy, version included."""
        return self.policy.encode()

    @classmethod
    def read_action(cls, action: bytes, nonce: bytes, signatures: Signatures) -> Self:
        """Return the change to this policy."""
        return cls(policy=Policy.decode(action), nonce=nonce, signatures=signatures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit(Act):
    """Lets an author count in a group that admits its authors, from here on (PROTOCOL R11)."""

    KIND = Kind.ADMIT
    author: bytes
    """Node id."""
    nonce: bytes
    """16 random bytes."""
    signatures: Signatures = ()

    @property
    def action(self) -> bytes:
        """The author."""
        return encode([self.author])

    @classmethod
    def read_action(cls, action: bytes, nonce: bytes, signatures: Signatures) -> Self:
        """Return the admission in these bytes."""
        fields = _fields_of(action, cls.KIND)
        author = fields.id()
        fields.end()
        check_public_key(author)
        return cls(author=author, nonce=nonce, signatures=signatures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke(Act):
    """Lets the operations of a key count only within the past of some heads (PROTOCOL R7)."""

    KIND = Kind.REVOKE
    key: bytes
    """Node id of an author."""
    heads: tuple[bytes, ...]
    """Sorted and unique; they and their past go on counting. None: nothing of the key does.

    It has no effect unless all of them are in ``refs``, or whoever sends it could leave some out.
    """
    reason: str = ""
    nonce: bytes
    """16 random bytes."""
    signatures: Signatures = ()

    @property
    def action(self) -> bytes:
        """Key, heads and reason."""
        return encode([self.key, list(self.heads), self.reason])

    @classmethod
    def read_action(cls, action: bytes, nonce: bytes, signatures: Signatures) -> Self:
        """Return the revocation in these bytes."""
        fields = _fields_of(action, cls.KIND)
        key = fields.id()
        heads = fields.sorted_ids(count_max=REFS_MAX)
        reason = fields.text(size_max=REASON_CHARS_MAX)
        fields.end()
        return cls(key=key, heads=heads, reason=reason, nonce=nonce, signatures=signatures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ban(Act):
    """Hides every ADD of some contents: past, concurrent and future, whoever's (PROTOCOL R13)."""

    KIND = Kind.BAN
    contents: tuple[bytes, ...]
    """Content ids, sorted and unique; at least one. They need not be known to anybody."""
    reason: str = ""
    nonce: bytes
    """16 random bytes."""
    signatures: Signatures = ()

    @property
    def action(self) -> bytes:
        """Contents and reason."""
        return encode([list(self.contents), self.reason])

    @classmethod
    def read_action(cls, action: bytes, nonce: bytes, signatures: Signatures) -> Self:
        """Return the ban in these bytes."""
        fields = _fields_of(action, cls.KIND)
        contents = fields.sorted_ids(count_max=ACT_CONTENTS_MAX, count_min=1)
        reason = fields.text(size_max=REASON_CHARS_MAX)
        fields.end()
        return cls(contents=contents, reason=reason, nonce=nonce, signatures=signatures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Erase(Act):
    """A ban that has the bytes destroyed as well, with the metadata of some ADDs (PROTOCOL R13)."""

    KIND = Kind.ERASE
    contents: tuple[bytes, ...]
    """Content ids, sorted and unique. Banned, and their bytes destroyed."""
    tags: tuple[bytes, ...]
    """Ids of ADDs, sorted and unique, whose metadata is destroyed. One that is not in ``refs`` is ignored."""
    reason: str = ""
    nonce: bytes
    """16 random bytes."""
    signatures: Signatures = ()

    @property
    def action(self) -> bytes:
        """Contents, tags and reason."""
        return encode([list(self.contents), list(self.tags), self.reason])

    @classmethod
    def read_action(cls, action: bytes, nonce: bytes, signatures: Signatures) -> Self:
        """Return the erasure in these bytes."""
        fields = _fields_of(action, cls.KIND)
        contents = fields.sorted_ids(count_max=ACT_CONTENTS_MAX)
        tags = fields.sorted_ids(count_max=REFS_MAX)
        reason = fields.text(size_max=REASON_CHARS_MAX)
        fields.end()
        if not contents and not tags:
            raise MalformedMessageError("an erasure names nothing.")
        return cls(contents=contents, tags=tags, reason=reason, nonce=nonce, signatures=signatures)


def signature_fields(signatures: Signatures) -> list[list[bytes]]:
    """Return signatures as a field of a body."""
    return [list(pair) for pair in signatures]


def read_signatures(fields: Fields) -> tuple[bytes, Signatures]:
    """Return the nonce and the signatures that come next in a body.

    Raises:
        RemoteProtocolError: They do not.
    """
    nonce = fields.blob(size=NONCE_BYTES)
    signatures = []
    for record in fields.records(count_max=POLICY_SIGNATURES_MAX):
        signatures.append((record.id(), record.blob(size=SIGNATURE_BYTES)))
        record.end()
    return nonce, tuple(signatures)


def _fields_of(action: bytes, kind: Kind) -> Fields:
    return Fields(decode(action, bytes_max=OPERATION_BYTES_MAX), what=f"action of kind {kind:d}")
