"""Sharded checkpoints through whole nodes: added, fetched, merged, written again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crdt_merge_node.checkpoints.reading import read_checkpoint
from crdt_merge_node.checkpoints.writing import GetCancelledError
from crdt_merge_node.contents import write_payload
from crdt_merge_node.control.model import Placement
from crdt_merge_node.errors import CorruptError, InvalidRequestError, NotFoundError
from crdt_merge_node.imports import ImportCancelledError
from crdt_merge_node.ports import SystemFs
from crdt_merge_node.resolve.merge import merge_files
from crdt_merge_protocol.blobs import payload_id
from crdt_merge_protocol.errors import (
    MalformedCheckpointError,
    MalformedTensorFileError,
    MissingBlobError,
    NonFiniteError,
)
from crdt_merge_protocol.operations import Add, Kind
from crdt_merge_protocol.packing import Packing, packing_id
from safetensors.numpy import save_file
from support.checkpoints import INDEX, files_in, save_sharded, some_tensors
from support.whole_nodes import ONE, Site, WholeNode, last, until_agreed

pytestmark = pytest.mark.asyncio


async def get(node: WholeNode, contribution: str, target: Path, **options: Any) -> Any:
    return await last(node.api.contribution_get("g", contribution, output_path=str(target), **options))


async def until_notes(node: WholeNode, tag: str) -> None:
    """Wait until what the author said besides the tensors is here, too."""

    def is_here() -> bool:
        contents = node.services.keeper.contents(node.group("g"))
        return contents.items[bytes.fromhex(tag)].has_meta

    await node.until(is_here)


async def test_another_node_writes_the_very_files_that_were_added(tmp_path: Path) -> None:
    base = save_sharded(tmp_path / "base", some_tensors(0), 3)
    model = save_sharded(tmp_path / "model", some_tensors(1), 2, made="by hand")
    single = tmp_path / "single.safetensors"
    save_file(some_tensors(2), single, metadata={"format": "pt"})
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", base=base)
        await nodes[1].until_group("g", lambda info: info.missing_blobs == 0)
        sharded = await nodes[0].add("g", model, meta={"by": "me"})
        alone = await nodes[0].add("g", single, slot="single")
        await until_agreed("g", *nodes, used=2)
        for added in (sharded, alone):
            await until_notes(nodes[1], added.contribution.tag)
        got = [
            await get(nodes[1], sharded.contribution.tag, tmp_path / "model-again"),
            await get(nodes[1], alone.contribution.digest, tmp_path / "single-again"),
            await get(nodes[0], "single", tmp_path / "plain", plain=True),
        ]

    assert files_in(tmp_path / "model-again") == files_in(model)
    assert (tmp_path / "single-again").read_bytes() == single.read_bytes()
    assert [each.is_exact for each in got] == [True, True, False]
    assert {file.name for file in got[0].files} == set(files_in(model))
    assert read_checkpoint(SystemFs(), tmp_path / "plain").is_plain


async def test_how_inputs_and_outputs_are_sharded_changes_no_tensor(tmp_path: Path) -> None:
    models = [save_sharded(tmp_path / f"model-{seed}", some_tensors(seed), 1 + seed) for seed in (1, 2)]
    for seed in (1, 2):
        save_file(some_tensors(seed), tmp_path / f"single-{seed}")
    whole = merge_files(
        [tmp_path / "single-1", tmp_path / "single-2"], tmp_path / "whole", strategy="weight_average"
    )
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", models[0], strategy="weight_average")
        await nodes[1].until_group("g", lambda info: info.missing_blobs == 0)
        await nodes[0].add("g", models[0])
        await nodes[1].add("g", tmp_path / "single-2")
        await until_agreed("g", *nodes, used=2)
        reports = [await nodes[0].resolve("g", tmp_path / "file")]
        await nodes[1].attested("g", reports[0].resolve_key, nodes[0])
        reports.append(
            await last(
                nodes[1].api.resolve(
                    "g", output_path=str(tmp_path / "shards"), wait_s=0.0, without=(), shard_bytes=80_100
                )
            )
        )
        again = await last(
            nodes[1].api.resolve(
                "g", output_path=str(tmp_path / "shards"), wait_s=0.0, without=(), shard_bytes=80_100
            )
        )

    assert {report.output_digest for report in (*reports, again)} == {whole.output_digest.hex()}
    assert (tmp_path / "file").read_bytes() == (tmp_path / "whole").read_bytes()
    assert reports[1].agreeing
    assert again.duration_s == round(
        reports[1].duration_s, 3
    )  # What is there was looked at instead of made again.
    names = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert names == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "model.safetensors.provenance.json",
    ]
    assert (
        merge_files([tmp_path / "shards"], tmp_path / "from-shards", strategy="weight_average").file_sha256
        == merge_files([tmp_path / "whole"], tmp_path / "x", strategy="weight_average").file_sha256
    )


async def test_a_checkpoint_that_contradicts_itself_is_refused_before_a_byte_is_copied(
    tmp_path: Path,
) -> None:
    model = save_sharded(tmp_path / "model", some_tensors())
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    (broken / "model-00002-of-00002.safetensors").unlink()
    async with Site(tmp_path).nodes(1) as (node,):
        await node.create_group("g", model)
        before = node.services.store.blobs.digests()
        with pytest.raises(MalformedCheckpointError, match="is not there"):
            await node.add("g", broken)
        (broken / INDEX).unlink()
        with pytest.raises(MalformedCheckpointError, match=INDEX):
            await node.add("g", broken)
        assert node.services.store.blobs.digests() == before


async def test_a_tensor_that_is_not_finite_in_the_last_shard_leaves_nothing(tmp_path: Path) -> None:
    good = save_sharded(tmp_path / "good", some_tensors())
    tensors = some_tensors()
    tensors["bias"][3] = np.nan
    bad = save_sharded(tmp_path / "bad", tensors)
    async with Site(tmp_path).nodes(1) as (node,):
        await node.create_group("g", good)
        before = node.services.store.blobs.digests()
        with pytest.raises(NonFiniteError, match=r"model-0000\d-of-00002.*bias"):
            await node.add("g", bad, link=True)
        assert node.services.store.blobs.digests() == before
        assert not node.services.store.blobs.kept.names()


async def test_a_linked_checkpoint_takes_no_second_copy_and_is_served(tmp_path: Path) -> None:
    models = [save_sharded(tmp_path / f"model-{seed}", some_tensors(seed)) for seed in (1, 2)]
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", models[0])
        await nodes[1].until_group("g", lambda info: info.missing_blobs == 0)
        events = [
            event
            async for event in nodes[0].api.contribution_add(
                "g",
                path=str(models[0]),
                slot="main",
                base_path=None,
                weight=ONE,
                meta={},
                wait_holds=0,
                link=True,
            )
        ]
        await nodes[1].add("g", models[1])
        await until_agreed("g", *nodes, used=2)
        reports = [await node.resolve("g", tmp_path / f"out-{n}") for n, node in enumerate(nodes)]

    plan, added = events[0], events[-1]
    assert plan.placement in ("linked", "shared")
    assert plan.new_bytes < plan.nbytes
    assert added.placed_bytes == 200 * 100 * 4
    assert added.copied_bytes == plan.nbytes - added.placed_bytes
    assert (tmp_path / "out-0").read_bytes() == (tmp_path / "out-1").read_bytes()
    assert len({report.output_digest for report in reports}) == 1


async def test_what_is_damaged_in_a_linked_file_comes_back_from_a_peer(tmp_path: Path) -> None:
    model = save_sharded(tmp_path / "model", some_tensors())
    async with Site(tmp_path).nodes(2) as nodes:
        await nodes[0].create_group("g", model)
        await nodes[1].until_group("g", lambda info: info.missing_blobs == 0)
        added = await nodes[0].add("g", model, link=True)
        if nodes[0].services.store.blobs.kept.probe(model / INDEX, may_link=True) is Placement.SHARED:
            pytest.skip("this file system shares blocks, so that nothing shows")
        await until_agreed("g", *nodes, used=1)
        damage(model, "layer.0.w")
        with pytest.raises(CorruptError, match="set aside"):
            await nodes[0].resolve("g", tmp_path / "out")
        report = await nodes[0].resolve("g", tmp_path / "out", wait_s=20.0)
        other = await nodes[1].resolve("g", tmp_path / "other")
        blob = blob_of(nodes[0], added, "layer.0.w")
        assert nodes[0].services.store.blobs.has(blob)
        assert not nodes[0].services.store.blobs.is_kept(blob)

    assert report.output_digest == other.output_digest


def damage(model: Path, name: str) -> None:
    """Overwrite the beginning of a tensor in the user's own file."""
    entry = next(entry for entry in read_checkpoint(SystemFs(), model).entries if entry.spec.name == name)
    with entry.path.open("r+b") as file:
        file.seek(entry.begin)
        file.write(b"\x00\x00\x00\x00")


