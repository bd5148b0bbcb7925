"""Artefacts in a group: contributed, fetched, judged and used alike on every node (STRATEGIES 1.10, 1.12)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_node.control.model import ContributionInfo
from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.resolve.merge import merge_files
from crdt_merge_protocol.blobs import Manifest
from crdt_merge_protocol.errors import ArtefactInvalidError, ArtefactStaleError, EmptySetError
from crdt_merge_protocol.strategies.artefacts import encode_header
from support.whole_nodes import TIMEOUT_S, Site, WholeNode, save_model, until_agreed

pytestmark = pytest.mark.asyncio
FISHER: dict[str, Any] = {"strategy": "fisher_merge", "params": {"normalize": "none"}}


def fisher_tensors(subject: str, value: float, **header: Any) -> dict[str, np.ndarray]:
    fields = {"artefact": "fisher_diag/1", "subject": subject, "n_samples": 8, "label_mode": "empirical"}
    data = encode_header(fields | header)
    return {
        "artefact": np.frombuffer(data, np.uint8),
        "w": np.full((3, 4), value, np.float32),
        "b": np.full(4, value, np.float32),
    }


def save_fisher(path: Path, subject: str, value: float, **header: Any) -> Path:
    safetensors.numpy.save_file(fisher_tensors(subject, value, **header), path)
    return path


async def add_with_fisher(
    node: WholeNode, directory: Path, name: str, model: float, fisher: float
) -> tuple[ContributionInfo, ContributionInfo]:
    await node.until_group("g", lambda info: info.missing_blobs == 0)
    added = await node.add("g", save_model(directory / name, model), slot=name)
    file = save_fisher(directory / f"{name}.fisher", added.contribution.digest, fisher)
    artefact = await node.add("g", file, slot=name, type="fisher_diag")
    return added.contribution, artefact.contribution


async def infos(node: WholeNode) -> dict[str, ContributionInfo]:
    return {info.tag: info for info in await node.api.contribution_list("g")}


async def test_a_group_merges_by_fisher_information_as_offline_merge_does(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "like", 1.0), **FISHER)
        await add_with_fisher(nodes[0], tmp_path, "one", 1.0, 3.0)
        await add_with_fisher(nodes[1], tmp_path, "two", 5.0, 1.0)
        await until_agreed("g", *nodes, used=2)
        reports = [
            await node.resolve("g", tmp_path / f"out{i}", wait_s=TIMEOUT_S) for i, node in enumerate(nodes)
        ]
        shown = await infos(nodes[1])
        group = await nodes[1].info("g")
    offline = merge_files(
        [tmp_path / "two", tmp_path / "one"],
        tmp_path / "offline",
        **FISHER,
        artefacts=[tmp_path / "one.fisher", tmp_path / "two.fisher"],
    )

    found = safetensors.numpy.load_file(tmp_path / "out0")
    np.testing.assert_allclose(found["w"], 2.0, rtol=1e-5)
    assert {report.file_sha256 for report in reports} == {offline.file_sha256.hex()}
    assert {report.resolve_key for report in reports} == {offline.resolve_key.hex(), group.resolve_key}
    assert sorted((info.type, info.state) for info in shown.values()) == [
        ("fisher_diag", "used"),
        ("fisher_diag", "used"),
        ("model", "used"),
        ("model", "used"),
    ]
    assert group.used == 2
    account = json.loads((tmp_path / "out1.provenance.json").read_text())
    assert {item["type"] for item in account["artefacts"]} == {"fisher_diag"}
    assert account["effective_strategy"]["strategy"] == "fisher_merge"


async def test_a_contribution_without_its_artefact_is_set_aside_until_it_comes(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "like", 1.0), **FISHER)
        await add_with_fisher(nodes[0], tmp_path, "one", 1.0, 3.0)
        await nodes[1].until_group("g", lambda info: info.missing_blobs == 0)
        lacking = await nodes[1].add("g", save_model(tmp_path / "two", 5.0))
        await until_agreed("g", *nodes, used=1)
        aside = await nodes[0].until_state("g", lacking.contribution.tag, "quarantined")
        without = await nodes[0].resolve("g", tmp_path / "without", wait_s=TIMEOUT_S)
        file = save_fisher(tmp_path / "late", lacking.contribution.digest, 1.0)
        await nodes[1].add("g", file, type="fisher_diag")
        await until_agreed("g", *nodes, used=2)
        later = await nodes[0].resolve("g", tmp_path / "with", wait_s=TIMEOUT_S)

    assert "no fisher_diag" in aside.reason
    assert "no fisher_diag" in next(info.reason for info in without.excluded)
    np.testing.assert_allclose(safetensors.numpy.load_file(tmp_path / "without")["w"], 1.0)
    np.testing.assert_allclose(safetensors.numpy.load_file(tmp_path / "with")["w"], 2.0, rtol=1e-5)
    assert without.resolve_key != later.resolve_key


async def test_a_group_that_has_nothing_to_merge_says_what_is_lacking(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as (node,):
        await node.create_group("g", save_model(tmp_path / "like", 1.0), **FISHER)
        await node.add("g", save_model(tmp_path / "one", 1.0))
        with pytest.raises(EmptySetError, match="it has no fisher_diag"):
            await node.resolve("g", tmp_path / "out", wait_s=TIMEOUT_S)


async def test_the_newest_artefact_counts_and_a_strangers_never(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "like", 1.0), **FISHER)
        model, first = await add_with_fisher(nodes[0], tmp_path, "one", 1.0, 3.0)
        await add_with_fisher(nodes[1], tmp_path, "two", 5.0, 1.0)
        newer = await nodes[0].add(
            "g", save_fisher(tmp_path / "newer", model.digest, 1.0), slot="newer", type="fisher_diag"
        )
        await until_agreed("g", *nodes, used=2)
        with pytest.raises(InvalidRequestError, match="other nodes' contribution"):
            await nodes[1].add("g", save_fisher(tmp_path / "foreign", model.digest, 9.0), type="fisher_diag")
        manifest = Manifest.of(nodes[1].put_tensors(fisher_tensors(model.digest, 9.0)))
        foreign = await nodes[1].contribute_raw("g", manifest, slot="foreign", type="fisher_diag")
        aside = await nodes[0].until_contribution("g", foreign, lambda info: "author did" in info.reason)
        report = await nodes[0].resolve("g", tmp_path / "out", wait_s=TIMEOUT_S)
        shown = await infos(nodes[0])

    assert aside.state == "hidden"
    assert shown[first.tag].reason == "there is a newer one"
    assert newer.contribution.tag in {info.tag for info in report.artefacts}
    np.testing.assert_allclose(safetensors.numpy.load_file(tmp_path / "out")["w"], 3.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"w": np.full((3, 4), -1, np.float32)}, "values that no fisher_diag has"),
        ({"w": np.full((3, 4), np.nan, np.float32)}, "NaN"),
        ({"w": np.ones((4, 3), np.float32)}, "w"),
        ({"artefact": np.frombuffer(b"{", np.uint8)}, "not JSON"),
        ({"artefact": np.zeros((0,), np.uint8)}, "could be the header"),
        ({"artefact": None}, "no tensor artefact"),
    ],
)
async def test_a_bad_artefact_is_set_aside_on_every_node(tmp_path: Path, tensors: Any, reason: str) -> None:
    """What a malicious release signs past every check."""
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "like", 1.0), **FISHER)
        model, _ = await add_with_fisher(nodes[0], tmp_path, "one", 1.0, 3.0)
        changed = fisher_tensors(model.digest, 9.0) | tensors
        entries = nodes[0].put_tensors({name: a for name, a in changed.items() if a is not None})
        bad = await nodes[0].contribute_raw("g", Manifest.of(entries), slot="bad", type="fisher_diag")
        shown = [await node.until_state("g", bad, "quarantined") for node in nodes]
        report = await nodes[1].resolve("g", tmp_path / "out", wait_s=TIMEOUT_S)
        assert not any(node.running.failed.done() for node in nodes)

    assert all(reason in info.reason for info in shown)
    assert report.effective_strategy == "fisher_merge"
    np.testing.assert_allclose(safetensors.numpy.load_file(tmp_path / "out")["w"], 1.0)


async def test_what_is_wrong_with_an_artefact_is_said_before_anything_is_stored(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as nodes:
        node = nodes[0]
        await node.create_group("g", save_model(tmp_path / "like", 1.0), **FISHER)
        model, _ = await add_with_fisher(node, tmp_path, "one", 1.0, 3.0)
        before = node.services.store.blobs.digests()

        async def refused(
            error: type[Exception], match: str, kind: str = "fisher_diag", **header: Any
        ) -> None:
            fields = {"subject": model.digest, "value": 5.0} | header
            file = save_fisher(tmp_path / "bad", fields.pop("subject"), fields.pop("value"), **fields)
            with pytest.raises(error, match=match):
                await node.add("g", file, slot="bad", type=kind)
            assert node.services.store.blobs.digests() == before

        await refused(ArtefactInvalidError, "negative", value=-1.0)
        await refused(ArtefactInvalidError, "label_mode", label_mode="guessed")
        await refused(ArtefactInvalidError, "needs 'subject'", subject="12")
        await refused(InvalidRequestError, "no contribution", subject="12" * 32)
        await refused(ArtefactStaleError, "made for base", base="34" * 32)
        await refused(ArtefactInvalidError, "the contribution says gram/1", kind="gram")
        await refused(InvalidRequestError, "no type of contribution", kind="fisher")


async def test_a_plan_reads_and_writes_nothing(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "like", 1.0), **FISHER)
        await add_with_fisher(nodes[0], tmp_path, "one", 1.0, 3.0)
        lacking = await nodes[0].add("g", save_model(tmp_path / "two", 5.0), slot="two")
        events = [
            event
            async for event in nodes[0].api.resolve(
                "g", output_path=str(tmp_path / "out"), wait_s=0.0, without=(), plan_only=True
            )
        ]

    (plan,) = events
    assert not (tmp_path / "out").exists()
    assert plan.effective_strategy == "fisher_merge"
    assert (plan.tensors, plan.merged_tensors, plan.workers) == (2, 2, 0)
    assert plan.read_bytes == plan.passes * 64
    assert plan.determinism == "bitwise"
    assert [info.type for info in plan.artefacts] == ["fisher_diag"]
    assert {info.tag: "no fisher_diag" in info.reason for info in plan.excluded} == {
        lacking.contribution.tag: True
    }
    assert 0 < plan.peak_memory_bytes <= plan.memory_bytes
