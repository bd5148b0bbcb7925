"""The composition root: opens the parts of a node in order, runs them, closes them in the reverse order.

    lock the data directory -> identity -> store -> state rebuilt from operations -> peers -> commands

Each step may rely on the ones before it; a failure closes what is open. The node is *ready* when peers and
commands are heard. It stops on SIGTERM or SIGINT, or when a part fails in a way that a restart must look at
(DESIGN 3.5: an fsync error is fail-stop).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.errors import CrdtMergeError
from crdt_merge_protocol.genesis import Genesis

from .alarms import Alarms
from .allocator import keep_large_buffers
from .api import LocalNode
from .attesting import alarm_mismatch, load_attestations
from .bulk import BulkServer, Fetcher
from .config import Config
from .control.model import Severity
from .control.service import ControlServer
from .control.socket_path import control_socket
from .errors import PeerUnreachableError
from .gossip import GossipDriver
from .imports import ImportDesk
from .keeper import ContentKeeper
from .ports import Clock, Fs, Net, Rng, SystemClock, SystemFs, SystemRng, TcpNet, local_addresses
from .services import Services
from .storage import DataDir, Store, compare_root, replay, save_root
from .telemetry.logging import configure_logging, get_logger
from .transport import (
    ALPN_BULK,
    Connection,
    Endpoint,
    EndpointConfig,
    Identity,
    JoinService,
    OpenSslContexts,
    StoredInvites,
    TlsContexts,
    load_authority,
)
from .version import VERSION

log = get_logger()

Facts = dict[str, Any]


class World:
    """The four ports, TLS, and how the database is run: real unless replaced."""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        rng: Rng | None = None,
        fs: Fs | None = None,
        net: Net | None = None,
        contexts: TlsContexts | None = None,
        executor: Executor | None = None,
        vfs: str | None = None,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.rng: Rng = rng or SystemRng()
        self.fs: Fs = fs or SystemFs()
        self.net: Net = net or TcpNet()
        self.contexts: TlsContexts = contexts or OpenSslContexts()
        self.executor = executor
        """Of the store; a thread of its own if none."""
        self.vfs = vfs
        """APSW name of the virtual file system of the database; the system's if none."""


def run(config: Config, *, on_ready: Callable[[Facts], None] = lambda _facts: None) -> int:
    """Run a node until it is told to stop; return the exit status of the process."""
    configure_logging(level=config.log.level, form=config.log.format)
    keep_large_buffers()
    import uvloop

    return uvloop.run(_main(config, on_ready))


async def _main(config: Config, on_ready: Callable[[Facts], None]) -> int:
    stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _resolve, stop, signal.Signals(number).name)
    try:
        async with running_node(config, World()) as node:
            on_ready(node.facts())
            await _first_of(stop, node.failed)
            error = node.failed.result() if node.failed.done() else None
    except CrdtMergeError as error_at_start:
        log.error("node.failed", error=error_at_start)  # noqa: TRY400 - a person reads it; no traceback.
        raise
    if error is not None:
        log.error("node.failed", error=error, exc_info=error)
        return error.exit_code if isinstance(error, CrdtMergeError) else 1
    return 0


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _resolve(stop: asyncio.Future[str], value: str) -> None:
    if not stop.done():
        stop.set_result(value)


class RunningNode:
    """A node whose parts are all open."""

    def __init__(self, services: Services, api: LocalNode, failed: asyncio.Future[BaseException]) -> None:
        self.services = services
        self.api = api
        self.failed = failed
        """Resolved with the error when a part can not go on."""

    def facts(self) -> Facts:
        """Return what the banner shows."""
        services = self.services
        host, port = services.endpoint.address
        return {
            "version": VERSION,
            "node": services.engine.node.hex(),
            "name": services.config.node.name,
            "cluster": services.identity.cluster.hex(),
            "cluster_name": services.identity.cluster_name,
            "listen": f"{host}:{port}",
            "advertise": list(services.endpoint.advertised),
            "data_dir": str(services.config.node.data_dir),
            "store_bytes": services.store.blobs.total_bytes(),
            "groups": len(services.engine.replicas),
            "operations": sum(len(replica.state) for replica in services.engine.replicas.values()),
            "seeds": list(services.config.peers.seeds),
            "peers": len(services.engine.overlay.peers),
            "socket": str(services.config.control.socket or control_socket(services.config.node.data_dir)),
            "can_invite": services.invites is not None,
        }


