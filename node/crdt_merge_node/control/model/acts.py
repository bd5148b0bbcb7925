"""Acts of administrators: what they are to do, who has signed, what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ActKind(StrEnum):
    """What administrators can agree on."""

    POLICY = "policy"
    """Another version of the policy."""
    REMOVE = "remove"
    """Contributions of others are taken back."""
    BAN = "ban"
    """Contents never count again, whoever contributes them."""
    ERASE = "erase"
    """The same, and their bytes are destroyed on every node."""
    ADMIT = "admit"
    """An author counts from now on, in a group that admits its authors."""
    REVOKE = "revoke"
    """A key counts no more, but for what is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActRequest:
    """What an administrator wants to be done."""

    kind: str
    """An :class:`ActKind`, but ``policy``."""
    targets: tuple[str, ...]
    """Contributions (tags, digests, for a ban contents too) or authors, by the kind."""
    reason: str = ""
    """For people; of a ban, an erasure and a revocation."""
    heads: tuple[str, ...] = ()
    """Of a revocation: the last operations that still count. None: all that this node has."""
    counts_nothing: bool = False
    """Of a revocation: nothing of the key counts, not even what came before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActItem:
    """One thing that an act names."""

    id: str
    what: str
    """What it is, as far as it is known here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActInfo:
    """An act as this node understands it."""

    group: str
    group_name: str = ""
    kind: str
    """An :class:`ActKind`."""
    reason: str = ""
    items: tuple[ActItem, ...] = ()
    details: tuple[str, ...] = ()
    """What changes, a line each, if it is a policy; what still counts, if it is a revocation."""
    signers: tuple[str, ...] = ()
    """Administrators whose signatures are on it and valid."""
    admins: tuple[str, ...] = ()
    """All that the group has."""
    quorum: int = 1
    needed: int = 0
    """Signatures that are missing."""
    operation: str = ""
    """Id of the operation that brought it into the group; empty: it is in no group yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """An act to be carried to others, or to be submitted."""

    text: str
    """What its file holds."""
    info: ActInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureNode:
    """A node that has destroyed the bytes, or has not said so yet."""

    id: str
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureInfo:
    """How far an erasure has come."""

    act: ActInfo
    done: tuple[ErasureNode, ...] = ()
    """Nodes that signed that the bytes are gone there."""
    outstanding: tuple[ErasureNode, ...] = ()
    """Known nodes that have not."""
    is_complete: bool = False
    """Every known node has."""
