"""Long work: its progress, and a resolve before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .contributions import ContributionInfo


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
    artefacts: tuple[ContributionInfo, ...] = ()
    """Chosen to go with the inputs."""
    effective_strategy: str = ""
    """The one that will work: the stand-in, where ``strategy`` cannot."""
    stand_in_reason: str = ""
    """Why it cannot; empty if it can."""
    determinism: str = ""
    """``bitwise``, or the class of what is the same only within a tolerance."""
    tensors: int = 0
    merged_tensors: int = 0
    """Of these, those that are computed; the others are copied."""
    passes: int = 0
    """Times that the inputs are read."""
    workers: int = 0
    """Processes; 0: the daemon itself."""
    peak_memory_bytes: int = 0
    """Estimated, of all processes together."""
    estimated_s: float = 0.0
    """From the strategy's arithmetic and the rate at which this machine reads and hashes."""
    reused_tensors: int = 0
    """Of those that are copied, those that come from earlier outputs."""
    reused_bytes: int = 0


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
    artefacts: tuple[ContributionInfo, ...] = ()
    effective_strategy: str = ""
    """The one that worked: the stand-in, where ``strategy`` could not."""
    determinism: str = ""
    modulators_path: str = ""
    """What turns the common model into that of each task; empty for most strategies."""
    reused_tensors: int = 0
    """Taken over from earlier outputs, not computed."""
    reused_bytes: int = 0