@asynccontextmanager
async def running_node(config: Config, world: World, *, is_served: bool = True) -> AsyncIterator[RunningNode]:
    """Open a node, yield it, and close it in the reverse order; commands are heard if ``is_served``."""
    began = world.clock.monotonic()
    failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def fail(error: BaseException) -> None:
        if not failed.done():
            failed.set_result(error)

    async with AsyncExitStack() as stack:
        services = await _open_services(config, world, stack, fail)
        api = LocalNode(services)
        if is_served:
            control = ControlServer(api, config.control.socket or control_socket(config.node.data_dir))
            await control.start()
            stack.push_async_callback(control.close)
        node = RunningNode(services, api, failed)
        log.info(
            "node.ready",
            node=services.engine.node,
            address=node.facts()["listen"],
            groups=len(services.engine.replicas),
            duration_s=round(world.clock.monotonic() - began, 3),
        )
        yield node
    log.info("node.stopped", node=services.engine.node, duration_s=round(world.clock.monotonic() - began, 3))


async def _open_services(
    config: Config, world: World, stack: AsyncExitStack, fail: Callable[[BaseException], None]
) -> Services:
    data = DataDir.open(config.node.data_dir, fs=world.fs)
    stack.callback(data.close)
    identity = Identity.load(data.path, world.fs)
    keepers: list[ContentKeeper] = []
    store = await Store.open(
        data,
        fs=world.fs,
        clock=world.clock,
        rng=world.rng,
        on_fatal=fail,
        on_corrupt=lambda _blob, _reason: _look_again(keepers),
        reserve_bytes=int(config.storage.reserve_bytes),
        executor=world.executor,
        vfs=world.vfs,
    )
    stack.push_async_callback(store.close)
    await store.bind_cluster(identity.cluster)
    engine = Engine(identity.node_key, random_bytes=world.rng.bytes)
    alarms = Alarms(world.clock)
    await _load(engine, store, config, identity, alarms)
    driver = GossipDriver(engine, store, world.clock, own_name=config.node.name)
    authority = load_authority(data.path, world.fs)
    invites = None if authority is None else StoredInvites(store)
    join_service = None
    if authority is not None and invites is not None:
        join_service = JoinService(
            authority,
            invites,
            cluster_name=identity.cluster_name,
            clock=world.clock,
            introducers=lambda: _introducers(driver),
            on_joined=lambda node, remote: log.info("node.admitted", peer=node, remote=remote),
        )
    bulk_server = BulkServer(store.blobs)
    stack.push_async_callback(bulk_server.close)

    def connected(connection: Connection) -> None:
        if connection.alpn == ALPN_BULK:
            bulk_server.serve(connection)
        else:
            driver.connected(connection, dialled=None)

    endpoint = Endpoint(
        identity,
        EndpointConfig(
            host=config.listen.host,
            port=config.listen.port,
            advertise=config.listen.advertise,
            agent=f"crdt-merge-node/{VERSION}",
            features=(f"name={config.node.name}",) if config.node.name else (),
        ),
        net=world.net,
        clock=world.clock,
        rng=world.rng,
        admit=lambda peer: engine.overlay.refusal(peer, now=world.clock.monotonic()),
        on_connection=connected,
        on_refused=driver.refused,
        join_service=join_service,
        contexts=world.contexts,
    )
    fetcher = Fetcher(
        store.blobs,
        peers=lambda: sorted(driver.connections),
        open=lambda peer: _open_bulk(endpoint, driver, peer),
        clock=world.clock,
        rng=world.rng,
        node=engine.node,
    )
    keeper = ContentKeeper(engine=engine, driver=driver, store=store, fetcher=fetcher)
    keepers.append(keeper)
    driver.endpoint = endpoint
    driver.callbacks.group_changed = keeper.changed
    driver.callbacks.peers_changed = fetcher.peers_changed
    driver.callbacks.mismatch = lambda effect: alarm_mismatch(alarms, driver, effect)
    driver.callbacks.fatal = fail
    await endpoint.start()
    stack.push_async_callback(endpoint.close)
    driver.start()
    stack.push_async_callback(_save_roots, engine, store)
    stack.push_async_callback(driver.close)
    stack.push_async_callback(fetcher.close)
    await keeper.start()
    stack.push_async_callback(keeper.close)
    return Services(
        config=config,
        identity=identity,
        engine=engine,
        driver=driver,
        store=store,
        fetcher=fetcher,
        keeper=keeper,
        imports=ImportDesk(store.blobs, keeper),
        endpoint=endpoint,
        invites=invites,
        alarms=alarms,
        clock=world.clock,
        rng=world.rng,
        fs=world.fs,
        started=world.clock.now(),
    )


