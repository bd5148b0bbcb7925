"""Erasing: the bytes go from every node, stay away, and every node says so (SCENARIOS T35, T36)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node.control.model import ActRequest, ErasureInfo
from crdt_merge_node.errors import BannedError
from safetensors.numpy import save_file
from support.whole_nodes import Site, WholeNode, last, save_model, until_agreed

pytestmark = pytest.mark.asyncio

MARK = b"TO-BE-ERASED-01!"
NOTE = "noted-and-to-be-erased"


def save_marked(path: Path, *, rows: int = 3) -> Path:
    """Write a model whose matrix repeats the mark: four floats, finite ones, a row."""
    assert len(MARK) == 16
    matrix = np.frombuffer(MARK * rows, np.float32).reshape(rows, 4)
    assert np.isfinite(matrix).all()
    save_file({"w": matrix, "b": np.full(4, 7.0, np.float32)}, path)
    return path


def marked(*directories: Path) -> list[str]:
    """Return the files below data directories that hold the mark or the note."""
    files = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    return [
        str(path) for path in files if (data := path.read_bytes()) and (MARK in data or NOTE.encode() in data)
    ]


async def act(node: WholeNode, group: str, kind: str, *targets: str, reason: str = "because") -> str:
    """Let an administrator of a group of one do something; return the id of the operation."""
    proposed = await node.api.act_propose(group, ActRequest(kind=kind, targets=targets, reason=reason))
    return (await node.api.act_submit(proposed.text)).operation


async def until_erased(
    node: WholeNode, group: str, check: Callable[[ErasureInfo], bool] = lambda info: info.is_complete
) -> ErasureInfo:
    """Wait until a condition holds of the one erasure of a group."""
    found: list[ErasureInfo] = []

    def look() -> bool:
        from crdt_merge_node.api.erasures import erasure_list

        known = node.group(group)
        found[:] = erasure_list(node.services, known) if known else []
        return len(found) == 1 and check(found[0])

    await node.until(look)
    return found[0]


async def test_erased_bytes_are_on_no_node_and_each_says_so(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with site.nodes(3) as (first, second, third):
        model = save_marked(tmp_path / "model.safetensors", rows=20_000)
        await first.create_group("g", model)
        await second.until_group("g", lambda info: not info.missing_blobs)
        added = await second.add("g", model, meta={"about": NOTE})
        await third.until_group("g", lambda info: not info.missing_blobs)
        await third.add("g", save_model(tmp_path / "other.safetensors", 2.0, rows=20_000))
        await until_agreed("g", first, second, third, used=2)
        data = [node.services.config.node.data_dir for node in (first, second, third)]
        assert len({path.split("node-")[1][0] for path in marked(*data)}) == 3
        await act(first, "g", "erase", added.contribution.tag, reason="not ours to share")
        report = await until_erased(first, "g")
        assert {node.id for node in report.done} == {node.id.hex() for node in (first, second, third)}
        assert marked(*data) == []
        await until_agreed("g", first, second, third, used=1)
        for node in (first, second, third):
            [hidden] = [i for i in await node.api.contribution_list("g") if i.tag == added.contribution.tag]
            assert hidden.reason.startswith("erased: not ours to share (act ")
        with pytest.raises(BannedError, match="not ours to share"):
            await third.add("g", model)
        assert marked(*data) == []


async def test_a_node_that_was_away_loses_its_copy_when_it_returns(tmp_path: Path) -> None:
    site = Site(tmp_path)
    data = [site.make(), site.make()]
    model = save_marked(tmp_path / "model.safetensors", rows=20_000)
    async with site.running(data[0], name="n0") as first:
        async with site.running(data[1], first.address, name="n1") as second:
            await first.create_group("g", model)
            await second.until_group("g", lambda info: not info.missing_blobs)
            added = await second.add("g", model, meta={"about": NOTE})
            await until_agreed("g", first, second, used=1)
        await act(first, "g", "erase", added.contribution.tag)
        report = await until_erased(first, "g", lambda info: bool(info.done))
        assert [node.id for node in report.outstanding] == [second.id.hex()]
        assert marked(data[0]) == []
        assert marked(data[1])
        async with site.running(data[1], first.address, name="n1") as second:
            await until_erased(first, "g")
            assert marked(*data) == []
    async with site.running(data[1], name="n1") as second:
        assert (await second.info("g")).used == 0


async def test_a_restored_backup_brings_nothing_back(tmp_path: Path) -> None:
    from crdt_merge_node.ports import SystemClock, SystemFs
    from crdt_merge_node.storage.restore import restore_backup

    site = Site(tmp_path)
    data = [site.make(), site.make()]
    model = save_marked(tmp_path / "model.safetensors", rows=20_000)
    async with site.running(data[0], name="n0") as first:
        async with site.running(data[1], first.address, name="n1") as second:
            await first.create_group("g", model)
            await second.until_group("g", lambda info: not info.missing_blobs)
            added = await second.add("g", model, meta={"about": NOTE})
            await until_agreed("g", first, second, used=1)
            await last(second.api.backup(path=str(tmp_path / "backup"), with_keys=True, copy=True))
            await act(first, "g", "erase", added.contribution.tag)
            await until_erased(first, "g")
            assert marked(*data) == []
        shutil.rmtree(data[1])
        restore_backup(tmp_path / "backup", data[1], is_alone=False, fs=SystemFs(), clock=SystemClock())
        assert marked(data[1])
        async with site.running(data[1], first.address, name="n1") as second:
            await second.services.driver.standing.until_open("restored")
            assert marked(*data) == []
            assert (await second.info("g")).used == 0
