"""Jobs over models in memory, for tests that resolve again and again with a little changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import ml_dtypes
import numpy as np
from crdt_merge_node.resolve.earlier import read_earlier
from crdt_merge_node.resolve.job import TensorSource, UsedModel
from crdt_merge_node.resolve.plan import build_job
from crdt_merge_node.resolve.run import run_job
from crdt_merge_protocol.blobs import (
    Manifest,
    ManifestEntry,
    Schema,
    TensorSpec,
    blob_digest_of,
    contribution_digest,
)
from crdt_merge_protocol.limits import WEIGHT_ONE
from crdt_merge_protocol.policy import Policy, sorted_params
from crdt_merge_protocol.strategies.registry import get

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I32": np.int32}
SPECS = (
    TensorSpec(name="a.weight", dtype="F32", shape=(6, 5)),
    TensorSpec(name="b.weight", dtype="BF16", shape=(4, 3)),
    TensorSpec(name="c.bias", dtype="F16", shape=(7,)),
    TensorSpec(name="d.scale", dtype="F32", shape=()),
    TensorSpec(name="e.none", dtype="F32", shape=(0, 3)),
    TensorSpec(name="ids", dtype="I32", shape=(3,)),
)
SCHEMA = Schema.of(SPECS)
FLOATS = tuple(spec.name for spec in SPECS if spec.dtype != "I32")


def tensor(seed: int, spec: TensorSpec) -> np.ndarray:
    """Return a tensor that follows from a number; on a coarse grid, so that equal magnitudes happen."""
    if spec.dtype == "I32":
        return np.arange(3, dtype=np.int32)
    rng = np.random.default_rng([seed, *spec.name.encode()])
    return np.asarray(rng.integers(-9, 10, spec.shape) / 4 + rng.integers(0, 2) * 1e4).astype(
        DTYPES[spec.dtype]
    )


@dataclass(frozen=True)
class Model:
    """A contribution: for each tensor the number that it follows from."""

    seeds: Mapping[str, int]
    weight: int = 1

    def changed(self, name: str, seed: int) -> Model:
        return replace(self, seeds={**self.seeds, name: seed})

    def used(self) -> UsedModel:
        data = {spec.name: tensor(self.seeds[spec.name], spec).tobytes() for spec in SPECS}
        manifest = Manifest.of(
            ManifestEntry(spec=spec, blob=blob_digest_of(data[spec.name])) for spec in SPECS
        )
        sources = {name: TensorSource(None, 0, len(raw), raw) for name, raw in data.items()}
        weight = self.weight * WEIGHT_ONE
        name = contribution_digest(kind="model", content=manifest.content, weight=weight)
        return UsedModel(name, weight, manifest, sources)


def model(seed: int, weight: int = 1) -> Model:
    return Model({spec.name: seed for spec in SPECS}, weight)


@dataclass(frozen=True)
class Group:
    """What a group holds and how it is merged."""

    strategy: str
    models: tuple[Model, ...]
    params: Mapping[str, str] = field(default_factory=dict)
    dtype: str = ""
    shard_bytes: int = 0
    base: Model = field(default_factory=lambda: model(1000))
    """Where the strategy has one."""

    def job(self, **options):
        needs_base = get(self.strategy).base != "unused"
        base = self.base.used() if needs_base else None
        policy = Policy(
            strategy=self.strategy,
            strategy_version=get(self.strategy).version,
            params=sorted_params(dict(self.params)),
            schema=SCHEMA.id,
            base=base.manifest.content if base else None,
            dtype=self.dtype,
        )
        job = build_job(
            policy, SCHEMA, [each.used() for each in self.models], base, group_mode=True, **options
        )
        return replace(job, shard_bytes=self.shard_bytes)

    def resolve(self, output: Path, *, fs, earlier: Path | None = None, **options):
        """Resolve to ``output``, taking over what ``earlier`` has, if one is given."""
        kept = read_earlier(fs, earlier) if earlier is not None else {}
        return run_job(replace(self.job(), earlier=kept), output, fs=fs, **options)


def account_of(result) -> dict:
    """Return the account of a result, without what is about the way to it."""
    account = json.loads(result.manifest_path.read_text())
    for each in account["tensors"]:
        each.pop("reused", None)
    (account["modulators"] or {}).pop("name", None)  # It follows from that of the output.
    return {name: value for name, value in account.items() if name not in ("run", "reused", "file")}


def bytes_of(result) -> dict[str, bytes]:
    """Return the files of tensors that a result consists of."""
    names = [file.name for file in result.files] or [""]
    return {name: (result.output_path / name if name else result.output_path).read_bytes() for name in names}
