"""Databases and blobs that are not what was stored (SCENARIOS 6.2: B67, B68, B70; T20, T41, T44, T52).

Whole nodes meet a sample of the damage here. Every page and every 2 KiB of a log, and an error at every call
of the file system, are tried on the store alone in ``tests/integration/test_storage_crash.py``.
``CRDT_MERGE_TEST_DAMAGE=1`` tries every page and every frame here as well.
"""

import errno
import os
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
import structlog
from crdt_merge_node.errors import CorruptError, StorageError
from crdt_merge_node.ports import SystemFs
from crdt_merge_node.world import World
from crdt_merge_protocol.errors import CrdtMergeError
from safetensors.numpy import save_file
from support.siege import bounded_memory
from support.whole_nodes import Site, WholeNode, last, save_model, until_agreed

pytestmark = pytest.mark.asyncio
IS_FULL = os.environ.get("CRDT_MERGE_TEST_DAMAGE", "") == "1"
PAGE = 4096
FRAME = PAGE + 24
SAMPLE = 6
CONTRIBUTIONS = 3


async def a_life(site: Site, home: Path, model: Path) -> tuple[bytes, int]:
    """Let a node contribute, keep a copy of its files as they are while it runs; return its root."""
    async with site.running(home) as node:
        await node.create_group("g", model)
        for number in range(CONTRIBUTIONS):
            await node.add("g", model, slot=f"s{number}")
        for name in ("ops.db", "ops.db-wal"):
            shutil.copy(home / name, home.parent / f"live-{name}")
        return node.root("g"), len(node.services.engine.state(node.group("g")))


async def start(site: Site, home: Path) -> tuple[bytes, int] | CrdtMergeError:
    """Start a node; return its root, or why it did not start."""
    with structlog.testing.capture_logs():
        try:
            async with site.running(home) as node:
                group = node.group("g")
                return node.root("g"), len(node.services.engine.state(group)) if group else 0
        except CrdtMergeError as error:
            return error


def sample(sizes: list[int]) -> list[int]:
    return sizes if IS_FULL else sorted(Random(67).sample(sizes, min(SAMPLE, len(sizes))))


async def test_b67_a_database_cut_at_a_page_is_named_as_damage_and_nothing_is_made_in_its_place(
    tmp_path: Path,
):
    site, model = Site(tmp_path), save_model(tmp_path / "model", 1.0)
    home = site.make()
    whole_root = await a_life(site, home, model)
    whole = (home / "ops.db").read_bytes()
    for size in [0, 1, 100, *sample(list(range(PAGE, len(whole), PAGE)))]:
        (home / "ops.db").write_bytes(whole[:size])
        (home / "ops.db-wal").unlink(missing_ok=True)
        with bounded_memory():
            error = await start(site, home)

        assert isinstance(error, CorruptError), f"cut at {size}: {error}"
        assert error.exit_code == 7
        assert error.hint
    (home / "ops.db").write_bytes(whole)

    assert await start(site, home) == whole_root


async def test_b67_a_log_torn_at_a_frame_gives_a_prefix_of_what_was_said(tmp_path: Path):
    site, model = Site(tmp_path), save_model(tmp_path / "model", 1.0)
    home = site.make()
    root, count = await a_life(site, home, model)
    database, log = ((tmp_path / f"live-{name}").read_bytes() for name in ("ops.db", "ops.db-wal"))
    frames = list(range(32, len(log), FRAME))
    assert len(frames) > 8
    counts = set()
    for size in [*sample([place + cut for place in frames for cut in (0, 24, 2000)]), len(log)]:
        (home / "ops.db").write_bytes(database)
        (home / "ops.db-wal").write_bytes(log[:size])
        found = await start(site, home)
        if isinstance(found, CrdtMergeError):
            assert isinstance(found, StorageError), found
            continue
        counts.add(found[1])
        assert found[1] <= count
        assert found[1] < count or found[0] == root
    assert count in counts


@pytest.mark.parametrize("case", ["wrong salt", "no log", "zeros", "noise", "a directory"])
async def test_b67_a_log_that_is_none_is_left_out_or_named(tmp_path: Path, case: str):
    site, model = Site(tmp_path), save_model(tmp_path / "model", 1.0)
    home = site.make()
    _, count = await a_life(site, home, model)
    database, log = ((tmp_path / f"live-{name}").read_bytes() for name in ("ops.db", "ops.db-wal"))
    (home / "ops.db").write_bytes(database)
    path = home / "ops.db-wal"
    path.unlink(missing_ok=True)
    match case:
        case "wrong salt":
            path.write_bytes(log[:16] + b"\xff" * 8 + log[24:])
        case "zeros":
            path.write_bytes(bytes(len(log)))
        case "noise":
            path.write_bytes(Random(1).randbytes(len(log)))
        case "a directory":
            path.mkdir()
    found = await start(site, home)

    assert isinstance(found, StorageError) or found[1] <= count


async def test_b67_t52_flipped_bytes_in_the_database_end_in_a_typed_error_or_a_subset(tmp_path: Path):
    site, model = Site(tmp_path), save_model(tmp_path / "model", 1.0)
    home = site.make()
    _, count = await a_life(site, home, model)
    whole = (home / "ops.db").read_bytes()
    rng = Random(6)
    for _ in range(400 if IS_FULL else 12):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        (home / "ops.db").write_bytes(bytes(damaged))
        (home / "ops.db-wal").unlink(missing_ok=True)
        found = await start(site, home)

        assert isinstance(found, StorageError) or found[1] <= count, found