def blob_of(node: WholeNode, added: Any, name: str) -> bytes:
    contents = node.services.keeper.contents(node.group("g"))
    manifest = contents.items[bytes.fromhex(added.contribution.tag)].manifest
    return next(entry.blob for entry in manifest.entries if entry.spec.name == name)


async def test_whoever_gives_up_an_addition_or_a_get_finds_nothing_of_it(tmp_path: Path) -> None:
    model = save_sharded(tmp_path / "model", some_tensors())
    async with Site(tmp_path).nodes(1) as (node,):
        await node.create_group("g", model)
        before = node.services.store.blobs.digests()
        adding = node.api.contribution_add(
            "g", path=str(model), slot="main", base_path=None, weight=ONE, meta={}, wait_holds=0, link=True
        )
        await anext(adding)
        await adding.aclose()
        assert node.services.store.blobs.digests() == before
        assert not node.services.store.blobs.kept.names()

        await node.add("g", model)
        getting = node.api.contribution_get("g", "main", output_path=str(tmp_path / "out"), plain=False)
        async for _event in getting:
            break
        await getting.aclose()
    assert not [name for name in SystemFs().listdir(tmp_path) if name.startswith(".out")]
    assert GetCancelledError.exit_code == ImportCancelledError.exit_code == 130


async def test_what_is_not_here_or_not_right_is_said(tmp_path: Path) -> None:
    model = save_sharded(tmp_path / "model", some_tensors())
    async with Site(tmp_path).nodes(1) as (node,):
        await node.create_group("g", model)
        added = await node.add("g", model)
        with pytest.raises(NotFoundError):
            await get(node, "absent", tmp_path / "out")
        tag, _ = await node.withhold("g")
        with pytest.raises(MissingBlobError, match="1 blobs of it, 48 bytes"):
            await get(node, tag, tmp_path / "out")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
        with pytest.raises(InvalidRequestError, match="mine"):
            await get(node, added.contribution.tag, tmp_path / "out")

        liar = await contribute_with(node, added, other_packing(tmp_path))
        with pytest.raises(MalformedTensorFileError, match="does not fit the tensors"):
            await get(node, liar, tmp_path / "lies")
        await get(node, liar, tmp_path / "lies", plain=True)
        withholding = await contribute_with(node, added, None)
        with pytest.raises(MissingBlobError, match="how its author had the files is not here"):
            await get(node, withholding, tmp_path / "withheld")
    assert (tmp_path / "lies").is_file()
    assert not (tmp_path / "withheld").exists()


def other_packing(directory: Path) -> Packing:
    save_file({"w": np.ones(3, np.float32)}, directory / "other", metadata={"format": "pt"})
    return read_checkpoint(SystemFs(), directory / "other").packing


async def contribute_with(node: WholeNode, added: Any, packing: Packing | None) -> str:
    """Contribute the same tensors as one who says something else of the files; return the tag."""
    blobs = node.services.store.blobs
    named = bytes(32)
    if packing is not None:
        named = packing_id(packing.encode())
        blobs.put_object(named, packing.encode())
    payload = write_payload(bytes(16), (), named)
    blobs.put_object(payload_id(payload), payload)
    content = bytes.fromhex(added.contribution.content)
    slot = "liar" if packing else "withholding"
    add = Add(slot=slot, type="model", content=content, weight=ONE, payload=payload_id(payload))
    group = node.group("g")
    assert group is not None
    return (await node.services.driver.author(group, Kind.ADD, add.encode())).id.hex()
