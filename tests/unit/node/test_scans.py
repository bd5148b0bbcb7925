"""What is looked through for NaN, and what need not be again."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import numpy as np
import pytest
from crdt_merge_node.scans import Scans
from crdt_merge_protocol.blobs import Manifest, ManifestEntry, TensorSpec, blob_digest_of

pytestmark = pytest.mark.asyncio


class World:
    """A store of blobs that counts who is read."""

    def __init__(self, **tensors: np.ndarray) -> None:
        self.data = {blob_digest_of(array.tobytes()): array.tobytes() for array in tensors.values()}
        self.reads: Counter[bytes] = Counter()
        self.blobs = self
        self.found: list[bytes] = []
        self.ended = asyncio.Event()
        store: Any = self
        self.scans = Scans(store, found=self._note)

    def _note(self, content: bytes) -> None:
        self.found.append(content)
        self.ended.set()

    def read_chunk(self, blob: bytes, index: int) -> bytes | None:
        self.reads[blob] += 1
        return self.data[blob] if index == 0 else None

    async def update_meta(self, values: dict[str, bytes]) -> None:
        self.meta = values

    async def scan(self, manifest: Manifest) -> bool | None:
        self.ended.clear()
        self.scans.begin(manifest.content, manifest)
        await self.ended.wait()
        return self.scans.verdict(manifest.content)


def manifest_of(dtype: str = "F32", **tensors: np.ndarray) -> Manifest:
    return Manifest.of(
        ManifestEntry(
            spec=TensorSpec(name=name, dtype=dtype, shape=array.shape), blob=blob_digest_of(array.tobytes())
        )
        for name, array in tensors.items()
    )


SHARED, ONE, TWO = (np.full(8, value, np.float32) for value in (1, 2, 3))
BAD = np.array([1, np.nan], np.float32)


async def test_what_two_models_share_is_looked_through_once() -> None:
    world = World(a=SHARED, b=ONE, c=TWO)

    verdicts = [
        await world.scan(manifest_of(a=SHARED, b=ONE)),
        await world.scan(manifest_of(a=SHARED, b=TWO)),
    ]
    await world.scans.close()

    assert verdicts == [True, True]
    assert set(world.reads.values()) == {1}


async def test_what_is_not_finite_is_found_in_every_content_that_has_it() -> None:
    world = World(a=SHARED, b=BAD)

    verdicts = [await world.scan(manifest_of(a=SHARED, b=BAD)), await world.scan(manifest_of(x=BAD))]
    await world.scans.close()

    assert verdicts == [False, False]


async def test_bytes_that_are_finite_as_one_type_may_not_be_as_another() -> None:
    data = np.full(4, 0x7F00, np.uint16)  # 1.7e38 in bfloat16, NaN as a half.
    world = World(a=data)

    verdicts = [await world.scan(manifest_of(dtype, a=data)) for dtype in ("BF16", "F16")]
    await world.scans.close()

    assert verdicts == [True, False]
