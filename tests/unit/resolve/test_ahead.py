"""What the disk is asked to read before, and to write behind, those who wait for it."""

import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_node.ports import SeededRng, SystemClock, SystemFs
from crdt_merge_node.resolve.ahead import AHEAD_BYTES, reading_ahead
from crdt_merge_node.resolve.describe import describe_files
from crdt_merge_node.resolve.files import SourceReader
from crdt_merge_node.resolve.job import DEFAULT_MEMORY_BYTES, TensorSource
from crdt_merge_node.resolve.offline import job_of, read_inputs
from crdt_merge_node.resolve.output import OutputWriter, open_output
from crdt_merge_node.resolve.plan import make_plan
from crdt_merge_node.resolve.pool import InlinePool
from crdt_merge_node.resolve.run import Run, say_nothing
from crdt_merge_node.resolve.steps import SLOT_BYTES, Span, TensorPlan
from crdt_merge_node.resolve.tasks import Task
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.checkpoint import Shard

MIB = 1 << 20
SOURCE = TensorSource("model", 100, 1 << 40)


def asked_before_each(sizes: list[int]) -> list[list[tuple[int, int]]]:
    """Return (offset, bytes) asked for since the item before, per item that was given out."""
    asked: list[tuple[int, int]] = []
    items = [(sum(sizes[:number]), size) for number, size in enumerate(sizes)]
    found = []
    for _ in reading_ahead(
        items,
        lambda item: [(SOURCE, *item)],
        lambda _source, offset, nbytes: asked.append((offset, nbytes)),
    ):
        found.append(list(asked))
        asked.clear()
    return found


