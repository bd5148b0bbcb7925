"""The models that simulated users contribute: small real tensors, and what a merge of them must be."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
from crdt_merge_protocol.blobs import Manifest, ManifestEntry, TensorSpec, blob_digest_of
from crdt_merge_protocol.canonical import digest, encode
from crdt_merge_protocol.strategies import registry
from crdt_merge_protocol.tensorfile import layout
from crdt_merge_protocol.view import Visible

from . import oracle
from .plan import Plan

BASE: Final = 1 << 30
"""Number of the model that the others come from."""


class DaemonModels:
    """One float32 tensor per number, drawn from the seed of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        elements = max(1, plan.scenario.workload.tensor_bytes // 4)
        self._spec = TensorSpec(name="weights", dtype="F32", shape=(elements,))
        self._merged: dict[tuple[tuple[bytes, int], ...], oracle.Array | None] = {}
        self.needs_base = registry.get(plan.scenario.strategy).base == "required"

    def values(self, number: int) -> npt.NDArray[np.float32]:
        """Return the elements of a model; equal numbers are equal models."""
        generator = np.random.default_rng([self._plan.seed & 0xFFFFFFFF, number])
        return generator.standard_normal(self._spec.shape, dtype=np.float32)

    def file(self, number: int) -> bytes:
        """Return a model as a safetensors file."""
        return layout([self._spec])[0] + self.values(number).tobytes()

    @cached_property
    def _numbers(self) -> dict[bytes, int]:
        """Content id -> number, of all that any act may contribute."""
        numbers = {act.args["content"] for act in self._plan.acts if act.kind == "add"}
        numbers |= {clone_content(fault.index) for fault in self._plan.faults if fault.kind == "clone"}
        return {self._content(number): number for number in sorted(numbers)}

    def _content(self, number: int) -> bytes:
        blob = blob_digest_of(self.values(number).tobytes())
        return Manifest.of([ManifestEntry(spec=self._spec, blob=blob)]).content

    def merged(self, shown: Iterable[Visible]) -> oracle.Array | None:
        """Return what the merge of these contributions must be, by the oracle; None if it cannot say."""
        distinct = {each.digest: (each.content, each.weight) for each in shown if each.type == "model"}
        key = tuple(distinct[contribution] for contribution in sorted(distinct))
        if key not in self._merged:
            self._merged[key] = self._merge(key)
        return self._merged[key]

    def _merge(self, parts: tuple[tuple[bytes, int], ...]) -> oracle.Array | None:
        if not parts or any(content not in self._numbers for content, _ in parts):
            return None
        scenario = self._plan.scenario
        return oracle.merge(
            scenario.strategy,
            [self.values(self._numbers[content]) for content, _ in parts],
            [weight for _, weight in parts],
            self.values(BASE),
            scenario.params,
        )

    def nbytes_needed(self, shown: Iterable[Visible]) -> int:
        """Return the size of the tensors of these contributions, each of equal ones once."""
        return len({each.content for each in shown}) * self._spec.nbytes

    def output_digest(self, merged: oracle.Array) -> str:
        """Return the digest that a resolve with this outcome must report, hex (STRATEGIES 1.11)."""
        spec = self._spec
        blob = blob_digest_of(merged.astype("<f4").tobytes())
        return digest("crdt-merge/output/1", encode([[spec.name, spec.dtype, list(spec.shape), blob]])).hex()


def clone_content(index: int) -> int:
    """Return the number of the model that the clone of a fault contributes."""
    return BASE + 1 + zlib.crc32(f"clone/{index}".encode())
