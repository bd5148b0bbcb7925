"""What the daemon tells a person: plain, frozen values, the same in the API, in gRPC and in ``--json``.

Ids are 64 lower-case hex digits here, never bytes: this is an edge. Times are Unix seconds, weights are
integers over 2^32 as in the operations (PROTOCOL R1), so that nothing is rounded on the way. Field names
are the field names of ``crdt_merge_proto.v1``; ``codec`` relies on it and a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

WEIGHT_ONE: Final = 1 << 32


class PeerState(StrEnum):
    """Liveness of a peer, in serf's words, and what a person may have decided about it."""

    ALIVE = "alive"
    """Connected and answering."""
    SUSPECT = "suspect"
    """Connected, but silent for longer than one ping."""
    FAILED = "failed"
    """Known, wanted, and not reachable; dialled again with backoff."""
    LEFT = "left"
    """Said goodbye and is not dialled."""
    BLOCKED = "blocked"
    """Refused by a person on this node."""


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


class Severity(StrEnum):
    """How much an alarm matters."""

    WARNING = "warning"
    """Worth knowing; the node counts as healthy."""
    ERROR = "error"
    """Somebody has to act."""
    DAMAGE = "damage"
    """Data damaged or an invariant broken, for instance two outputs for one resolve key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A standing problem of this node."""

    severity: str
    """A :class:`Severity`."""
    code: str
    """Of the error tree, such as ``E1203``, or a constant ``noun.verb_past`` as in the logs."""
    message: str
    hint: str = ""
    """What a person can do about it."""
    since: float = 0.0
    """Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInfo:
    """Another node and how this node stands with it."""

    id: str
    name: str = ""
    state: str
    """A :class:`PeerState`."""
    addresses: tuple[str, ...] = ()
    direction: str = ""
    """``inbound`` or ``outbound`` while connected."""
    since: float = 0.0
    """Unix seconds of the last change of ``state``."""
    last_received: float | None = None
    """Unix seconds of the last byte from it."""
    last_sync: float | None = None
    """Unix seconds at which an anti-entropy session with it last ended with equal roots."""
    bytes_in: int = 0
    bytes_out: int = 0
    is_converged: bool | None = None
    """Whether its roots of all groups equalled ours when last compared; none: never compared."""
    last_error: str = ""
    """Why the last connection ended or could not be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupInfo:
    """A group in one line."""

    id: str
    name: str
    is_followed: bool = True
    strategy: str = ""
    policy_version: int = 0
    operations: int = 0
    """Stored operations of any kind."""
    contributions: int = 0
    """Visible ones, used or not."""
    used: int = 0
    pending: int = 0
    quarantined: int = 0
    missing_blobs: int = 0
    missing_bytes: int = 0
    sync_root: str = ""
    """Over all operations: equal on two nodes means they hold the same set."""
    used_root: str = ""
    resolve_key: str = ""
    """Equal on two nodes means they would write the same file (PROTOCOL R17)."""
    converged_peers: int = 0
    live_peers: int = 0
    is_converged: bool = True
    """All live peers have our ``sync_root``. A node without peers is converged with itself."""
    unjudged: str = ""
    """Why this release shows nothing of the group, if so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One screen about the node."""

    is_healthy: bool
    node: str
    name: str = ""
    cluster: str = ""
    cluster_name: str = ""
    version: str = ""
    pid: int = 0
    started: float = 0.0
    """Unix seconds."""
    now: float = 0.0
    """Unix seconds on the daemon's clock: ages are taken against it."""
    listen: str = ""
    advertise: tuple[str, ...] = ()
    data_dir: str = ""
    store_bytes: int = 0
    """Bytes of operations and blobs on disk."""
    free_bytes: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    """On the wire, all connections since the start."""
    peers: tuple[PeerInfo, ...] = ()
    groups: tuple[GroupInfo, ...] = ()
    alarms: tuple[Alarm, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One thing that stands between a group and convergence."""

    subject: str
    """Id of the peer that lacks something; our own id if it is us."""
    subject_name: str = ""
    lacks: str
    """What is missing, with numbers: ``3 operations``, ``12 MiB of 2 blobs``."""
    missing: tuple[str, ...] = ()
    """Ids of what is missing, as far as they are known; tags for contributions, digests for blobs."""
    since: float = 0.0
    """Unix seconds."""
    waiting: str = ""
    """The step that waits: ``dialling 10.0.0.7:7946, attempt 14``."""
    remedy: str = ""
    """What would fix it: a command, or ``nothing to do``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyGroup:
    """Why one group is or is not converged."""

    group: str
    name: str
    is_converged: bool
    """No reason is left: live peers have our root and no blob is missing here."""
    sync_root: str = ""
    converged_peers: int = 0
    live_peers: int = 0
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyReport:
    """The answer to ``why``."""

    now: float
    """Unix seconds on the daemon's clock."""
    groups: tuple[WhyGroup, ...] = ()
    alarms: tuple[Alarm, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInfo:
    """The current policy of a group."""

    group: str
    group_name: str = ""
    id: str = ""
    """Operation id; empty for the first policy, which is part of the genesis."""
    version: int = 0
    strategy: str = ""
    strategy_version: int = 0
    params: Mapping[str, str] = field(default_factory=dict)
    schema: str = ""
    """Schema id."""
    tensors: int = 0
    """Tensors in the schema; 0 while the schema is not here."""
    nbytes: int = 0
    """Size of one model with this schema."""
    base: str = ""
    """Content id of the base model, or empty."""
    dtype: str = ""
    """Output element type; empty: that of the base, else the widest of the inputs."""
    weight_cap: int = 0
    """Over 2^32."""
    holders: int = 0
    """Other nodes that must hold a contribution before it counts."""
    seed_rule: str = ""
    admins: tuple[str, ...] = ()
    quorum: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChanges:
    """What ``policy set`` changes; none keeps a value."""

    strategy: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    """Merged into the present ones; dropped first if the strategy changes. An empty value removes one."""
    base_path: str | None = None
    dtype: str | None = None
    weight_cap: int | None = None
    holders: int | None = None


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
class OutputInfo:
    """An output digest that a node announced for a resolve key."""

    node: str
    resolve_key: str
    output_digest: str
    is_agreeing: bool = True
    """False: another node announced another digest under the same key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDetail:
    """A group with its policy and its contributions."""

    info: GroupInfo
    policy: PolicyInfo
    contributions: tuple[ContributionInfo, ...] = ()
    outputs: tuple[OutputInfo, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Long work on its way. The client measures rate and remaining time."""

    step: str
    """What is being done, in the operator's words: ``copying tensors``."""
    done_bytes: int = 0
    total_bytes: int = 0
    """0: not known yet."""
    detail: str = ""
    """What the step works on or waits for: a tensor, a peer."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionAdded:
    """The contribution is durable here (PROTOCOL R21) and announced."""

    contribution: ContributionInfo
    copied_bytes: int = 0
    holds: int = 0
    """Other nodes that held it when we stopped waiting; as asked for, or the call fails."""
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionsRemoved:
    """What a remove named (all tags of the slot that this node had seen)."""

    group: str
    tags: tuple[str, ...]
    operation: str = ""
    """Id of the REMOVE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvePlan:
    """What ``resolve`` is going to compute."""

    group: str
    group_name: str = ""
    strategy: str
    strategy_version: int = 0
    params: Mapping[str, str] = field(default_factory=dict)
    resolve_key: str = ""
    inputs: tuple[ContributionInfo, ...] = ()
    excluded: tuple[ContributionInfo, ...] = ()
    """Visible but not used, each with its reason."""
    base: str = ""
    dtype: str = ""
    read_bytes: int = 0
    output_bytes: int = 0
    memory_bytes: int = 0
    """The budget the blocks stay within."""
    free_memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveReport:
    """A resolve that is on disk."""

    group: str
    group_name: str = ""
    path: str
    provenance_path: str = ""
    strategy: str
    strategy_version: int = 0
    params: Mapping[str, str] = field(default_factory=dict)
    resolve_key: str = ""
    used_root: str = ""
    output_digest: str
    """Over names, dtypes, shapes and bytes of the tensors: what nodes compare."""
    file_sha256: str = ""
    nbytes: int = 0
    duration_s: float = 0.0
    inputs: tuple[ContributionInfo, ...] = ()
    excluded: tuple[ContributionInfo, ...] = ()
    base: str = ""
    dtype: str = ""
    agreeing: tuple[str, ...] = ()
    """Nodes that announced the same digest for the key."""
    disagreeing: tuple[str, ...] = ()
    """Nodes that announced another one: an alarm."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """A one-time token with which a new machine joins."""

    token: str
    expires: float = 0.0
    """Unix seconds."""
    cluster: str = ""
    cluster_name: str = ""
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionInfo:
    """Versions of a running daemon."""

    version: str
    wire_version: int = 1
    python: str = ""
    node: str = ""
