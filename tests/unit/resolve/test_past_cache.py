"""Large outputs go past the page cache where that can be done; the bytes in the file are the same."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node.ports import File, SystemFs
from crdt_merge_node.resolve import output, past_cache
from crdt_merge_node.resolve.merge import merge_files
from crdt_merge_node.resolve.past_cache import PAGE_BYTES, PastCache, beside
from hypothesis import given
from hypothesis import strategies as st
from support.profile import examples

from .test_starting import model

ROOM = mmap.mmap(-1, 8 * PAGE_BYTES)
ROOM[:] = np.random.default_rng(1).bytes(len(ROOM))


@examples(100)
@given(
    offset=st.integers(0, 3 * PAGE_BYTES),
    begin=st.integers(0, 2 * PAGE_BYTES),
    nbytes=st.integers(0, 5 * PAGE_BYTES),
    is_in_phase=st.booleans(),
)
def test_any_range_of_memory_gets_to_any_place_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, offset: int, begin: int, nbytes: int, is_in_phase: bool
):
    path = tmp_path_factory.mktemp("files") / "file"
    begin = offset % PAGE_BYTES if is_in_phase else begin
    data = memoryview(ROOM)[begin : begin + nbytes]
    with SystemFs().create(path) as file:
        way = PastCache(file)
        way.write_at(offset, data)
        way.close()

    expected = bytes(offset) + bytes(data) if nbytes else b""
    assert path.read_bytes() == expected


class Counting:
    """A file that knows how many bytes were written through it."""

    def __init__(self, file: File) -> None:
        self.file, self.nbytes = file, 0
        self.descriptor = file.descriptor  # type: ignore[attr-defined]  # a real file has one

    def write_at(self, offset: int, data: memoryview) -> None:
        self.nbytes += len(data)
        self.file.write_at(offset, data)


def test_whole_pages_go_past_the_cache_and_the_ends_through_it(tmp_path: Path):
    with SystemFs().create(tmp_path / "file") as file:
        counting = Counting(file)
        way = PastCache(counting)  # type: ignore[arg-type]  # as much of a file as it needs
        if not way.is_direct:
            pytest.skip("this file system knows no O_DIRECT")
        way.write_at(100, memoryview(ROOM)[100 : 100 + 4 * PAGE_BYTES])
        way.close()

    assert counting.nbytes == PAGE_BYTES


def test_what_a_disk_refuses_goes_through_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "wants sectors of 8 KiB")

    with SystemFs().create(tmp_path / "file") as file:
        counting = Counting(file)
        way = PastCache(counting)  # type: ignore[arg-type]
        with monkeypatch.context() as patched:
            patched.setattr(past_cache, "_pwrite", refuse)
            way.write_at(0, memoryview(ROOM)[:PAGE_BYTES])
            assert not way.is_direct

    assert (tmp_path / "file").read_bytes() == ROOM[:PAGE_BYTES]


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    with SystemFs().create(tmp_path / "file") as file:
        way = PastCache(file)
        if not way.is_direct:
            pytest.skip("this file system knows no O_DIRECT")
        with monkeypatch.context() as patched:
            patched.setattr(past_cache, "_pwrite", refuse)
            with (
                pytest.raises(OSError, match="no space left"),
                beside(lambda: way.write_at(0, memoryview(ROOM)[:PAGE_BYTES])),
            ):
                pass
        way.close()


def test_a_simulated_file_is_written_as_ever(tmp_path: Path):
    class Simulated:
        def __init__(self) -> None:
            self.written: list[tuple[int, bytes]] = []

        def write_at(self, offset: int, data: memoryview) -> None:
            self.written.append((offset, bytes(data)))

    file = Simulated()
    way = PastCache(file)  # type: ignore[arg-type]
    way.write_at(0, memoryview(ROOM)[: 2 * PAGE_BYTES])

    assert not way.is_direct
    assert file.written == [(0, ROOM[: 2 * PAGE_BYTES])]


@pytest.mark.parametrize("shard_bytes", [0, 1_100_000])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_merge_past_the_cache_has_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, shard_bytes: int
):
    files = [model(tmp_path / f"{seed}", seed) for seed in range(2)]
    options = {"strategy": "linear", "workers": workers, "shard_bytes": shard_bytes}
    through = merge_files(files, tmp_path / "through", **options)
    monkeypatch.setattr(output, "WORTH_BYTES", 0)
    past = merge_files(files, tmp_path / "past", **options)

    assert (past.file_sha256, past.output_digest) == (through.file_sha256, through.output_digest)
    assert contents(tmp_path / "past") == contents(tmp_path / "through")


def contents(path: Path) -> dict[str, bytes]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {file.name if path.is_dir() else "": file.read_bytes() for file in files}


def test_descriptors_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(output, "WORTH_BYTES", 0)

    merge_files([model(tmp_path / "0", 0)], tmp_path / "out", strategy="linear", workers=0)

    assert [path for path in open_files() if path.startswith(str(tmp_path))] == []


def open_files() -> list[str]:
    """Return what the descriptors of this process are open on."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # Such as the one of the list itself.
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found
