"""Adapters in a group: contributed, judged, merged and written alike on every node."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node.lora import merge_adapters
from support.adapters import SHAPES, dense, save_adapter, save_base
from support.whole_nodes import Site, until_agreed

pytestmark = pytest.mark.asyncio
ADAPTERS = {"lora.rank": "auto"}


def files_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if "provenance" not in path.name}


async def test_two_nodes_write_the_same_adapter_as_offline_merge_does(tmp_path: Path) -> None:
    first = save_adapter(tmp_path / "a", 1, rank=4)
    second = save_adapter(
        tmp_path / "b", 2, rank=6, modules=("layers.0.q_proj", "layers.0.mlp"), use_rslora=True
    )
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_base(tmp_path / "base"), params=ADAPTERS)
        await nodes[1].until_group("g", lambda info: info.missing_blobs == 0)
        await nodes[0].add("g", first)
        await nodes[1].add("g", second)
        await until_agreed("g", *nodes, used=2)
        reports = [await node.resolve("g", tmp_path / f"out{i}", wait_s=30) for i, node in enumerate(nodes)]
    merge_adapters([second, first], tmp_path / "offline")

    assert len({report.output_digest for report in reports}) == 1
    assert files_in(tmp_path / "out0") == files_in(tmp_path / "out1") == files_in(tmp_path / "offline")
    for module in SHAPES:
        expected = (dense(first, module) + dense(second, module)) / 2
        assert np.allclose(dense(tmp_path / "out0", module), expected, atol=1e-4), module
    account = json.loads((tmp_path / "out0/adapter_model.safetensors.provenance.json").read_text())
    assert account["numerics"]["class"] == "bitwise"
    assert account["adapters"]["ranks"] == {"layers.0.mlp": 10, "layers.0.q_proj": 10, "layers.1.q_proj": 4}