# --- blobs --------------------------------------------------------------------------------------------


def save_large(path: Path, value: float) -> Path:
    save_file({"w": np.full((300, 100), value, np.float32)}, path)
    return path


DAMAGE = ["truncated", "extended", "empty", "swapped", "a directory", "a fifo", "gone", "a link", "one bit"]


@pytest.mark.parametrize("case", DAMAGE)
async def test_b68_a_blob_that_is_not_what_was_stored_is_named_set_aside_and_fetched_again(
    tmp_path: Path, case: str
):
    async with Site(tmp_path).nodes(2) as nodes:
        sound, damaged = nodes
        await sound.create_group("g", save_large(tmp_path / "model", 1.0))
        await sound.add("g", tmp_path / "model")
        await sound.add("g", save_large(tmp_path / "other", 2.0), slot="other")
        await until_agreed("g", *nodes, used=2)
        control = await sound.resolve("g", tmp_path / "control")
        one, two = (
            damaged.services.store.blobs.source(blob)[0] for blob in damaged.services.store.blobs.digests()
        )
        harm(one, two, case, tmp_path)
        with structlog.testing.capture_logs():
            report = await resolved_after_all(damaged, tmp_path / "out")

        assert report.file_sha256 == control.file_sha256
        assert not damaged.running.failed.done()
        assert (await damaged.api.status()).is_healthy


async def resolved_after_all(node: WholeNode, output: Path):
    """Resolve; if that finds the damage, resolve again once the bytes have been fetched."""
    try:
        return await node.resolve("g", output)
    except StorageError as error:
        assert error.hint  # noqa: PT017 - whether it is raised depends on which blob is read first.
    return await last(node.api.resolve("g", output_path=str(output), wait_s=20.0, without=()))


def harm(one: Path, two: Path, case: str, elsewhere: Path) -> None:
    data = one.read_bytes()
    match case:
        case "truncated":
            one.write_bytes(data[:-1])
        case "extended":
            one.write_bytes(data + b"\x00")
        case "empty":
            one.write_bytes(b"")
        case "one bit":
            one.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "swapped":
            one.write_bytes(two.read_bytes())
            two.write_bytes(data)
        case _:
            one.unlink()
    match case:
        case "a directory":
            one.mkdir()
        case "a fifo":
            os.mkfifo(one)
        case "a link":
            (elsewhere / "target").write_bytes(data)
            one.symlink_to(elsewhere / "target")


async def test_b68_a_hard_link_to_a_blob_is_not_written_through(tmp_path: Path):
    """Somebody keeps a second name of the file: what the node does to its own leaves that alone."""
    site = Site(tmp_path)
    async with site.running(site.make()) as node:
        await node.create_group("g", save_large(tmp_path / "model", 1.0))
        added = await node.add("g", tmp_path / "model")
        [blob] = node.services.store.blobs.digests()
        path = node.services.store.blobs.source(blob)[0]
        before = path.read_bytes()
        os.link(path, tmp_path / "second name")
        await node.api.contribution_remove("g", added.contribution.tag)
        await node.add("g", save_large(tmp_path / "other", 2.0))

    assert (tmp_path / "second name").read_bytes() == before


# --- errors of the file system ------------------------------------------------------------------------


class Failing(SystemFs):
    """Fails one call, by number, among those that open, create, make or write names."""

    def __init__(self, code: int, at: int) -> None:
        self.code, self.at, self.calls = code, at, 0

    def _count(self, path: Path) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise OSError(self.code, os.strerror(self.code), str(path))

    def open_read(self, path: Path, *, follow: bool = False):
        self._count(path)
        return super().open_read(path, follow=follow)

    def create(self, path: Path, *, mode: int = 0o600):
        self._count(path)
        return super().create(path, mode=mode)

    def rename(self, source: Path, target: Path) -> None:
        self._count(target)
        super().rename(source, target)

    def sync_dir(self, path: Path) -> None:
        self._count(path)
        super().sync_dir(path)


CODES = [
    errno.ENOSPC,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
]


@pytest.mark.parametrize("code", CODES, ids=lambda code: errno.errorcode[code])
async def test_b70_an_error_at_any_call_has_a_type_and_the_next_start_is_as_good_as_ever(
    tmp_path: Path, code: int
):
    site, model = Site(tmp_path), save_large(tmp_path / "model", 1.0)
    home = site.make()
    async with site.running(home) as node:
        await node.create_group("g", model)
        root = node.root("g")
    indices = range(1, 60) if IS_FULL else Random(code).sample(range(1, 30), 5)
    with structlog.testing.capture_logs():
        for at in indices:
            fs = Failing(code, at)
            try:
                async with site.running(home, world=World(fs=fs)) as node:
                    await node.add("g", model, slot=f"s{at}")
            except (CrdtMergeError, StopAsyncIteration):
                pass
            async with site.running(home) as node:
                assert node.group("g") is not None
                assert node.root("g")
    async with site.running(home) as node:
        added = await node.add("g", model, slot="after")
        assert added.contribution.state == "used"
        assert node.root("g") != root
