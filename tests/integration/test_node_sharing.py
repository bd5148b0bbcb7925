"""What two models have in common is neither sent nor stored twice (TARGETS C3)."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.whole_nodes import Site

pytestmark = pytest.mark.asyncio

TENSORS = 40
TENSOR_FLOATS = 1 << 16
MODEL_BYTES = 4 * TENSOR_FLOATS * TENSORS


def write(path: Path, model: dict[str, np.ndarray]) -> Path:
    save_file(model, path)
    return path


async def test_c3_a_fine_tune_of_a_tenth_of_the_tensors_moves_a_tenth_of_the_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    first = {f"layer.{n}": rng.standard_normal(TENSOR_FLOATS, dtype=np.float32) for n in range(TENSORS)}
    second = dict(first)
    for number in range(TENSORS // 10):
        second[f"layer.{number}"] = first[f"layer.{number}"] + np.float32(0.01)
    models = [write(tmp_path / "first", first), write(tmp_path / "second", second)]
    async with Site(tmp_path).nodes(2) as (here, there):
        await here.create_group("g", models[0], holders=1)
        received, stored = [], []
        for slot, path in (("a", models[0]), ("b", models[1]), ("c", models[0])):
            before = there.services.endpoint.bytes_in
            await here.add("g", path, slot=slot, wait_holds=1)
            received.append((there.services.endpoint.bytes_in - before) / MODEL_BYTES)
            stored.append(there.services.store.blobs.total_bytes())

    assert received[0] >= 1
    assert 0.1 <= received[1] <= 0.105
    assert received[2] <= 0.001
    assert stored[1:] == [round(1.1 * MODEL_BYTES)] * 2
