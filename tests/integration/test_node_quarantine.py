"""What a member may sign and still not break: a contribution is set aside by its bytes, everywhere alike.

Each test signs an ADD past the checks of ``contribution add``, as a malicious release would (PROTOCOL R14,
SCENARIOS S10, T22, T23, T49).
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node.control.model import PolicyChanges
from crdt_merge_protocol.blobs import Manifest, ManifestEntry, TensorSpec, content_id, schema_id
from crdt_merge_protocol.errors import ResolveError
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.policy import Policy
from support.whole_nodes import ONE, Site, WholeNode, save_model, until_agreed

pytestmark = pytest.mark.asyncio


def good_tensors() -> dict[str, np.ndarray]:
    return {"w": np.ones((3, 4), np.float32), "b": np.ones(4, np.float32)}


async def nan(node: WholeNode) -> str:
    tensors = good_tensors()
    tensors["w"][1, 2] = np.nan
    return await node.contribute_raw("g", Manifest.of(node.put_tensors(tensors)), slot="bad")


async def infinity(node: WholeNode) -> str:
    tensors = good_tensors()
    tensors["b"][3] = -np.inf
    return await node.contribute_raw("g", Manifest.of(node.put_tensors(tensors)), slot="bad")


async def wrong_shape(node: WholeNode) -> str:
    tensors = good_tensors() | {"w": np.ones((4, 3), np.float32)}
    return await node.contribute_raw("g", Manifest.of(node.put_tensors(tensors)), slot="bad")


async def missing_tensor(node: WholeNode) -> str:
    tensors = {"w": good_tensors()["w"]}
    return await node.contribute_raw("g", Manifest.of(node.put_tensors(tensors)), slot="bad")


async def garbage_manifest(node: WholeNode) -> str:
    return await node.contribute_raw("g", b"this is no manifest", slot="bad")


async def too_heavy(node: WholeNode) -> str:
    manifest = Manifest.of(node.put_tensors(good_tensors()))
    return await node.contribute_raw("g", manifest, slot="bad", weight=ONE * 10**6)


async def negative_weight(node: WholeNode) -> str:
    manifest = Manifest.of(node.put_tensors(good_tensors()))
    return await node.contribute_raw("g", manifest, slot="bad", weight=-ONE)


async def lie_about_a_size(node: WholeNode) -> str:
    """The blob is one that every node has, and shorter than the tensor that is said to be in it."""
    entries = {entry.spec.name: entry for entry in node.put_tensors(good_tensors())}
    lie = replace(entries["w"], blob=entries["b"].blob)
    return await node.contribute_raw("g", Manifest.of([lie, entries["b"]]), slot="bad")


async def lie_about_a_size_that_must_be_fetched(node: WholeNode) -> str:
    """Nobody else has the blob yet: that it is shorter shows when it is asked for."""
    entries = node.put_tensors({"b": np.full(4, 7.0, np.float32)})
    spec = TensorSpec(name="w", dtype="F32", shape=(3, 4))
    manifest = Manifest.of([*entries, ManifestEntry(spec=spec, blob=entries[0].blob)])
    return await node.contribute_raw("g", manifest, slot="bad")


REASONS = {
    nan: "NaN",
    infinity: "infinity",
    wrong_shape: "shape",
    missing_tensor: "is missing",
    garbage_manifest: "unreadable",
    too_heavy: "over the group's cap",
    negative_weight: "not positive",
    lie_about_a_size: "has 48 bytes and its blob 16",
    lie_about_a_size_that_must_be_fetched: "bytes",
}


@pytest.mark.parametrize("contribute", REASONS, ids=lambda contribute: contribute.__name__)
async def test_a_bad_contribution_is_set_aside_and_the_rest_resolves_as_if_it_were_not_there(
    tmp_path: Path, contribute: Callable[[WholeNode], Awaitable[str]]
) -> None:
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "model", 1.0))
        await nodes[0].add("g", tmp_path / "model")
        await nodes[0].add("g", save_model(tmp_path / "other", 3.0), slot="other")
        await until_agreed("g", *nodes, used=2)
        control = await nodes[1].resolve("g", tmp_path / "control")
        tag = await contribute(nodes[0])
        shown = [await node.until_state("g", tag, "quarantined") for node in nodes]
        reports = [await node.resolve("g", tmp_path / f"out{number}") for number, node in enumerate(nodes)]

        assert all(REASONS[contribute] in info.reason for info in shown)
        assert {report.file_sha256 for report in reports} == {control.file_sha256}
        assert {report.resolve_key for report in reports} == {control.resolve_key}
        assert [info.tag for info in reports[1].excluded] == [tag]
        assert not any(node.running.failed.done() for node in nodes)


async def test_no_blob_of_a_contribution_that_breaks_the_schema_is_fetched(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", save_model(tmp_path / "model", 1.0))
        tag = await wrong_shape(nodes[0])
        await nodes[1].until_state("g", tag, "quarantined")

        assert nodes[1].services.store.blobs.digests() == []
        assert (await nodes[1].info("g")).missing_blobs == 0


async def test_why_says_of_a_converged_group_that_nothing_in_it_can_be_merged(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as [node]:
        await node.create_group("g", save_model(tmp_path / "model", 1.0))
        tag = await wrong_shape(node)
        await node.until_state("g", tag, "quarantined")
        [group] = (await node.api.why("g")).groups
        [reason] = group.reasons

        assert group.is_converged
        assert reason.lacks.startswith("1 of 1 contributions for a resolve")
        assert reason.missing == (tag,)
        assert REASONS[wrong_shape] in reason.waiting


@pytest.mark.parametrize("part", ["schema", "base"])
async def test_a_group_whose_policy_names_garbage_breaks_no_node(tmp_path: Path, part: str) -> None:
    """Its maker serves bytes that hash right and mean nothing."""
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("sound", save_model(tmp_path / "model", 1.0))
        schema = nodes[0].services.engine.replicas[nodes[0].group("sound")].state.view.policy.schema
        garbage = b"hashes right and means nothing"
        name = schema_id if part == "schema" else content_id
        nodes[0].services.store.blobs.put_object(name(garbage), garbage)
        policy = Policy(strategy="weight_average", schema=schema)
        policy = replace(policy, **{part: name(garbage)})
        await _found(nodes[0], "rotten", policy)
        group = await nodes[1].until_group("rotten", lambda info: info.missing_blobs == 0)
        with pytest.raises(ResolveError, match="unreadable") as raised:
            await nodes[1].resolve("rotten", tmp_path / "out")
        added = await nodes[1].add("sound", tmp_path / "model")

        [reason] = (await nodes[1].api.why("rotten")).groups[0].reasons

        assert group.resolve_key == ""
        assert "unreadable" in reason.waiting
        assert "another policy" in raised.value.hint
        assert added.contribution.state == "used"
        assert not any(node.running.failed.done() for node in nodes)


async def test_a_policy_of_another_schema_sets_aside_and_the_next_one_brings_back(tmp_path: Path) -> None:
    """Nothing but bytes and policy decides: the same contribution is judged anew by the same rule."""
    async with Site(tmp_path).nodes(2) as nodes:
        base = save_model(tmp_path / "base", 0.0)
        await nodes[0].create_group("g", base=base)
        added = await nodes[1].until_group("g", lambda info: info.missing_blobs == 0)
        contributed = await nodes[1].add("g", save_model(tmp_path / "model", 1.0))
        await until_agreed("g", *nodes, used=1)
        wide = save_model(tmp_path / "wide", 0.0, rows=5)
        await nodes[0].set_policy("g", PolicyChanges(base_path=str(wide)))
        aside = await nodes[1].until_state("g", contributed.contribution.tag, "quarantined")
        await nodes[0].set_policy("g", PolicyChanges(base_path=str(base)))
        back = await nodes[1].until_state("g", contributed.contribution.tag, "used")

        assert added.used == 0
        assert "shape" in aside.reason
        assert back.reason == ""


async def _found(node: WholeNode, name: str, policy: Policy) -> None:
    genesis = Genesis(nonce=bytes(16), name=name, admins=(node.id,), quorum=1, is_open=True, policy=policy)
    await node.services.driver.create_group(genesis)
