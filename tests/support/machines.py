"""A process with a store on a simulated disk, and operations to put into it."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from crdt_merge_node.errors import StoreFailedError
from crdt_merge_node.ports import SeededRng
from crdt_merge_node.storage import DataDir, OpRow, Store
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.operations import Operation, sign_operation
from crdt_merge_simulations.disk import SimulatedDisk
from crdt_merge_simulations.disk_sqlite import SimulatedVfs
from crdt_merge_simulations.execution import InlineExecutor

from .authors import make_genesis

HOME = Path("/home/data")
MODEL = Path("/home/model")
GENESIS = make_genesis().encode()
GROUP = make_genesis().group
MODEL_BYTES = 200_000
_numbers = itertools.count()
_vfses = []  # SQLite calls the virtual file system of a connection for as long as that lives.


class StillClock:
    def now(self) -> float:
        return 1_800_000_000.0

    def monotonic(self) -> float:
        return 0.0


def make_rows(count: int) -> list[OpRow]:
    key, rows, prev = NodeKey(b"k" * 32), [], None
    for seq in range(count):
        signed = sign_operation(
            Operation(
                group=GROUP,
                author=key.node_id,
                log=b"l" * 16,
                seq=seq,
                prev=prev,
                deps=(),
                refs=(),
                kind=200,
                body=b"\x01" + b"x" * 200,
            ),
            key,
        )
        rows.append(OpRow(GROUP, signed.id, signed.wire()))
        prev = signed.id
    return rows


def new_disk(**kwargs) -> SimulatedDisk:
    """Return a disk that durably holds a user's model and nothing else."""
    disk = SimulatedDisk(**kwargs)
    fault, disk.fault = disk.fault, None
    disk.mkdir(HOME.parent)
    with disk.create(MODEL) as file:
        file.write_at(0, Random(1).randbytes(MODEL_BYTES * 2))
        file.sync()
    disk.sync_dir(HOME.parent)
    disk.sync_dir(Path("/"))
    disk.fault, disk.calls = fault, 0
    return disk


@dataclass
class Machine:
    """A process with a store on a simulated disk."""

    disk: SimulatedDisk
    fatal: list[StoreFailedError] = field(default_factory=list)
    corrupt: list[bytes] = field(default_factory=list)

    async def __aenter__(self) -> Store:
        number = next(_numbers)
        self.vfs = SimulatedVfs(self.disk, name=f"crash-{number}", rng=Random(number))
        _vfses.append(self.vfs)
        self.data = DataDir.open(HOME, fs=self.disk)
        try:
            self.store = await Store.open(
                self.data,
                fs=self.disk,
                clock=StillClock(),
                rng=SeededRng(number),
                reserve_bytes=0,
                on_fatal=self.fatal.append,
                on_corrupt=lambda digest, _reason: self.corrupt.append(digest),
                executor=InlineExecutor(),
                vfs=self.vfs.name,
            )
        except BaseException:
            self.data.close()
            raise
        return self.store

    async def __aexit__(self, *error) -> None:
        await self.store.close()
        self.data.close()
        await asyncio.sleep(0)  # Lets the callbacks of the store run.
