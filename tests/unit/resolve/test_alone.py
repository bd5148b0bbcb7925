"""Tensors that are measured and merged alone: the same bytes and the same account, and one reading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from crdt_merge_node.errors import CorruptError, StorageError
from crdt_merge_node.ports import File, SystemFs
from crdt_merge_node.resolve import plan
from crdt_merge_node.resolve.files import SourceReader
from crdt_merge_node.resolve.job import TensorSource
from crdt_merge_node.resolve.merge import merge_files
from crdt_merge_node.resolve.plan import make_plan
from crdt_merge_node.resolve.steps import SLOT_BYTES
from crdt_merge_protocol.strategies.registry import plain_names
from safetensors.numpy import save_file
from support.resolves import FLOATS, Group, account_of, bytes_of, model

FS = SystemFs()
MODELS = (model(1), model(2), model(3))
OTHERWISE = (
    ("ties", {"scope": "tensor", "density": "0.4"}),
    ("ties", {"profile": "mergekit", "density": "0.4"}),
    ("dare_ties", {"rescale": "l1", "ties_density": "0.5"}),
    ("dare", {"rescale": "l1"}),
)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Have no tensor merged alone while the test says so."""
    with monkeypatch.context() as patch:
        patch.setattr(plan, "alone_in", lambda *_args, **_options: (frozenset(), 0))
        yield patch


@pytest.mark.parametrize(("name", "params"), [*((name, {}) for name in plain_names()), *OTHERWISE])
def test_what_is_merged_alone_has_the_bytes_and_the_account_of_all_together(
    name: str, params: dict[str, str], tmp_path: Path, together: pytest.MonkeyPatch
) -> None:
    group = Group(name, MODELS, params)
    expected = group.resolve(tmp_path / "together", fs=FS)
    together.undo()
    found = group.resolve(tmp_path / "alone", fs=FS)

    assert bytes_of(found) == bytes_of(expected)
    assert account_of(found) == account_of(expected)


@pytest.mark.parametrize(
    ("name", "params", "count"),
    [
        ("slerp", {}, len(FLOATS)),
        ("ties", {"scope": "tensor"}, len(FLOATS)),
        ("ties", {"scope": "model"}, 0),  # Tensors are ranked together.
        ("linear", {}, 0),  # There are no passes to save.
    ],
)
def test_tensors_are_alone_where_passes_look_at_them_one_by_one(
    name: str, params: dict[str, str], count: int
) -> None:
    assert len(make_plan(Group(name, MODELS, params).job(), cores=1).alone) == count


def test_what_does_not_fit_beside_the_rest_is_not_held() -> None:
    job = Group("ties", MODELS, {"scope": "tensor"}).job
    least = make_plan(job(), cores=1)
    held = max(4 * least.tensors[number].spec.nbytes for number in least.alone)
    rest = least.memory_bytes - held

    fits = make_plan(job(memory_bytes=rest + held), cores=1)
    tight = make_plan(job(memory_bytes=rest + held - 1), cores=1)

    assert len(fits.alone) == len(tight.alone) + 1
    assert fits.memory_bytes == rest + held
    assert tight.memory_bytes < fits.memory_bytes


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tensor_larger_than_a_slot_is_read_once_and_comes_out_whole(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: pytest.MonkeyPatch
) -> None:
    """Behind a small one, so that it begins anywhere in a page."""
    rng = np.random.default_rng(1)
    size = SLOT_BYTES // 4 + 70_001
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for file in files:
        values = rng.integers(-9, 10, size).astype(np.float32)
        save_file({"large": values, "aside": values[:999]}, file)

    def merged(name: str) -> bytes:
        options = {"strategy": "ties", "base": files[2], "params": {"scope": "tensor", "density": "0.3"}}
        merge_files(files[:2], tmp_path / name, **options, workers=workers)  # type: ignore[arg-type]
        return (tmp_path / name).read_bytes()

    expected = merged("together")
    together.undo()
    read: list[int] = []
    original = SourceReader.read

    def counting(self: SourceReader, source: TensorSource, offset: int, nbytes: int) -> bytes | memoryview:
        read.append(nbytes)
        return original(self, source, offset, nbytes)

    into = SourceReader.read_into

    def counting_into(self: SourceReader, source: TensorSource, target: memoryview) -> None:
        read.append(len(target))
        into(self, source, target)

    monkeypatch.setattr(SourceReader, "read", counting)
    monkeypatch.setattr(SourceReader, "read_into", counting_into)

    assert merged("alone") == expected
    if not workers:  # Else others read.
        assert sum(read) == 2 * 3 * 4 * (size + 999), "once to name the files, once to merge them"


class PlainFs(SystemFs):
    """Its files are not known to the kernel."""

    def open_read(self, path: Path, *, follow: bool = False) -> File:
        return cast("File", PlainFile(super().open_read(path, follow=follow)))


class PlainFile:
    def __init__(self, file: File) -> None:
        self.read_at = file.read_at


@pytest.mark.parametrize("fs", [SystemFs(), PlainFs()])
def test_a_tensor_is_read_to_where_it_is_wanted(fs: SystemFs, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(200)))
    kept = bytearray(50)

    SourceReader(fs).read_into(TensorSource(str(file), 20, 50), memoryview(kept))

    assert kept == bytes(range(20, 70))


def test_bytes_that_came_inline_are_put_there_too() -> None:
    kept = bytearray(3)
    SourceReader(FS).read_into(TensorSource(None, 0, 3, b"abc"), memoryview(kept))
    assert kept == b"abc"


@pytest.mark.parametrize("fs", [SystemFs(), PlainFs()])
def test_a_file_that_ends_early_is_told_wherever_its_bytes_go(fs: SystemFs, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(60))
    with pytest.raises(CorruptError, match="ended 10 bytes early"):
        SourceReader(fs).read_into(TensorSource(str(file), 20, 50), memoryview(bytearray(50)))
    with pytest.raises(StorageError, match="cannot be read"):
        SourceReader(fs).read_into(TensorSource(str(tmp_path / "none"), 0, 1), memoryview(bytearray(1)))
