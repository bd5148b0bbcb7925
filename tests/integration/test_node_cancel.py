"""What is cancelled, or comes to nothing, leaves nothing."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crdt_merge_node.control.model import ContributionPlan, ResolvePlan
from crdt_merge_node.errors import StorageError
from crdt_merge_node.ports import SystemFs
from crdt_merge_node.world import World
from crdt_merge_protocol.errors import NonFiniteError
from safetensors.numpy import save_file
from support.whole_nodes import ONE, TIMEOUT_S, Site, WholeNode, last, save_model

pytestmark = pytest.mark.asyncio


class GateFs(SystemFs):
    """A file system on which the ``nth`` new file of a directory waits until the gate opens."""

    def __init__(self, directory: Path, nth: int) -> None:
        self.directory = directory
        self.countdown = nth
        self.reached = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.gate = threading.Event()

    def create(self, path: Path, **kwargs: Any) -> Any:
        if path.parent == self.directory:
            self.countdown -= 1
            if self.countdown == 0:
                self._loop.call_soon_threadsafe(self.reached.set)
                assert self.gate.wait(TIMEOUT_S)
        return super().create(path, **kwargs)


def save_large(path: Path, value: float) -> Path:
    """Write a model of four tensors that are files in the store."""
    save_file({f"t{n}": np.full(40_000, value + n, np.float32) for n in range(4)}, path)
    return path


async def close_while_waiting(stream: Any, fs: GateFs) -> None:
    """Read a stream until its work waits at the gate, close it, and only then let the work go on."""
    reading = asyncio.ensure_future(last(stream))
    async with asyncio.timeout(TIMEOUT_S):
        await fs.reached.wait()
        reading.cancel()
        await asyncio.sleep(0)
        fs.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await stream.aclose()


def everything(node: WholeNode) -> tuple[list[bytes], int, list[str]]:
    """Return what the store has: blobs, bytes, files on their way."""
    store = node.services.store
    return store.blobs.digests(), store.blobs.total_bytes(), SystemFs().listdir(store.data.tmp)


async def test_a_cancelled_add_leaves_no_byte_and_no_operation(tmp_path: Path) -> None:
    site = Site(tmp_path)
    data_dir = site.make()
    fs = GateFs(data_dir / "tmp", 3)
    async with site.running(data_dir, world=World(fs=fs)) as node:
        await node.create_group("g", save_large(tmp_path / "model", 1.0))
        before = everything(node)
        stream = node.api.contribution_add(
            "g", path=str(tmp_path / "model"), slot="main", base_path=None, weight=ONE, meta={}, wait_holds=0
        )
        await close_while_waiting(stream, fs)

        assert everything(node) == before
        assert await node.api.contribution_list("g") == ()
        assert (await node.add("g", tmp_path / "model")).contribution.state == "used"


async def test_a_cancelled_add_keeps_the_bytes_that_others_use(tmp_path: Path) -> None:
    """Two of its tensors are those of a contribution that is there; only the new one goes."""
    site = Site(tmp_path)
    data_dir = site.make()
    fs = GateFs(data_dir / "tmp", 9)
    async with site.running(data_dir, world=World(fs=fs)) as node:
        await node.create_group("g", save_large(tmp_path / "model", 1.0))
        await node.add("g", tmp_path / "model")
        before = everything(node)
        shifted = save_large(tmp_path / "shifted", 2.0)
        stream = node.api.contribution_add(
            "g", path=str(shifted), slot="other", base_path=None, weight=ONE, meta={}, wait_holds=0
        )
        fs.countdown = 3
        await close_while_waiting(stream, fs)

        assert everything(node) == before
        assert (await node.resolve("g", tmp_path / "out")).inputs


async def test_an_add_that_is_closed_at_its_plan_has_copied_nothing(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as [node]:
        await node.create_group("g", save_model(tmp_path / "model", 1.0))
        stream: Any = node.api.contribution_add(
            "g", path=str(tmp_path / "model"), slot="main", base_path=None, weight=ONE, meta={}, wait_holds=0
        )
        plan = await anext(stream)
        await stream.aclose()

        assert isinstance(plan, ContributionPlan)
        assert everything(node) == ([], 0, [])


async def test_a_file_with_a_nan_leaves_nothing(tmp_path: Path) -> None:
    """It shows in the last tensor, after the others were copied."""
    async with Site(tmp_path).nodes(1) as [node]:
        await node.create_group("g", save_large(tmp_path / "model", 1.0))
        tensors = {f"t{n}": np.full(40_000, n, np.float32) for n in range(4)}
        tensors["t3"][-1] = np.nan
        save_file(tensors, tmp_path / "nan")
        with pytest.raises(NonFiniteError, match="t3"):
            await node.add("g", tmp_path / "nan")

        assert everything(node) == ([], 0, [])


async def test_an_operation_that_finds_no_room_takes_its_bytes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Site(tmp_path).nodes(1) as [node]:
        await node.create_group("g", save_large(tmp_path / "model", 1.0))

        async def no_room(*_: Any, **__: Any) -> None:
            raise StorageError("no room for rows.")

        monkeypatch.setattr(node.services.store, "append", no_room)
        with pytest.raises(StorageError, match="no room for rows"):
            await node.add("g", tmp_path / "model")

        assert everything(node) == ([], 0, [])
        monkeypatch.undo()
        assert (await node.add("g", tmp_path / "model")).contribution.state == "used"


async def test_a_cancelled_resolve_leaves_no_file(tmp_path: Path) -> None:
    site = Site(tmp_path)
    data_dir, outputs = site.make(), tmp_path / "outputs"
    outputs.mkdir()
    fs = GateFs(outputs, 1)
    async with site.running(data_dir, world=World(fs=fs)) as node:
        await node.create_group("g", save_large(tmp_path / "model", 1.0))
        await node.add("g", tmp_path / "model")
        stream = node.api.resolve("g", output_path=str(outputs / "out"), wait_s=0.0, without=())
        await close_while_waiting(stream, fs)

        assert list(outputs.iterdir()) == []
        assert (await node.resolve("g", outputs / "out")).nbytes > 640_000


async def test_a_resolve_that_is_closed_at_its_plan_writes_nothing(tmp_path: Path) -> None:
    async with Site(tmp_path).nodes(1) as [node]:
        await node.create_group("g", save_model(tmp_path / "model", 1.0))
        await node.add("g", tmp_path / "model")
        stream: Any = node.api.resolve("g", output_path=str(tmp_path / "out"), wait_s=0.0, without=())
        plan = await anext(stream)
        await stream.aclose()

        assert isinstance(plan, ResolvePlan)
        assert plan.free_memory_bytes > 0
        assert not (tmp_path / "out").exists()
