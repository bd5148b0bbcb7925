"""Whole nodes in one process: real stores, real TLS on loopback, asked through their ``LocalNode``.

Nothing here sleeps: whoever waits for something is woken by what leads to it.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from crdt_merge_node.config import Config
from crdt_merge_node.config.model import ListenSection, NodeSection, PeersSection, StorageSection
from crdt_merge_node.control.model import ContributionAdded, ContributionInfo, GroupInfo, PolicyInfo
from crdt_merge_node.ports import SystemClock, SystemFs, SystemRng
from crdt_merge_node.runtime import RunningNode, running_node
from crdt_merge_node.transport.identity import Identity, load_authority, prepare_keys, write_membership
from crdt_merge_node.world import World
from crdt_merge_protocol.blobs import Manifest, ManifestEntry, TensorSpec, blob_digest_of, content_id
from crdt_merge_protocol.operations import Add, Kind
from safetensors.numpy import save_file

T = TypeVar("T")
ONE = 1 << 32
TIMEOUT_S = 300.0
"""Nothing takes a hundredth of it, but on a machine that does other things."""


def save_model(path: Path, value: float, *, rows: int = 3) -> Path:
    """Write a model of one matrix and one vector, full of a value."""
    tensors = {"w": np.full((rows, 4), value, np.float32), "b": np.full(4, value, np.float32)}
    save_file(tensors, path)
    return path


async def last(events: AsyncIterator[Any]) -> Any:
    """Return the last value of a stream."""
    found: Any = None
    async for event in events:
        found = event
    return found


_ALL: weakref.WeakSet[WholeNode] = weakref.WeakSet()


class WholeNode:
    """A running node and what tests ask of it."""

    def __init__(self, running: RunningNode) -> None:
        self.running = running
        self.services = running.services
        self.api = running.api
        self.id = self.services.engine.node
        self._pulse = asyncio.Event()
        _ALL.add(self)
        callbacks = self.services.driver.callbacks
        callbacks.group_changed = self._beat_after(callbacks.group_changed)
        callbacks.peers_changed = self._beat_after(callbacks.peers_changed)
        callbacks.mismatch = self._beat_after(callbacks.mismatch)
        engine: Any = self.services.engine
        engine.handle = self._beat_after(engine.handle)

    def _beat_after(self, callback: Callable[..., T]) -> Callable[..., T]:
        def beat(*args: Any, **kwargs: Any) -> T:
            result = callback(*args, **kwargs)
            self.beat()
            return result

        return beat

    @staticmethod
    def beat() -> None:
        """Let whoever waits, on whatever node, look again."""
        for node in list(_ALL):
            node._pulse.set()
            node._pulse = asyncio.Event()

    @property
    def address(self) -> str:
        return self.running.facts()["listen"]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once a condition holds that changes with peers or operations of this node."""
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                await self._pulse.wait()

    async def connected(self, *others: WholeNode) -> None:
        """Wait until there is a connection to these."""
        await self.until(lambda: {other.id for other in others} <= self.services.driver.connections.keys())

    def group(self, name: str) -> bytes | None:
        """Return the id of a group, if it is here."""
        for group, replica in self.services.engine.replicas.items():
            if replica.state.genesis.name == name:
                return group
        return None

    async def equal(self, name: str, *others: WholeNode) -> None:
        """Wait until this node knows that these have its root of a group."""
        group = self.group(name)
        assert group is not None
        reconciler = self.services.engine.reconciler
        await self.until(lambda: all(reconciler.is_equal(other.id, group) for other in others))

    def root(self, name: str) -> bytes:
        """Return the sync root of a group, or nothing if it is not here."""
        group = self.group(name)
        return self.services.engine.replicas[group].state.sync_root if group else b""

    async def info(self, name: str) -> GroupInfo:
        """Return a group in one line, as it is now."""
        return (await self.api.group_show(name)).info

    async def until_group(self, name: str, check: Callable[[GroupInfo], bool]) -> GroupInfo:
        """Wait until a condition holds of a group on this node."""
        await self.until(lambda: self.group(name) is not None)
        group = self.group(name)
        assert group is not None
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                generation = self.services.keeper.generation(group)
                info = await self.info(name)
                if check(info):
                    return info
                await self.services.keeper.beyond(group, generation)

    async def until_state(self, name: str, tag: str, state: str) -> ContributionInfo:
        """Wait until a contribution is in a state; return it."""
        return await self.until_contribution(name, tag, lambda info: info.state == state)

    async def until_blobs_missing(self, name: str, tag: str) -> ContributionInfo:
        """Wait until it is known of which blobs a contribution consists, and that some are not here."""
        return await self.until_contribution(name, tag, lambda info: info.missing_blobs > 0)

    async def until_contribution(
        self, name: str, tag: str, check: Callable[[ContributionInfo], bool]
    ) -> ContributionInfo:
        """Wait until a condition holds of a contribution; return it."""
        await self.until(lambda: self.group(name) is not None)
        group = self.group(name)
        assert group is not None
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                generation = self.services.keeper.generation(group)
                for info in await self.api.contribution_list(name):
                    if info.tag == tag and check(info):
                        return info
                await self.services.keeper.beyond(group, generation)

    async def attested(self, name: str, resolve_key: str, *others: WholeNode) -> None:
        """Wait until this node knows that these have an output for a resolve key."""
        writers = self.services.engine.attestations.writers
        group = self.group(name)
        assert group is not None
        await self.until(
            lambda: {other.id for other in others} <= writers(group, bytes.fromhex(resolve_key)).keys()
        )

    async def create_group(
        self, name: str, like: Path | None = None, *, base: Path | None = None, **changes: Any
    ) -> GroupInfo:
        """Create a group of the schema of a file."""
        settings: dict[str, Any] = {
            "strategy": "weight_average",
            "params": {},
            "dtype": "",
            "weight_cap": 0,
            "holders": 0,
        }
        found: GroupInfo = await last(
            self.api.group_create(
                name=name,
                base_path=str(base) if base else None,
                like_path=str(like) if like else None,
                **settings | changes,
            )
        )
        return found

    async def add(
        self,
        group: str,
        path: Path,
        *,
        slot: str = "main",
        meta: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> ContributionAdded:
        """Contribute a file."""
        settings = {"base_path": None, "weight": ONE, "wait_holds": 0} | kwargs
        added: ContributionAdded = await last(
            self.api.contribution_add(group, path=str(path), slot=slot, meta=meta or {}, **settings)
        )
        return added

    async def resolve(self, group: str, output: Path, *, without: tuple[str, ...] = (), wait_s: float = 0.0):
        """Resolve into a file; return the report."""
        return await last(self.api.resolve(group, output_path=str(output), wait_s=wait_s, without=without))

    async def set_policy(self, group: str, changes: Any) -> PolicyInfo:
        """Change the policy."""
        found: PolicyInfo = await last(self.api.policy_set(group, changes))
        return found

    async def withhold(self, group: str, *, slot: str = "withheld") -> tuple[str, str]:
        """Contribute what has a tensor that nobody has; return (tag, digest of the missing blob)."""
        entries = self.put_tensors({"w": np.full((3, 4), 5.0, np.float32), "b": np.ones(4, np.float32)})
        spec, missing = entries[0].spec, blob_digest_of(b"nobody has this")
        manifest = Manifest.of([ManifestEntry(spec=spec, blob=missing), entries[1]])
        return await self.contribute_raw(group, manifest, slot=slot), missing.hex()

    def put_tensors(self, tensors: Mapping[str, np.ndarray]) -> list[ManifestEntry]:
        """Store tensors without looking at them."""
        entries = []
        for name, array in tensors.items():
            data = array.tobytes()
            digest = blob_digest_of(data)
            self.services.store.blobs.put_inline(digest, data)
            spec = TensorSpec(name=name, dtype=_DTYPES[array.dtype.name], shape=array.shape)
            entries.append(ManifestEntry(spec=spec, blob=digest))
        return entries

    async def contribute_raw(
        self,
        group: str,
        manifest: Manifest | bytes,
        *,
        slot: str = "main",
        weight: int = ONE,
        type: str = "model",  # noqa: A002 - as the API has it.
    ) -> str:
        """Sign an ADD of any manifest, past every check that this release makes; return its tag."""
        data = manifest.encode() if isinstance(manifest, Manifest) else manifest
        content = content_id(data)
        self.services.store.blobs.put_object(content, data)
        add = Add(slot=slot, type=type, content=content, weight=weight, payload=None)
        found = self.group(group)
        assert found is not None
        signed = await self.services.driver.author(found, Kind.ADD, add.encode())
        return signed.id.hex()


_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "uint8": "U8"}


