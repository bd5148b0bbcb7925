"""Contributions: where each stands, and what adding or removing one did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from crdt_merge_protocol.limits import WEIGHT_ONE


class ContributionState(StrEnum):
    """Where a contribution stands in the view of this node."""

    USED = "used"
    """Goes into a resolve."""
    MISSING = "missing"
    """Would be used, but some of its bytes are not here yet."""
    PENDING = "pending"
    """Waits for HOLDs of other nodes (PROTOCOL R16)."""
    QUARANTINED = "quarantined"
    """Breaks the schema, the caps or finiteness by itself; every node drops it (PROTOCOL R14)."""
    HIDDEN = "hidden"
    """Superseded, removed, or its author forked; ``reason`` says which."""


class Placement(StrEnum):
    """How the bytes of a user's files get into the store."""

    COPIED = "copied"
    SHARED = "shared"
    """The file system shares the blocks until one side writes: no copy, and no dependence on the files."""
    LINKED = "linked"
    """Another name of the same files, as asked for: no copy; what is written to them damages what is here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionInfo:
    """One contribution as this node sees it."""

    tag: str
    """Id of its ADD operation: what ``contribution remove`` and ``resolve --without`` take."""
    group: str = ""
    author: str
    author_name: str = ""
    is_own: bool = False
    slot: str = "main"
    type: str = "model"
    content: str = ""
    digest: str = ""
    weight: int = WEIGHT_ONE
    """Over 2^32."""
    state: str
    """A :class:`ContributionState`."""
    reason: str = ""
    """Why it is not used, or what is missing."""
    tensors: int = 0
    nbytes: int = 0
    missing_blobs: int = 0
    missing_bytes: int = 0
    holders: int = 0
    """Other nodes that said they hold it."""
    depth: int = 0
    meta: Mapping[str, str] = field(default_factory=dict)
    """The author's notes; they never change an output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionPlan:
    """What ``contribution add`` is going to do; everything was checked and no byte is copied yet."""

    group: str
    group_name: str = ""
    path: str
    slot: str
    weight: int = WEIGHT_ONE
    tensors: int = 0
    nbytes: int = 0
    new_bytes: int = 0
    """To be copied at most; an estimate before hashing, never too low."""
    free_bytes: int = 0
    fetching_peers: int = 0
    """Live peers, each of which will fetch what it does not have."""
    replaces: str = ""
    """Tag of our visible contribution in this slot, superseded by the new one."""
    type: str = "model"
    placement: str = "copied"
    """How the bytes get in: a :class:`Placement`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionAdded:
    """The contribution is durable here (PROTOCOL R21) and announced."""

    contribution: ContributionInfo
    copied_bytes: int = 0
    """Of tensors that were not here already and were copied."""
    holds: int = 0
    """Other nodes that held it when we stopped waiting; as asked for, or the call fails."""
    duration_s: float = 0.0
    placed_bytes: int = 0
    """Of tensors that were not here already and are kept without a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """One file that was written."""

    name: str
    nbytes: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionWritten:
    """A contribution that is on disk as files again."""

    contribution: ContributionInfo
    path: str
    files: tuple[WrittenFile, ...] = ()
    nbytes: int = 0
    is_exact: bool = False
    """Whether they are byte for byte what the author had."""
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionsRemoved:
    """What a remove named (all tags of the slot that this node had seen)."""

    group: str
    tags: tuple[str, ...]
    operation: str = ""
    """Id of the REMOVE."""
