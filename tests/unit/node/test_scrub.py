"""The continuous check: all of it within a week, a hundredth of the disk, and what it finds is put right."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from crdt_merge_node.alarms import Alarms
from crdt_merge_node.ports import SeededRng, SystemFs
from crdt_merge_node.scrub import LOST_ALARM, LOST_S, PASS_S, REST_RATIO, Scrub
from crdt_merge_node.storage import DataDir, Store
from crdt_merge_protocol.blobs import blob_digest_of, payload_id
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_simulations.execution import InlineExecutor
from support.machines import GENESIS, GROUP, make_rows
from support.transport_world import VirtualLoop

ROWS = make_rows(200)
SMALL = [f"blob {number}".encode() * 20 for number in range(20)]
LARGE = Random(3).randbytes(3 << 20)
OBJECT = b"some notes"


class Clock:
    """The loop's virtual time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop

    def now(self) -> float:
        return 1_800_000_000.0 + self.loop.time()

    def monotonic(self) -> float:
        return self.loop.time()


class Bench:
    """A store with a scrub, in virtual time, and a keeper that knows what is missing."""

    def __init__(self, loop: VirtualLoop, path: Path) -> None:
        self.loop, self.path, self.clock = loop, path, Clock(loop)
        self.failures: list[BaseException] = []
        self.missing: dict[bytes, int] = {}
        self.damaged: list[bytes] = []
        self.alarms = Alarms(self.clock)
        self.scrub: Any = None

    async def open(self) -> Bench:
        self.data = DataDir.open(self.path, fs=SystemFs())
        self.store = await Store.open(
            self.data,
            clock=self.clock,
            rng=SeededRng(1),
            reserve_bytes=0,
            executor=InlineExecutor(),
            on_corrupt=self._corrupt,
        )
        self.state = CRDTMergeState(Genesis.decode(GENESIS))
        engine: Any = SimpleNamespace(
            replicas={GROUP: SimpleNamespace(state=self.state)},
            state=lambda group: self.state if group == GROUP else None,
        )
        keeper: Any = SimpleNamespace(
            contents=lambda _group: SimpleNamespace(missing=self.missing),
            named_blobs=lambda: frozenset(self.missing),
        )
        self.scrub = Scrub(
            engine=engine,
            driver=SimpleNamespace(fail=self.failures.append),  # type: ignore[arg-type]
            store=self.store,
            keeper=keeper,
            alarms=self.alarms,
            clock=self.clock,
        )
        return self

    def _corrupt(self, blob: bytes, _reason: str) -> None:
        self.damaged.append(blob)
        self.missing[blob] = 0
        if self.scrub is not None:
            self.scrub.note_damage(blob)

    async def fill(self) -> Bench:
        await self.store.add_group(GENESIS, GROUP)
        await self.store.append(ROWS)
        source = self.path.parent / "large"
        source.write_bytes(LARGE)
        self.store.blobs.import_tensor(source, 0, len(LARGE))
        for data in SMALL:
            self.store.blobs.put_inline(blob_digest_of(data), data)
        self.store.blobs.put_object(payload_id(OBJECT), OBJECT)
        for row in ROWS:
            self.state.apply(SignedOperation.load(row.wire))
        return self

    async def start(self) -> Bench:
        await self.scrub.load()
        self.scrub.start()
        return self

    async def close(self) -> None:
        if self.scrub is not None:
            await self.scrub.close()
        await self.store.close()
        self.data.close()
        assert self.failures == []

    def sql(self, statement: str) -> None:
        self.store._database.delete(statement)


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()  # type: ignore[abstract]  # What it lacks, nodes do not use.
    with structlog.testing.capture_logs():
        yield loop
    loop.close()
    assert loop.problems == []


@pytest.fixture
def bench(loop: VirtualLoop, tmp_path: Path) -> Bench:
    return Bench(loop, tmp_path / "node")


def _file_of(bench: Bench, data: bytes) -> Path:
    return bench.store.blobs.files.path_of(blob_digest_of(data))


def test_all_of_it_is_read_within_a_week_and_evenly(loop: VirtualLoop, bench: Bench) -> None:
    async def story() -> None:
        await (await (await bench.open()).fill()).start()
        read: list[tuple[float, bytes]] = []
        read_chunk = bench.store.blobs.read_chunk

        def noted(digest: bytes, index: int) -> bytes | None:
            read.append((loop.time(), digest))
            return read_chunk(digest, index)

        bench.store.blobs.read_chunk = noted  # type: ignore[method-assign]
        await asyncio.sleep(7 * 86_400.0)
        first = bench.scrub.last_completed
        await asyncio.sleep(7 * 86_400.0)

        assert 0 < first - 1_800_000_000.0 < 7 * 86_400
        assert bench.scrub.last_completed > first + 5 * 86_400
        assert {digest for _, digest in read} == set(bench.store.blobs.digests())
        large = [time for time, digest in read if digest == blob_digest_of(LARGE)][:3]
        assert large[1] - large[0] > PASS_S / 20
        await bench.close()

    loop.run_until_complete(story())


