"""Resolves of a group: stand-ins, models of tasks, and results that are there already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_node.control.model import PolicyChanges
from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.resolve.merge import merge_files
from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.strategies.artefacts import encode_header
from support.whole_nodes import TIMEOUT_S, Site, WholeNode, last, save_model, until_agreed

pytestmark = pytest.mark.asyncio


async def resolve(node: WholeNode, output: Path, **options: Any) -> Any:
    settings: dict[str, Any] = {"output_path": str(output), "wait_s": TIMEOUT_S, "without": ()}
    return await last(node.api.resolve("g", **settings | options))


async def two_models(nodes: list[WholeNode], directory: Path, **policy: Any) -> list[Any]:
    """A group of two models, one by each node, around a base of ones."""
    await nodes[0].create_group("g", base=save_model(directory / "base", 1.0), **policy)
    await nodes[1].until_group("g", lambda info: info.missing_blobs == 0)
    added = [
        await node.add("g", save_model(directory / f"model{i}", value))
        for i, (node, value) in enumerate(zip(nodes, (2.0, 5.0), strict=True))
    ]
    await until_agreed("g", *nodes, used=2)
    return [each.contribution for each in added]


def save_lambdas(path: Path, digests: list[str], value: str) -> Path:
    header = {
        "artefact": "lambda_table/1",
        "set_root": used_root(map(bytes.fromhex, digests)).hex(),
        "contributions": sorted(digests),
        "rows": [{"match": "*", "lambda": [value] * len(digests)}],
    }
    safetensors.numpy.save_file({"artefact": np.frombuffer(encode_header(header), np.uint8)}, path)
    return path


LAMBDAS: dict[str, Any] = {"strategy": "ada_merging", "params": {"fallback": "task_arithmetic"}}


async def test_the_stand_in_works_until_an_administrator_gives_what_is_missing(tmp_path: Path) -> None:
    """STRATEGIES 1.12: and again once another contribution makes it stale."""
    async with Site(tmp_path).nodes(2) as nodes:
        models = await two_models(nodes, tmp_path, **LAMBDAS)
        digests = [model.digest for model in models]
        before = [await resolve(node, tmp_path / f"before{i}") for i, node in enumerate(nodes)]
        foreign = await nodes[1].add(
            "g", save_lambdas(tmp_path / "foreign", digests, "0.9"), type="lambda_table", slot="table"
        )
        ignored = await resolve(nodes[1], tmp_path / "ignored")
        table = await nodes[0].add(
            "g", save_lambdas(tmp_path / "table", digests, "0.5"), type="lambda_table", slot="table"
        )
        await nodes[1].until_state("g", table.contribution.tag, "used")
        fresh = [await resolve(node, tmp_path / f"fresh{i}") for i, node in enumerate(nodes)]
        third = await nodes[1].add("g", save_model(tmp_path / "third", 3.0), slot="third")
        await nodes[0].until_state("g", third.contribution.tag, "used")
        stale = await resolve(nodes[0], tmp_path / "stale")
        alone = await resolve(nodes[0], tmp_path / "alone", without=(third.contribution.tag,))
        changes = PolicyChanges(params={"artefact": foreign.contribution.digest})
        await nodes[0].set_policy("g", changes)
        named = await resolve(nodes[0], tmp_path / "named", without=(third.contribution.tag,))
        shown = {info.tag: info for info in await nodes[0].api.contribution_list("g")}

    offline = merge_files(
        [tmp_path / "model0", tmp_path / "model1"],
        tmp_path / "offline",
        base=tmp_path / "base",
        artefacts=[tmp_path / "table"],
        **LAMBDAS,
    )
    stood_in = [*before, ignored, stale]
    assert {report.effective_strategy for report in stood_in} == {"task_arithmetic"}
    assert all("stood in for ada_merging" in report.warnings[0] for report in stood_in)
    assert {report.file_sha256 for report in [*before, ignored]} == {before[0].file_sha256}
    assert {report.effective_strategy for report in (*fresh, alone, named)} == {"ada_merging"}
    assert {report.file_sha256 for report in (*fresh, alone)} == {offline.file_sha256.hex()}
    assert {report.resolve_key for report in (*fresh, alone)} == {offline.resolve_key.hex()}
    assert len({report.resolve_key for report in (before[0], fresh[0], stale, named)}) == 4
    found = {name: safetensors.numpy.load_file(tmp_path / name)["b"][0] for name in ("fresh0", "named")}
    np.testing.assert_allclose(found["fresh0"], 1 + 0.5 * 5)
    np.testing.assert_allclose(found["named"], 1 + 0.9 * 5)
    assert shown[table.contribution.tag].reason.startswith("the policy names")
    reason = json.loads((tmp_path / "stale.provenance.json").read_text())["effective_strategy"]["reason"]
    assert "ada_merging" in reason


async def test_a_policy_that_could_end_every_resolve_is_refused(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as nodes:
        base = save_model(tmp_path / "base", 1.0)
        with pytest.raises(InvalidRequestError, match="has to name a stand-in"):
            await nodes[0].create_group("g", base=base, strategy="ada_merging")
        params = {"fallback": "ties"}
        with pytest.raises(InvalidRequestError, match="ties works on differences"):
            await nodes[0].create_group("g", base, strategy="krum", params=params)
        params = {"fallback": "ties", "fallback.densty": "1"}
        with pytest.raises(ParameterError, match="densty"):
            await nodes[0].create_group("g", base=base, strategy="krum", params=params)


async def test_the_model_of_one_task_is_written_on_request(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as nodes:
        models = await two_models(nodes, tmp_path, strategy="emr_merging")
        common = await resolve(nodes[0], tmp_path / "common")
        by_tag = await resolve(nodes[0], tmp_path / "tag", task=models[1].tag[:12])
        by_digest = await resolve(nodes[1], tmp_path / "digest", task=models[1].digest)

    offline = merge_files(
        [tmp_path / "model0", tmp_path / "model1"],
        tmp_path / "offline",
        strategy="emr_merging",
        base=tmp_path / "base",
        task=str(tmp_path / "model1"),
    )
    assert by_tag.file_sha256 == by_digest.file_sha256 == offline.file_sha256.hex()
    assert by_tag.resolve_key == offline.resolve_key.hex() != common.resolve_key
    assert common.modulators_path == str(tmp_path / "common.modulators.safetensors")
    assert by_tag.modulators_path == ""
    assert len(safetensors.numpy.load_file(common.modulators_path)) == 1 + 2 * 2


@pytest.mark.parametrize("damage", ["nothing", "the output", "the account", "the modulators"])
async def test_what_was_resolved_is_not_computed_again_unless_it_was_damaged(
    tmp_path: Path, damage: str
) -> None:
    async with Site(tmp_path).nodes(2) as nodes:
        await two_models(nodes, tmp_path, strategy="emr_merging")
        output = tmp_path / "out"
        first = await resolve(nodes[0], output)
        damaged = {
            "nothing": tmp_path / "base",
            "the output": output,
            "the account": Path(first.provenance_path),
            "the modulators": Path(first.modulators_path),
        }[damage]
        raw = bytearray(damaged.read_bytes())
        raw[-2] ^= 1
        damaged.write_bytes(raw)
        inode = output.stat().st_ino
        again = await resolve(nodes[0], output)
        is_same_file = output.stat().st_ino == inode
        await nodes[0].add("g", save_model(tmp_path / "third", 3.0), slot="third")
        later = await resolve(nodes[0], output)

    assert is_same_file == (damage == "nothing")
    assert again.file_sha256 == first.file_sha256
    assert again.output_digest == first.output_digest
    assert (again.warnings, again.determinism) == (first.warnings, first.determinism)
    assert later.resolve_key != first.resolve_key
    account = json.loads((tmp_path / "out.provenance.json").read_text())
    assert account["resolve_key"] == later.resolve_key
