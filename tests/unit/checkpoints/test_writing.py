"""Writing files again: all of them or none, and nothing of a user's is ever removed."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from crdt_merge_node.checkpoints.directory import StagedDirectory
from crdt_merge_node.checkpoints.reading import read_checkpoint
from crdt_merge_node.checkpoints.writing import Export
from crdt_merge_node.errors import FullError, InvalidRequestError, StorageError
from crdt_merge_node.ports import DiskSpace, SeededRng, SystemFs
from crdt_merge_node.resolve.describe import describe_file
from crdt_merge_protocol.packing import Packing
from safetensors.numpy import load_file, save_file
from support.checkpoints import files_in, save_sharded, some_tensors

PID_OF_NOBODY = 4_194_400
"""Above the largest process id that Linux gives."""


class Source:
    """Reads the blobs of a checkpoint from its own files."""

    def __init__(self, path: Path) -> None:
        self.described = describe_file(path)
        self._sources = {source.blob: source for source in self.described.sources.values()}

    def read(self, blob: bytes, index: int) -> bytes | None:
        source = self._sources[blob]
        with Path(str(source.path)).open("rb") as file:
            file.seek(source.offset + (index << 20))
            return file.read(min(1 << 20, source.nbytes - (index << 20)))


def export(
    source: Path,
    target: Path,
    *,
    packing: Packing | None = None,
    fs: SystemFs | None = None,
    advance: Callable[[int], None] = lambda _nbytes: None,
    read: Callable[[bytes, int], bytes | None] | None = None,
):
    found = Source(source)
    writer = Export(fs=fs or SystemFs(), rng=SeededRng(1), read=read or found.read, advance=advance)
    return writer.write(found.described.manifest, packing, target)


def packing_of(path: Path) -> Packing:
    return read_checkpoint(SystemFs(), path).packing


def test_a_file_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    save_file(some_tensors(), tmp_path / "model", metadata={"format": "pt", "made": "by hand"})

    (written,) = export(tmp_path / "model", tmp_path / "again", packing=packing_of(tmp_path / "model"))

    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()
    assert (written.name, written.nbytes) == ("again", (tmp_path / "model").stat().st_size)


def test_a_sharded_directory_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    source = save_sharded(tmp_path / "model", some_tensors(), 3)

    written = export(source, tmp_path / "again", packing=packing_of(source))

    assert files_in(tmp_path / "again") == files_in(source)
    assert sorted(file.name for file in written) == sorted(files_in(source))


def test_without_a_packing_it_is_one_plain_file(tmp_path: Path) -> None:
    source = save_sharded(tmp_path / "model", some_tensors())

    export(source, tmp_path / "plain")

    loaded = load_file(tmp_path / "plain")
    assert {name: array.tobytes() for name, array in loaded.items()} == {
        name: array.tobytes() for name, array in some_tensors().items()
    }


@pytest.mark.parametrize("is_directory", [False, True])
def test_whoever_gives_up_leaves_what_was_there(tmp_path: Path, is_directory: bool) -> None:
    source = save_sharded(tmp_path / "model", some_tensors(1))
    before = save_sharded(tmp_path / "out", some_tensors(2)) if is_directory else tmp_path / "out"
    if not is_directory:
        before.write_text("before")
    files = set(tmp_path.iterdir())
    content = files_in(before) if is_directory else before.read_bytes()
    count = 0

    def give_up(_nbytes: int) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(source, before, packing=packing_of(source) if is_directory else None, advance=give_up)

    assert (files_in(before) if is_directory else before.read_bytes()) == content
    assert set(tmp_path.iterdir()) == files


def test_a_blob_that_went_away_leaves_nothing(tmp_path: Path) -> None:
    source = save_sharded(tmp_path / "model", some_tensors())
    with pytest.raises(StorageError, match="went away"):
        export(source, tmp_path / "out", packing=packing_of(source), read=lambda _blob, _index: None)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_too_little_room_is_known_before_anything_is_written(tmp_path: Path) -> None:
    class SmallFs(SystemFs):
        def disk_space(self, path: Path) -> DiskSpace:
            return DiskSpace(free_bytes=100, total_bytes=100)

    source = save_sharded(tmp_path / "model", some_tensors())
    with pytest.raises(FullError, match="100 are free"):
        export(source, tmp_path / "out", packing=packing_of(source), fs=SmallFs())
    assert not (tmp_path / "out").exists()


def test_an_earlier_output_is_replaced_and_nothing_of_it_remains(tmp_path: Path) -> None:
    source = save_sharded(tmp_path / "model", some_tensors(1), 2)
    target = save_sharded(tmp_path / "out", some_tensors(2), 3)

    export(source, target, packing=packing_of(source))

    assert files_in(target) == files_in(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize("name", ["config.json", "notes.txt", "model.bin", ".safetensors"])
def test_a_directory_that_holds_anything_else_is_let_alone(tmp_path: Path, name: str) -> None:
    source = save_sharded(tmp_path / "model", some_tensors(1))
    target = save_sharded(tmp_path / "out", some_tensors(2))
    (target / name).write_text("mine")
    before = files_in(target)

    with pytest.raises(InvalidRequestError, match=name):
        export(source, target, packing=packing_of(source))

    assert files_in(target) == before


def test_shards_do_not_take_the_place_of_a_file(tmp_path: Path) -> None:
    source = save_sharded(tmp_path / "model", some_tensors())
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InvalidRequestError, match="no directory"):
        export(source, tmp_path / "out", packing=packing_of(source))
    assert (tmp_path / "out").read_text() == "mine"


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    source = save_sharded(tmp_path / "model", some_tensors())
    with pytest.raises(StorageError, match="absent"):
        export(source, tmp_path / "absent" / "out", packing=packing_of(source))


def test_what_a_killed_process_left_is_swept_and_what_it_moved_away_comes_back(tmp_path: Path) -> None:
    token = f"{PID_OF_NOBODY}-abcdef"
    old = save_sharded(tmp_path / f".out.{token}.old", some_tensors(2))
    save_sharded(tmp_path / f".out.{token}.part", some_tensors(3))
    before = files_in(old)

    with StagedDirectory(tmp_path / "out", fs=SystemFs(), rng=SeededRng(1)):
        assert files_in(tmp_path / "out") == before

    assert [path.name for path in tmp_path.iterdir()] == ["out"]


class FaultyFs(SystemFs):
    """Fails at the n-th rename."""

    def __init__(self, fail_at: int) -> None:
        self.left = fail_at

    def rename(self, source: Path, target: Path) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.EIO, "injected")
        super().rename(source, target)


@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_disk_that_fails_between_two_names_loses_no_output(tmp_path: Path, fail_at: int) -> None:
    source = save_sharded(tmp_path / "model", some_tensors(1))
    target = save_sharded(tmp_path / "out", some_tensors(2))
    before = files_in(target)

    with pytest.raises(StorageError, match="injected"):
        export(source, target, packing=packing_of(source), fs=FaultyFs(fail_at))

    assert files_in(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
