"""Groups and their policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .acts import ActInfo
from .contributions import ContributionInfo


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
    """Why nothing of the group is shown, if so: it admits its authors, and nobody is admitted."""


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
    acts: tuple[ActInfo, ...] = ()
    """Bans, erasures, admissions, revocations and removals of others' that are in force, the oldest first."""