async def _load(engine: Engine, store: Store, config: Config, identity: Identity, alarms: Alarms) -> None:
    """Rebuild state, peers, blocks and attestations from the store (SCENARIOS 7, boot)."""
    for group, genesis in store.groups():
        state = engine.open_group(Genesis.decode(genesis)).state
        replayed = replay(store, group, state.apply)
        damage = await compare_root(store, group, root=state.sync_root, count=len(state))
        if replayed.quarantined or damage:
            problem = damage or f"{len(replayed.quarantined)} stored operations are unreadable"
            log.error("root.mismatched", group=group, reason=problem)
            alarms.set(
                f"root.mismatched/{group.hex()}",
                severity=Severity.DAMAGE,
                code="E1501",
                message=f"group {group.hex()[:12]}: {problem}.",
                hint="Peers send again what is missing. Check the disk.",
            )
    for address in (*config.peers.seeds, *identity.introducers):
        engine.overlay.add_seed(address)
    for key, value in await store.scan_meta("peer/"):
        engine.overlay.learn(bytes.fromhex(key.removeprefix("peer/")), value.decode().split("\n"))
    for key, _ in await store.scan_meta("blocked/"):
        engine.overlay.block(bytes.fromhex(key.removeprefix("blocked/")))
    await load_attestations(store, engine.attestations, engine.node)


def _look_again(keepers: list[ContentKeeper]) -> None:
    """Fetch again what was set aside as damaged."""
    for keeper in keepers:
        keeper.look_again()


async def _save_roots(engine: Engine, store: Store) -> None:
    """Remember the roots, for the next start to compare with what it rebuilds."""
    if store.health.failure is None:
        for group, replica in engine.replicas.items():
            await save_root(store, group, root=replica.state.sync_root, count=len(replica.state))


async def _open_bulk(endpoint: Endpoint, driver: GossipDriver, peer: bytes) -> Connection:
    """Open a bulk connection to a peer with whom there is a gossip connection."""
    addresses = driver.engine.overlay.peers[peer].addresses
    error: CrdtMergeError | None = None
    for address in addresses:
        try:
            return await endpoint.dial(address, alpn=ALPN_BULK, expect=peer)
        except CrdtMergeError as failed:
            error = failed
    raise error or PeerUnreachableError(f"no address of {peer.hex()[:12]} is known.")


def _introducers(driver: GossipDriver) -> tuple[str, ...]:
    """Return addresses of members for a new node to dial, this node's own first."""
    assert driver.endpoint is not None, "joiners come through the endpoint"
    own = driver.endpoint.advertised or local_addresses(driver.endpoint.address[1])
    peers = sorted(driver.engine.overlay.peers.items())
    return own + tuple(target.addresses[0] for _, target in peers if target.addresses)
