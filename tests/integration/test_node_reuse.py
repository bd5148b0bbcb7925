"""A group that is resolved again after a little of it changed: what is taken over, and from where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crdt_merge_node.control.model import PolicyChanges, ResolvePlan
from safetensors.numpy import load_file, save_file
from support.whole_nodes import TIMEOUT_S, Site, WholeNode, last, until_agreed

pytestmark = pytest.mark.asyncio

TENSORS = 6


def save(path: Path, seed: int, **changed: int) -> Path:
    """Write a model of a few tensors, of which some follow from other numbers."""
    tensors = {}
    for number in range(TENSORS):
        rng = np.random.default_rng([changed.get(f"t{number}", seed), number])
        tensors[f"t{number}"] = rng.standard_normal((8, 5)).astype(np.float32)
    save_file(tensors, path)
    return path


async def resolve(node: WholeNode, output: Path, **options: Any) -> Any:
    settings: dict[str, Any] = {"output_path": str(output), "wait_s": TIMEOUT_S, "without": ()}
    return await last(node.api.resolve("g", **settings | options))


async def plan_of(node: WholeNode, **options: Any) -> ResolvePlan:
    settings: dict[str, Any] = {"output_path": "", "wait_s": 0.0, "without": (), "plan_only": True}
    return await last(node.api.resolve("g", **settings | options))


async def two_models(nodes: list[WholeNode], directory: Path, **policy: Any) -> list[Any]:
    await nodes[0].create_group("g", base=save(directory / "base", 0), **policy)
    await nodes[1].until_group("g", lambda info: info.missing_blobs == 0)
    added = [await node.add("g", save(directory / f"model{i}", i + 1)) for i, node in enumerate(nodes)]
    await until_agreed("g", *nodes, used=2)
    return [each.contribution for each in added]


async def test_a_newer_version_of_a_contribution_costs_the_tensors_that_changed(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as nodes:
        await two_models(nodes, tmp_path)
        first = await resolve(nodes[0], tmp_path / "out")
        newer = await nodes[1].add("g", save(tmp_path / "newer", 2, t3=9))
        await nodes[0].until_state("g", newer.contribution.tag, "used")
        plans = [await plan_of(nodes[0]), await plan_of(nodes[0], fresh=True)]
        second = await resolve(nodes[0], tmp_path / "out")
        elsewhere = await resolve(nodes[0], tmp_path / "elsewhere", fresh=True)
        other = await resolve(nodes[1], tmp_path / "other")

    account = json.loads((tmp_path / "out.provenance.json").read_text())
    assert [plan.reused_tensors for plan in plans] == [TENSORS - 1, 0]
    assert [plan.reused_bytes for plan in plans] == [(TENSORS - 1) * 160, 0]
    assert plans[0].merged_tensors == 1
    reports = (first, second, elsewhere, other)
    assert [report.reused_tensors for report in reports] == [0, TENSORS - 1, 0, 0]
    assert account["reused"] == {"tensors": TENSORS - 1, "nbytes": second.reused_bytes}
    assert len({report.output_digest for report in (second, elsewhere, other)}) == 1
    assert second.output_digest != first.output_digest
    assert second.file_sha256 == elsewhere.file_sha256


async def test_what_was_written_elsewhere_before_a_restart_is_known_after_it(tmp_path: Path) -> None:
    """A contribution is removed and comes back, a parameter changes for one tensor."""
    site = Site(tmp_path)
    data_dir = site.make()
    async with site.running(data_dir) as node:
        await node.create_group("g", base=save(tmp_path / "base", 0), strategy="slerp")
        await node.add("g", save(tmp_path / "one", 1), slot="one")
        two = await node.add("g", save(tmp_path / "two", 2), slot="two")
        whole = await resolve(node, tmp_path / "whole")
        await node.api.contribution_remove("g", "two")
        alone = await resolve(node, tmp_path / "alone")
    async with site.running(data_dir) as node:
        await node.add("g", tmp_path / "two", slot="two")
        again = await resolve(node, tmp_path / "again")
        weights = f"t2#{two.contribution.digest}=3;1"
        await node.set_policy("g", PolicyChanges(params={"weight": weights}))
        tuned = await resolve(node, tmp_path / "tuned")
        fresh = await resolve(node, tmp_path / "fresh", fresh=True)

    assert (whole.reused_tensors, alone.reused_tensors) == (0, 0)
    assert (again.reused_tensors, again.output_digest) == (TENSORS, whole.output_digest)
    assert (tuned.reused_tensors, tuned.output_digest) == (TENSORS - 1, fresh.output_digest)
    assert tuned.output_digest != again.output_digest


@pytest.mark.parametrize("what", ["the output", "the account", "somebody's account"])
async def test_a_node_takes_nothing_over_that_it_did_not_write(tmp_path: Path, what: str) -> None:
    async with Site(tmp_path).nodes(1) as (node,):
        await node.create_group("g", base=save(tmp_path / "base", 0))
        await node.add("g", save(tmp_path / "one", 1), slot="one")
        output = tmp_path / "out"
        await resolve(node, output)
        account = tmp_path / "out.provenance.json"
        if what == "the output":
            raw = bytearray(output.read_bytes())
            raw[-1] ^= 1
            output.write_bytes(raw)
        elif what == "the account":
            account.write_text(account.read_text() + " ")
        else:
            account.rename(tmp_path / "theirs.provenance.json")
            output = output.rename(tmp_path / "theirs")
        await node.set_policy("g", PolicyChanges(params={"weight": "t2=3;1"}))
        again = await resolve(node, output)

    expected = load_file(tmp_path / "one")
    assert again.reused_tensors == 0
    assert {name: values.tobytes() for name, values in load_file(output).items()} == {
        name: values.tobytes() for name, values in expected.items()
    }