def test_the_first_item_waits_until_a_whole_distance_behind_it_was_asked_for():
    found = asked_before_each([AHEAD_BYTES // 4] * 8)

    assert [len(ranges) for ranges in found] == [5, 1, 1, 1, 0, 0, 0, 0]


def test_every_range_is_asked_for_once_and_in_order():
    sizes = [3 * MIB, 50 * MIB, MIB, 40 * MIB, 2 * MIB, 64 * MIB, MIB]
    ranges = [each for found in asked_before_each(sizes) for each in found]

    assert ranges == [(sum(sizes[:number]), size) for number, size in enumerate(sizes)]


def test_of_a_range_longer_than_the_distance_only_its_beginning_is_asked_for():
    assert asked_before_each([AHEAD_BYTES * 3, MIB])[0] == [(0, AHEAD_BYTES), (3 * AHEAD_BYTES, MIB)]


def test_items_come_out_as_they_went_in():
    items = list(range(100))

    assert list(reading_ahead(items, lambda _: [(SOURCE, 0, MIB)], lambda *_: None)) == items


def not_at_once(*_: object) -> int:
    raise BlockingIOError


def test_what_is_in_memory_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model").write_bytes(b"x" * 1000)
    source = TensorSource(str(tmp_path / "model"), 100, 900)
    calls, looked = [], []

    def at_once(_fd: int, _buffers: object, offset: int, _flags: int) -> int:
        looked.append(offset)
        return 1 if offset < 800 else not_at_once()

    monkeypatch.setattr(os, "posix_fadvise", lambda _fd, *rest: calls.append(rest))
    monkeypatch.setattr(os, "preadv", at_once)
    reader = SourceReader(SystemFs())
    reader.expect(source, 0, 700)
    reader.expect(source, 0, 900)
    reader.close()

    assert looked == [100, 799, 100, 999]
    assert calls == [(100, 900, os.POSIX_FADV_WILLNEED)]


def test_the_kernel_is_asked_for_the_place_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model").write_bytes(b"x" * 1000)
    calls = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _fd, *rest: calls.append(rest))
    monkeypatch.setattr(os, "preadv", not_at_once)
    reader = SourceReader(SystemFs())

    reader.expect(TensorSource(str(tmp_path / "model"), 100, 900), 50, 200)
    reader.expect(TensorSource(None, 0, 4, b"data"), 0, 4)
    reader.expect(TensorSource(str(tmp_path / "gone"), 0, 4), 0, 4)
    reader.close()

    assert calls == [(150, 200, os.POSIX_FADV_WILLNEED)]


def test_a_simulated_file_is_no_matter_of_the_kernel(monkeypatch: pytest.MonkeyPatch):
    class File:
        def close(self) -> None:
            pass

    class Fs(SystemFs):
        def open_read(self, path, *, follow=False):
            return File()

    monkeypatch.delattr(os, "posix_fadvise")

    SourceReader(Fs()).expect(SOURCE, 0, 4)


def test_of_a_span_the_same_elements_of_every_stream_are_read():
    inputs = (TensorSource("one", 10, 4 * MIB), TensorSource("two", 20, 4 * MIB))
    spec = TensorSpec(name="a", dtype="F32", shape=(2 * MIB,))
    merged = TensorPlan(spec=spec, input_dtype="BF16", index=0, inputs=inputs, base=SOURCE)
    copied = TensorPlan(spec=spec, input_dtype="F32", index=-1, inputs=(SOURCE,), base=None)

    assert list(merged.reads(Span(0, 1000, 3000))) == [(source, 2000, 4000) for source in (*inputs, SOURCE)]
    assert list(copied.reads(Span(1, 50, 70))) == [(SOURCE, 50, 20)]


class Recording(InlinePool):
    """Runs tasks in this process and notes what was asked for before each of them."""

    def __init__(self) -> None:
        super().__init__(SystemFs(), slot_bytes=SLOT_BYTES, tick=lambda: None)
        self.asked: list[tuple[TensorSource, int, int]] = []
        self.asked_first: int | None = None

    def expect(self, source: TensorSource, offset: int, nbytes: int) -> None:
        self.asked.append((source, offset, nbytes))

    def tell(self, task: Task) -> None:
        if self.asked_first is None:
            self.asked_first = len(self.asked)
        super().tell(task)


def test_files_are_asked_for_whole_before_they_are_hashed_and_when_they_are_merged(tmp_path: Path):
    paths = []
    for seed in range(2):
        values = np.random.default_rng(seed).standard_normal(3 * MIB // 4, np.float32)
        paths.append(tmp_path / f"model-{seed}")
        safetensors.numpy.save_file({"a": values, "b": values[:10]}, paths[-1])
    with Recording() as pool:
        inputs = read_inputs(
            SystemFs(),
            paths,
            strategy="weight_average",
            base=None,
            params=None,
            weights=None,
            dtype="",
            artefacts=(),
        )
        described = describe_files(inputs.headers, pool, weights=inputs.all_weights)
        hashed = list(pool.asked)
        pool.asked.clear()
        job = job_of(inputs, described, task="", memory_bytes=DEFAULT_MEMORY_BYTES, workers=0)
        plan = make_plan(job, cores=1)
        with open_output(tmp_path / "out", plan, fs=SystemFs(), rng=SeededRng(1)) as writer:
            Run(job, plan, pool, say_nothing).write(writer, started=0, clock=SystemClock())

    assert sum(nbytes for _, _, nbytes in hashed) == plan.input_bytes == 2 * (3 * MIB + 40)
    assert pool.asked_first == len(pool.asked) // 2, "all of it before workers have started"
    assert pool.asked[: pool.asked_first] == pool.asked[pool.asked_first :]
    assert sum(nbytes for _, _, nbytes in pool.asked) == 2 * plan.input_bytes


class Begun:
    """A file that only notes what the disk was told to begin with."""

    def __init__(self, file, ranges: list[tuple[int, int]]) -> None:
        self._file = file
        self._ranges = ranges

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def begin_sync(self, offset: int, nbytes: int) -> None:
        self._ranges.append((offset, nbytes))


def test_the_disk_begins_with_whole_ranges_of_the_output_as_soon_as_they_are_written(tmp_path: Path):
    ranges: list[tuple[int, int]] = []

    class Fs(SystemFs):
        def create(self, path, *, mode=0o600):
            return Begun(super().create(path, mode=mode), ranges)

    spec = TensorSpec(name="a", dtype="U8", shape=(21 * MIB,))
    shard = Shard(name="out", header=b"h" * 100, specs=(spec,))
    with OutputWriter(tmp_path / "out", [shard], fs=Fs(), rng=SeededRng(1)) as writer:
        for _ in range(7):
            writer.write(bytes(3 * MIB))

    assert ranges == [(0, 8 * MIB), (8 * MIB, 8 * MIB)]
