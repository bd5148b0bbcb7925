"""The models of tier 3: real tensors, their content ids, and real merges of what a node sees."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
from crdt_merge_protocol.blobs import Manifest, ManifestEntry, Schema, TensorSpec, blob_digest_of
from crdt_merge_protocol.operations import Add
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.resolve_key import seed_of
from crdt_merge_protocol.strategies import registry
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.view import View

SIDE: Final = 512
"""Of the square tensor that everybody contributes (paper, tier 3)."""
TENSOR: Final = "weight"
WEIGHT_ONE: Final = 1 << 32
Array = npt.NDArray[np.float32]


class Models:
    """One float32 tensor per contribution, drawn from a seed; made once and kept."""

    def __init__(self, seed: int, count: int, side: int = SIDE) -> None:
        self.spec = TensorSpec(name=TENSOR, dtype="F32", shape=(side, side))
        self._seed = seed
        self._arrays: dict[bytes, Array] = {}
        self._numbers: dict[bytes, int] = {}
        self.manifests: list[Manifest] = []
        self.contents: list[bytes] = []
        """Content id of each contribution: what its operation names."""
        for number in range(count):
            array = self._draw(number)
            blob = blob_digest_of(array.tobytes())
            manifest = Manifest.of([ManifestEntry(spec=self.spec, blob=blob)])
            self.manifests.append(manifest)
            self.contents.append(manifest.content)
            self._arrays[manifest.content] = array
            self._numbers[manifest.content] = number

    def _draw(self, number: int) -> Array:
        rng = np.random.default_rng([self._seed, number])
        return rng.standard_normal(self.spec.shape, dtype=np.float32)

    @cached_property
    def base(self) -> Array:
        """The model that the others are taken to come from, where a strategy has a use for one."""
        return self._draw(1 << 30)

    def policy(self, strategy: str) -> Policy:
        """Return the policy of a group for these models."""
        base = None
        if registry.get(strategy).base != "unused":
            entry = ManifestEntry(spec=self.spec, blob=blob_digest_of(self.base.tobytes()))
            base = Manifest.of([entry]).content
        return Policy(strategy=strategy, schema=Schema.of([self.spec]).id, base=base, dtype="F32")

    def add(self, number: int) -> Add:
        """Return what the operation of a contribution says."""
        return Add(slot="main", type="model", content=self.contents[number], weight=WEIGHT_ONE, payload=None)

    def data(self, content: bytes) -> memoryview:
        """Return the bytes of the tensor of a contribution."""
        return self._arrays[content].data.cast("B")

    def manifest(self, content: bytes) -> bytes:
        """Return the bytes of the manifest of a contribution."""
        return self.manifests[self._numbers[content]].encode()

    def blob(self, content: bytes) -> bytes:
        """Return the digest of the blob that holds the tensor of a contribution."""
        return self.manifests[self._numbers[content]].entries[0].blob

    @property
    def bytes_each(self) -> int:
        """Size of the tensor and of the manifest of one contribution."""
        return self.spec.nbytes + len(self.manifests[0].encode())

    def resolve(self, view: View) -> str:
        """Merge what a view shows, for real; return the SHA-256 of the bytes of the output, hex."""
        policy = view.policy
        inputs = [{TENSOR: self._arrays[shown.content]} for shown in view.visible]
        merged = merge_arrays(
            policy.strategy,
            inputs,
            {TENSOR: self.base} if policy.base is not None else None,
            dict(policy.params),
            digests=[shown.digest for shown in view.visible],
            seed=seed_of(shown.digest for shown in view.visible),
        )
        return _digest(merged.tensors.values())


def _digest(tensors: Iterable[npt.NDArray[np.float64]]) -> str:
    """Return the SHA-256 of tensors written as float32, little-endian."""
    hasher = hashlib.sha256()
    for tensor in tensors:
        hasher.update(tensor.astype("<f4").tobytes())
    return hasher.hexdigest()
