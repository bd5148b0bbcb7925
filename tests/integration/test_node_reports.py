"""A resolve in a group also writes what its layers look like, and a model card that names the authors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from crdt_merge_node.control.model import ResolveReport
from support.whole_nodes import TIMEOUT_S, Site, save_model

pytestmark = pytest.mark.asyncio


async def test_a_resolve_writes_its_report_and_its_card(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "like", 1.0), strategy="weight_average")
        for slot, value in (("one", 1.0), ("two", 3.0)):
            await nodes[0].add("g", save_model(tmp_path / slot, value), slot=slot)
        events = [
            event
            async for event in nodes[0].api.resolve(
                "g",
                output_path=str(tmp_path / "out"),
                wait_s=TIMEOUT_S,
                without=(),
                report_paths=(str(tmp_path / "layers.json"), str(tmp_path / "layers.html")),
                card_path=str(tmp_path / "README.md"),
            )
        ]
        author = nodes[0].services.engine.node.hex()

    report = events[-1]
    assert isinstance(report, ResolveReport)
    found = json.loads((tmp_path / "layers.json").read_text())
    assert [model["digest"] for model in found["inputs"]] == sorted(info.digest for info in report.inputs)
    assert sum(found["total"]["influences"]) == pytest.approx(1.0, abs=1e-5)
    assert "<table>" in (tmp_path / "layers.html").read_text()
    card = (tmp_path / "README.md").read_text()
    assert author[:12] in card
    assert report.output_digest in card
