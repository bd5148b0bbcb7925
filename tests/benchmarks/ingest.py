"""Operations received, verified, made durable and applied, by the daemon's own driver (TARGETS A12).

*One at a time* waits for each to be durable before the next arrives; *live* lets single operations arrive
as fast as they are taken; *catch-up* brings two hundred in a message. The floors are commits of the same
bytes to a bare SQLite with the same pragmas, and the check of signatures on one core, which no replica can do
without. CPU time is that of all threads, opening and closing the store aside.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
from crdt_merge_node.gossip import GossipDriver
from crdt_merge_node.ports import SystemClock, SystemRng
from crdt_merge_node.storage import DataDir, Store
from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.events import PeerUp
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.messages.gossip import Gossip
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.state import CRDTMergeState
from crdt_merge_protocol.wire import FrameDecoder, encode_frame

from tests.support.authors import KEYS, Author, make_genesis
from tests.support.unsent import Line

from .measure import Options, Row, best_s, times

SINGLE = 400
PER_MESSAGE = 200


def measure(options: Options) -> Iterator[Row]:
    """Yield a row per way to arrive."""
    author = Author(make_genesis(), 1)
    operations = [author.add(f"content {n}", slot=f"s{n % 16}") for n in range(options.operations)]
    wires = [signed.wire() for signed in operations]
    verify_s = best_s(lambda: [SignedOperation.parse(wire) for wire in wires], options.repeats) / len(wires)
    with tempfile.TemporaryDirectory(prefix="cmn-bench-") as directory:
        for what, count, per_message, is_patient, target in (
            ("one at a time", SINGLE, 1, True, ""),
            ("live, single operations", len(wires), 1, False, ">= 4 k/s (A12)"),
            (f"catch-up, {PER_MESSAGE} a message", len(wires), PER_MESSAGE, False, ">= 15 k/s (A12)"),
        ):
            chosen = operations[:count]
            path = Path(directory) / what.replace(" ", "-")
            seconds, cpu_s = asyncio.run(_ingest(path, author, chosen, per_message, is_patient=is_patient))
            floor_s = _commit(path.with_suffix(".floor"), chosen, per_message)
            rate = count / seconds
            yield Row(
                what=f"durable ingest, {what}",
                measured=f"{rate:,.0f} op/s, {1e6 * cpu_s / count:.0f} us of CPU each",
                against=f"bare commits {count / floor_s:,.0f} op/s; signature checks {1 / verify_s:,.0f}/s",
                ratio=f"{times(floor_s / seconds)} the commits; {times(rate * verify_s)} the checks",
                target=target,
            )


async def _ingest(
    path: Path, author: Author, operations: list[SignedOperation], per_message: int, *, is_patient: bool
) -> tuple[float, float]:
    """Return the seconds, and those of CPU, from the first byte to the last operation applied."""
    genesis = author.state.genesis
    data = DataDir.open(path)
    store = await Store.open(data, clock=SystemClock(), rng=SystemRng(), reserve_bytes=0)
    await store.add_group(genesis.encode(), genesis.group)
    engine = Engine(NodeKey(os.urandom(32)), random_bytes=os.urandom)
    state = engine.open_group(genesis).state
    driver = GossipDriver(engine, store, SystemClock())
    awaited = _Awaited(driver, state)
    driver.start()
    line = Line(KEYS[2].node_id)
    driver.connections[line.peer] = line  # type: ignore[assignment]  # It can all that is asked of it here.
    driver.handle(PeerUp(peer=line.peer, addresses=()))
    frames = [
        encode_frame(
            Gossip(
                group=genesis.group,
                operations=tuple(signed.wire() for signed in operations[start : start + per_message]),
            )
        )
        for start in range(0, len(operations), per_message)
    ]
    decoder = FrameDecoder()
    began, cpu_began = time.perf_counter(), time.process_time()
    expected = 0
    for frame in frames:
        for message in decoder.feed(frame):
            await line.reading.wait()
            driver.received(line, message)
        expected += per_message
        await (awaited.count(expected) if is_patient else asyncio.sleep(0))
    await awaited.count(len(operations))
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    driver.connections.clear()
    await driver.close()
    await store.close()
    data.close()
    return seconds, cpu_s


class _Awaited:
    """Waits for a state to have so many operations."""

    def __init__(self, driver: GossipDriver, state: CRDTMergeState) -> None:
        self._state = state
        self._changed = asyncio.Event()
        driver.callbacks.group_changed = lambda _group: self._changed.set()

    async def count(self, expected: int) -> None:
        while len(self._state) < expected:
            self._changed.clear()
            await self._changed.wait()


def _commit(path: Path, operations: list[SignedOperation], per_commit: int) -> float:
    """Return the seconds for inserting the same rows, so many a transaction, at ``synchronous=FULL``."""
    connection = apsw.Connection(str(path))
    for pragma in ("locking_mode=exclusive", "journal_mode=wal", "synchronous=full"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE ops (position INTEGER PRIMARY KEY, id BLOB UNIQUE, wire BLOB)")
    rows = [(signed.id, signed.wire()) for signed in operations]

    def insert() -> None:
        for start in range(0, len(rows), per_commit):
            with connection:
                connection.executemany(
                    "INSERT INTO ops (id, wire) VALUES (?, ?)", rows[start : start + per_commit]
                )

    seconds = best_s(insert, 1)
    connection.close()
    return seconds
