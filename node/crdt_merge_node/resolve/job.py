"""What a resolve is given and what it returns: plain values, all of them picklable.

A job names its inputs by digest and says where their bytes stand; it holds no bytes itself unless a tensor
is small enough to be a row of the database. Nothing in a job depends on the order in which contributions
came (PROTOCOL R17).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from crdt_merge_protocol.blobs import Manifest, Schema, TensorSpec
from crdt_merge_protocol.errors import ResolveError
from crdt_merge_protocol.limits import MIB
from crdt_merge_protocol.strategies.artefacts import Artefact

if TYPE_CHECKING:
    from crdt_merge_node.lora.group import AdapterJob

DEFAULT_MEMORY_BYTES: Final = 512 * MIB
"""Anonymous and shared memory of one resolve, over all its processes (TARGETS B8)."""
PROVENANCE_SUFFIX: Final = ".provenance.json"

ReportProgress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all, and the step in words."""
IsCancelled = Callable[[], bool]


class ResolveCancelledError(ResolveError):
    """The caller did not want the result any more. Nothing was written."""

    code = "E1312"
    exit_code = 130


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Where the bytes of one tensor stand: a range of a file, or in memory.

    The first four fields are what ``BlobStore.source`` returns.
    """

    path: str | None
    offset: int
    nbytes: int
    data: bytes | None = None
    blob: bytes = b""
    """Blob digest. If given, the bytes are verified while they are merged (SCENARIOS T41)."""


@dataclass(frozen=True, slots=True)
class KeptTensor:
    """A tensor of an earlier output."""

    source: TensorSource
    """In that output, with the blob digest that its account gives."""
    misfits: int = 0
    """Elements that did not fit the output type."""
    findings: Any = None
    """What the passes found of it; JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """One contribution, or the base model."""

    digest: bytes
    """Contribution digest: the canonical order. For the base its content id."""
    weight: int
    """Over 2^32; of no meaning for the base."""
    tensors: Mapping[str, TensorSource]
    """By tensor name, exactly those of the schema."""
    content: bytes = b""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """Element types by tensor name, of those tensors that have another than the schema says."""

    def dtype_of(self, spec: TensorSpec) -> str:
        """Return the element type that a tensor of the schema has here."""
        return self.dtypes.get(spec.name, spec.dtype)


class UsedModel(NamedTuple):
    """One used contribution, or the base, as the caller of ``build_job`` knows it."""

    digest: bytes
    weight: int
    manifest: Manifest
    sources: Mapping[str, TensorSource]
    """By tensor name. A tensor that is not here is missing on this node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtefactInput:
    """One chosen artefact and where its tensors stand."""

    artefact: Artefact
    tensors: Mapping[str, TensorSource]
    """By tensor name, the header's aside."""


class UsedArtefact(NamedTuple):
    """One artefact that was chosen, as the caller of ``build_job`` knows it."""

    artefact: Artefact
    manifest: Manifest
    sources: Mapping[str, TensorSource]
    """By tensor name. A tensor that is not here is missing on this node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveJob:
    """All that decides the output, and some facts for people. Made by ``plan.build_job``."""

    strategy: str
    params: Mapping[str, str]
    schema: Schema
    inputs: tuple[ModelInput, ...]
    """Sorted by digest, unique."""
    base: ModelInput | None
    seed: bytes
    dtype: str
    """Of float tensors in the output; empty: that of the base, else the widest of the inputs."""
    group_mode: bool
    """A failure that needs two contributions never raises but follows its total rule (STRATEGIES 1.12)."""
    resolve_key: bytes
    artefacts: tuple[ArtefactInput, ...] = ()
    """In canonical order; none twice."""
    unfit: Mapping[str, str] = field(default_factory=dict)
    """Why artefacts that were offered are not among them, by digest in hex: for messages."""
    is_stale: bool = False
    """Whether one of those was made for another set of contributions, or another base."""
    task: bytes = b""
    """Digest of the contribution whose task's model is written instead of the common one; empty: none."""
    recipe_digest: bytes = b""
    """Of the policy's recipe: what the resolve key holds besides the contributions."""
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    workers: int | None = None
    """Worker processes; 0: none, in this process; None: none for small jobs, else one per core."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Goes into the provenance as it is; JSON."""
    shard_bytes: int = 0
    """Size of tensors in one file of the output, a directory then; 0: one file. No part of any key."""
    earlier: Mapping[bytes, KeptTensor] = field(default_factory=dict)
    """Tensors of earlier outputs by their keys: they need not be computed. No part of any key."""
    adapters: AdapterJob | None = None
    """If the inputs are adapters: how they are merged. ``lora`` carries such a job out."""
    directory_file: str = ""
    """Name of the one file with tensors in an output that is a directory whatever its size: an adapter."""


class OutputFile(NamedTuple):
    """One file of an output directory."""

    name: str
    nbytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveResult:
    """A finished, durable output."""

    resolve_key: bytes
    output_digest: bytes
    """Over sorted (name, element type, shape, blob digest) of the output: the bytes, whatever the file."""
    file_sha256: bytes
    """Of a directory: that of the lines which ``sha256sum`` prints of its shards."""
    nbytes: int
    """Of the file, or of all shards."""
    duration_s: float
    output_path: Path
    manifest_path: Path
    """The provenance JSON beside the output."""
    decisions: Mapping[str, Any]
    warnings: tuple[str, ...]
    profile: str = "bitwise"
    """Outputs of equal keys are compared within one numerics profile (STRATEGIES 1.8)."""
    effective_strategy: str = ""
    """The one that worked: the stand-in, where the job's own could not."""
    modulators_path: Path | None = None
    """What turns the common model into that of each task, for strategies that put that out."""
    files: tuple[OutputFile, ...] = ()
    """Of a directory: its shards, and their index if there are several."""
    reused_tensors: int = 0
    """Taken over from earlier outputs, not computed."""
    reused_bytes: int = 0
