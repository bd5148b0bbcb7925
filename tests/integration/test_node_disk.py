"""Restarts, a full disk and a failing one, on whole nodes (SCENARIOS T20, T34, T44, T52)."""

import asyncio
import errno
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import structlog
from crdt_merge_node.daemon import serve
from crdt_merge_node.errors import CorruptError, FullError, StoreFailedError
from crdt_merge_node.ports import DiskSpace, SystemFs
from crdt_merge_node.runtime import RunningNode
from crdt_merge_node.world import World
from crdt_merge_protocol import intake
from safetensors.numpy import save_file
from support.whole_nodes import TIMEOUT_S, Site, WholeNode, config_of, last, save_model, until_agreed

pytestmark = pytest.mark.asyncio


def save_large(path: Path, value: float) -> Path:
    """Write a model whose tensor is a file in the store."""
    save_file({"t": np.full(40_000, value, np.float32)}, path)
    return path


class SmallFs(SystemFs):
    """A file system on which there is as much room for data directories as a test says."""

    def __init__(self) -> None:
        self.free_bytes = 1 << 40

    def disk_space(self, path: Path) -> DiskSpace:
        free_bytes = self.free_bytes if "node-" in str(path) else 1 << 40
        return DiskSpace(free_bytes=free_bytes, total_bytes=1 << 41)


class _File:
    """An open file whose ``sync`` fails."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def sync(self) -> None:
        raise OSError(errno.EIO, "the medium has an error")


class FailingFs(SystemFs):
    """A file system on which, from some time on, what is written does not reach the disk."""

    is_failing = False

    def create(self, path: Path, **kwargs: Any) -> Any:
        file = super().create(path, **kwargs)
        return _File(file) if self.is_failing else file


# --- restarts -----------------------------------------------------------------------------------------------


async def test_a_restart_in_place_keeps_everything(tmp_path: Path) -> None:
    site = Site(tmp_path)
    data_dir = site.make()
    model = save_model(tmp_path / "model", 1.0)
    async with site.running(data_dir) as node:
        await node.create_group("g", model)
        await node.create_group("aside", model)
        await node.add("g", model, meta={"note": "kept"})
        await node.api.group_follow("aside", follow=False)
        before = await node.api.group_show("g"), await node.api.group_list()
        report = await node.resolve("g", tmp_path / "out")
    async with site.running(data_dir) as node:
        after = await node.api.group_show("g"), await node.api.group_list()
        again = await node.resolve("g", tmp_path / "again")
        added = await node.add("g", model, slot="after")

        assert after[0].contributions == before[0].contributions
        assert after[0].info == before[0].info
        assert after[1] == before[1]
        assert [output.output_digest for output in after[0].outputs] == [report.output_digest]
        assert again.file_sha256 == report.file_sha256
        assert added.contribution.state == "used"
        assert node.services.engine.replicas[node.group("g")].state.view.forked == frozenset()
        assert (await node.api.status()).is_healthy


async def test_peers_find_each_other_again_without_seeds(tmp_path: Path) -> None:
    site = Site(tmp_path)
    first_dir, second_dir = site.make(), site.make()
    async with site.running(first_dir) as first:
        async with site.running(second_dir, first.address) as second:
            await second.connected(first)
            await asyncio.gather(*second.services.driver._duties._tasks)  # What it learnt is remembered.
        async with site.running(second_dir) as second:
            await second.connected(first)


async def test_a_block_outlives_a_restart(tmp_path: Path) -> None:
    site = Site(tmp_path)
    first_dir, second_dir = site.make(), site.make()
    async with site.running(first_dir) as first, site.running(second_dir, first.address) as second:
        await first.connected(second)
        await first.api.peer_block(second.id.hex())
    async with site.running(first_dir) as first:
        assert [info.state for info in await first.api.peer_list()] == ["blocked"]


async def test_damage_in_the_facts_keeps_no_node_from_starting(tmp_path: Path) -> None:
    """SCENARIOS T52: a start never fails over content."""
    site = Site(tmp_path)
    data_dir = site.make()
    async with site.running(data_dir) as node:
        await node.create_group("g", save_model(tmp_path / "model", 1.0))
        for key in ("peer/xyz", "peer/00", "blocked/xyz", "attest/xyz/zyx", "root/xyz"):
            await node.services.store.put_meta(key, b"\xff garbage")
    async with site.running(data_dir) as node:
        assert [info.name for info in await node.api.group_list()] == ["g"]


async def test_a_damaged_blob_is_never_merged_and_is_fetched_again(tmp_path: Path) -> None:
    """SCENARIOS T41: detected, named, healed from a peer."""
    async with Site(tmp_path).nodes(2) as nodes:
        sound, damaged = nodes
        await sound.create_group("g", save_large(tmp_path / "model", 1.0))
        await sound.add("g", tmp_path / "model")
        await until_agreed("g", *nodes, used=1)
        control = await sound.resolve("g", tmp_path / "control")
        [blob] = damaged.services.store.blobs.digests()
        path, *_ = damaged.services.store.blobs.source(blob)
        path.write_bytes(b"\x01" + path.read_bytes()[1:])
        with pytest.raises(CorruptError, match=blob.hex()[:12]) as raised:
            await damaged.resolve("g", tmp_path / "out")
        report = await damaged.resolve("g", tmp_path / "out", wait_s=TIMEOUT_S)

        assert "fetched again" in raised.value.hint
        assert report.file_sha256 == control.file_sha256
        assert not damaged.running.failed.done()


async def test_two_resolves_at_once_both_end(tmp_path: Path) -> None:
    """One after the other, since each may use the whole memory budget."""
    async with Site(tmp_path).nodes(1) as [node]:
        await node.create_group("g", save_large(tmp_path / "model", 1.0))
        await node.add("g", tmp_path / "model")
        reports = await asyncio.gather(*(node.resolve("g", tmp_path / f"out{n}") for n in range(3)))

        assert len({report.file_sha256 for report in reports}) == 1
        assert not node.services.merging.locked()


# --- a full disk --------------------------------------------------------------------------------------------


async def test_a_full_disk_is_named_serves_on_and_ends_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SCENARIOS T20: what others send meanwhile is taken afterwards, without a restart."""
    monkeypatch.setattr(intake, "FULL_RETRY_S", 0.1)
    fs = SmallFs()
    async with Site(tmp_path).nodes(2, n1=World(fs=fs)) as nodes:
        other, full = nodes
        await other.create_group("g", save_model(tmp_path / "model", 1.0))
        await other.add("g", tmp_path / "model")
        await until_agreed("g", *nodes, used=1)
        fs.free_bytes = -1
        with pytest.raises(FullError) as raised:
            await full.add("g", save_model(tmp_path / "mine", 2.0), slot="mine")
        await other.add("g", save_model(tmp_path / "theirs", 3.0), slot="theirs")
        await full.until(lambda: full.services.engine._intake._full_until > 0.0)
        during = await full.api.status()
        served = await full.resolve("g", tmp_path / "out")

        assert raised.value.code == "E1502"
        assert "resumes by itself" in raised.value.hint
        assert [alarm.code for alarm in during.alarms] == ["E1502"]
        assert not during.is_healthy
        assert len(served.inputs) == 1
        assert not full.running.failed.done()

        fs.free_bytes = 1 << 40
        await until_agreed("g", *nodes, used=2)
        added = await full.add("g", tmp_path / "mine", slot="mine")
        await until_agreed("g", *nodes, used=3)
        after = await full.api.status()

        assert added.contribution.state == "used"
        assert (after.is_healthy, after.alarms) == (True, ())
        for node in nodes:
            assert node.services.engine.replicas[node.group("g")].state.view.forked == frozenset()