def test_reading_takes_no_more_than_a_hundredth_of_the_time(loop: VirtualLoop, bench: Bench) -> None:
    """On a disk that is too slow for six days the pass takes longer; it never reads more."""

    async def story() -> None:
        await (await (await bench.open()).fill()).start()
        busy_s = 0.0

        def slow(digest: bytes, index: int) -> bytes:
            nonlocal busy_s
            busy_s += 5_000.0
            loop.freeze(5_000.0)
            return b""

        bench.store.blobs.read_chunk = slow  # type: ignore[method-assign,assignment]
        await asyncio.sleep(100 * 86_400.0)

        assert 0 < busy_s / loop.time() <= 1.1 / (1 + REST_RATIO)
        await bench.close()

    loop.run_until_complete(story())


def test_damage_is_set_aside_and_forgotten_once_it_is_here_again(loop: VirtualLoop, bench: Bench) -> None:
    async def story() -> None:
        await (await (await bench.open()).fill()).start()
        path = _file_of(bench, LARGE)
        data = bytearray(LARGE)
        data[2 << 20] ^= 1
        path.write_bytes(data)
        while not bench.damaged:
            await asyncio.sleep(3600.0)
            assert loop.time() < 7 * 86_400
        digest = blob_digest_of(LARGE)

        assert bench.damaged == [digest]
        assert not bench.store.blobs.has(digest)
        assert any(each.name.startswith(digest.hex()) for each in (bench.path / "quarantine").iterdir())
        assert [alarm.code for alarm in bench.alarms.standing()] == [LOST_ALARM]
        bench.store.blobs.import_tensor(bench.path.parent / "large", 0, len(LARGE))
        bench.missing.clear()
        await asyncio.sleep(2 * LOST_S)
        assert bench.alarms.standing() == ()
        assert await bench.store.scan_meta("damaged/") == []
        await bench.close()

    loop.run_until_complete(story())


def test_the_alarm_is_there_again_after_a_restart(loop: VirtualLoop, bench: Bench) -> None:
    async def story() -> None:
        await (await (await bench.open()).fill()).start()
        bench.sql("UPDATE objects SET data = x'00'")
        await asyncio.sleep(7 * 86_400.0)
        assert bench.damaged == [payload_id(OBJECT)]
        await bench.close()
        again = await Bench(loop, bench.path).open()
        again.missing = {payload_id(OBJECT): 0}
        await again.start()
        await asyncio.sleep(2 * LOST_S)

        assert [alarm.code for alarm in again.alarms.standing()] == [LOST_ALARM]
        again.missing.clear()  # Nothing needs it any more.
        await asyncio.sleep(2 * LOST_S)
        assert again.alarms.standing() == ()
        await again.close()

    loop.run_until_complete(story())


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE operations SET wire = (SELECT wire FROM operations WHERE position = 1) WHERE position = 150",
        "UPDATE operations SET wire = x'c1' WHERE position = 150",
        (
            "UPDATE operations SET wire = CAST(substr(wire, 1, length(wire) - 1) || x'00' AS BLOB) "
            "WHERE position = 150"
        ),
    ],
    ids=["other bytes", "garbage", "signature"],
)
def test_a_damaged_operation_is_written_again_from_memory(
    loop: VirtualLoop, bench: Bench, damage: str
) -> None:
    async def story() -> None:
        await (await (await bench.open()).fill()).start()
        bench.sql(damage)
        await asyncio.sleep(7 * 86_400.0)
        stored = {row.id: row.wire for row in bench.store.load_operations(GROUP)}

        assert stored == {row.id: row.wire for row in ROWS}
        assert len(bench.store.quarantined()) == 1
        await bench.close()

    loop.run_until_complete(story())


def test_a_restart_goes_on_where_it_was(loop: VirtualLoop, bench: Bench) -> None:
    async def story() -> None:
        await (await (await bench.open()).fill()).start()
        await asyncio.sleep(PASS_S / 2)
        await bench.close()
        where = bench.scrub._cursor
        again = await Bench(loop, bench.path).open()
        await again.fill()
        await again.start()

        assert where.within == blob_digest_of(LARGE)
        assert where.step > 0
        assert again.scrub._cursor == where
        await asyncio.sleep(PASS_S * 0.6)
        assert again.scrub.last_completed > 0
        await again.close()

    loop.run_until_complete(story())


def test_pages_that_sqlite_finds_damaged_are_an_alarm(loop: VirtualLoop, bench: Bench) -> None:
    async def story() -> None:
        await (await (await bench.open()).fill()).start()
        bench.store.page_problems = lambda table: [f"row 3 missing from {table}"]  # type: ignore[method-assign]
        await asyncio.sleep(7 * 86_400.0)
        [alarm] = bench.alarms.standing()

        assert "row 3 missing" in alarm.message
        assert "fsck --repair" in alarm.hint
        await bench.close()

    loop.run_until_complete(story())


def test_an_empty_store_is_no_busy_loop(loop: VirtualLoop, bench: Bench) -> None:
    async def story() -> None:
        await (await bench.open()).start()
        del bench.scrub._engine.replicas[GROUP]
        await asyncio.sleep(30 * 86_400.0)

        assert bench.scrub.last_completed > 0
        await bench.close()
        shutil.rmtree(bench.path)

    loop.run_until_complete(story())
    assert loop.callbacks < 10_000