async def settle() -> None:
    """Let everything that is ready to run have its turn, and what that makes ready."""
    for _ in range(20):
        await asyncio.sleep(0)


class Site:
    """Data directories of the nodes of one cluster, and their starts and stops."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._made = 0

    def make(self) -> Path:
        """Make a member's data directory; return it."""
        fs, rng, now = SystemFs(), SystemRng(), SystemClock().now()
        data_dir = self.directory / f"node-{self._made}"
        self._made += 1
        if self._made == 1:
            Identity.create(data_dir, "test", fs=fs, rng=rng, now=now)
            return data_dir
        authority = load_authority(self.directory / "node-0", fs)
        assert authority is not None
        node_key, tls_key = prepare_keys(data_dir, fs=fs, rng=rng)
        certificate = authority.issue(tls_key.public_key(), node_key.node_id, now=now)
        write_membership(data_dir, certificate, authority.certificate, name="test", introducers=(), fs=fs)
        return data_dir

    @asynccontextmanager
    async def running(
        self, data_dir: Path, *seeds: str, name: str = "", world: World | None = None
    ) -> AsyncIterator[WholeNode]:
        """Run the node of a directory."""
        config = config_of(data_dir, *seeds, name=name)
        async with running_node(config, world or World(), is_served=False) as running:
            yield WholeNode(running)

    @asynccontextmanager
    async def nodes(self, count: int, **worlds: World) -> AsyncIterator[list[WholeNode]]:
        """Run fresh nodes called ``n0``, ``n1``, …, all connected; ``worlds`` are by name."""
        async with AsyncExitStack() as stack:
            nodes: list[WholeNode] = []
            for number in range(count):
                seeds = [node.address for node in nodes]
                world = worlds.get(f"n{number}")
                running = self.running(self.make(), *seeds, name=f"n{number}", world=world)
                nodes.append(await stack.enter_async_context(running))
            for node in nodes:
                await node.connected(*(other for other in nodes if other is not node))
            yield nodes


def config_of(data_dir: Path, *seeds: str, name: str = "") -> Config:
    """Return the configuration of a node on loopback."""
    return Config(
        node=NodeSection(data_dir=data_dir, name=name),
        listen=ListenSection(host="127.0.0.1", port=0),
        peers=PeersSection(seeds=seeds),
        storage=StorageSection(reserve_bytes=0),  # type: ignore[arg-type]
    )


async def until_agreed(name: str, *nodes: WholeNode, used: int) -> None:
    """Wait until all nodes use so many contributions, from one set of operations."""
    for node in nodes:
        await node.until_group(name, lambda info: info.used == used and bool(info.resolve_key))
    for node in nodes:
        await node.until(
            lambda: len({one.services.engine.state(one.group(name)).sync_root for one in nodes}) == 1
        )