# --- a failing disk -----------------------------------------------------------------------------------------


async def test_a_failed_fsync_ends_the_node_with_status_74(tmp_path: Path) -> None:
    """SCENARIOS T44: fail-stop; the next start reads what is really there."""
    site = Site(tmp_path)
    data_dir = site.make()
    fs = FailingFs()
    large = save_large(tmp_path / "model", 1.0)
    failures: list[BaseException] = []
    contributing: list[asyncio.Task[None]] = []

    async def contribute(running: RunningNode) -> None:
        node = WholeNode(running)
        await node.create_group("g", large)
        await node.add("g", large)
        fs.is_failing = True
        try:
            await node.add("g", save_large(tmp_path / "other", 2.0), slot="other")
        except StoreFailedError as error:
            failures.append(error)
        try:
            await last(
                node.api.contribution_add(
                    "g", path=str(large), slot="third", base_path=None, weight=1, meta={}, wait_holds=0
                )
            )
        except StoreFailedError as error:
            failures.append(error)

    config = config_of(data_dir)
    stop: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with structlog.testing.capture_logs() as lines:
        status = await serve(
            config,
            World(fs=fs),
            stop=stop,
            on_ready=lambda running: contributing.append(asyncio.create_task(contribute(running))),
        )
        await asyncio.gather(*contributing, return_exceptions=True)

    assert status == 74
    assert failures, "whoever asked was told"
    assert {"store.failed", "node.failed"} <= {line["event"] for line in lines}
    async with site.running(data_dir) as node:
        [kept] = await node.api.contribution_list("g")
        assert (kept.slot, kept.state) == ("main", "used")


async def test_an_orderly_stop_ends_with_status_0(tmp_path: Path) -> None:
    stop: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    status = await serve(
        config_of(Site(tmp_path).make()), World(), stop=stop, on_ready=lambda _: stop.set_result(None)
    )

    assert status == 0
