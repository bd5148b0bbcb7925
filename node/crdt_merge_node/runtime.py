"""The composition root: opens the parts of a node in order, runs them, closes them in the reverse order.

    lock the data directory -> identity -> store -> state rebuilt from operations -> peers -> commands

Each step may rely on the ones before it; a failure closes what is open. The node is *ready* when peers and
commands are heard. It stops on SIGTERM, SIGINT or SIGHUP, or when a part fails in a way that a restart must
look at (DESIGN 3.5: an fsync error is fail-stop).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.errors import CrdtMergeError

from . import boot
from .alarms import Alarms
from .allocator import keep_large_buffers, spare_what_stays
from .api import LocalNode
from .attesting import alarm_mismatch
from .bulk import BulkServer, Fetcher
from .cloning import CloneAlarm, new_instance
from .config import Config
from .control.service import ControlServer
from .control.socket_path import control_socket
from .dialling import open_bulk
from .gossip import GossipDriver
from .imports import ImportDesk
from .keeper import ContentKeeper
from .leaving import refuse_if_left
from .ports import Clock, Fs, Net, Rng, SystemClock, SystemFs, SystemRng, TcpNet, local_addresses
from .renewal import CA_FEATURE, CertificateKeeper
from .restoring import Restoration
from .scrub import Scrub
from .services import Services
from .storage import DataDir, Store
from .systemd import ServiceManager
from .telemetry.counters import LagMeter
from .telemetry.events import EventLog
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
from .transport.certificates import CertificateAuthority
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
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()
    manager = ServiceManager(os.environ)
    stop.add_done_callback(lambda _: manager.stopping())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # As nohup leaves SIGHUP.
            loop.add_signal_handler(number, _resolve, stop)

    def tell(node: RunningNode) -> None:
        spare_what_stays()
        facts = node.facts()
        manager.ready(f"node {facts['node'][:12]} listens on {facts['listen']}")
        on_ready(facts)

    return await serve(config, World(), stop=stop, on_ready=tell)


def _resolve(stop: asyncio.Future[None]) -> None:
    if not stop.done():
        stop.set_result(None)


async def serve(
    config: Config,
    world: World,
    *,
    stop: asyncio.Future[None],
    on_ready: Callable[[RunningNode], None] = lambda _node: None,
) -> int:
    """Run a node until ``stop`` is resolved or it cannot go on; return the exit status of the process.

    Raises:
        CrdtMergeError: It cannot be opened.
    """
    try:
        async with running_node(config, world) as node:
            with node.services.events.bound():  # Who follows the events learns it before they end.
                node.failed.add_done_callback(_log_failed)
            on_ready(node)
            stopping = node.services.stopping
            await asyncio.wait((stop, node.failed, stopping), return_when=asyncio.FIRST_COMPLETED)
    except CrdtMergeError as error:
        log.error("node.failed", error=error)  # noqa: TRY400 - a person reads it; no traceback.
        raise
    if not node.failed.done():
        return 0
    failure = node.failed.result()
    return failure.exit_code if isinstance(failure, CrdtMergeError) else 1


def _log_failed(failed: asyncio.Future[BaseException]) -> None:
    if failed.cancelled():
        return
    failure = failed.result()
    is_bug = not isinstance(failure, CrdtMergeError)
    log.error("node.failed", error=failure, exc_info=failure if is_bug else None)


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
            "dashboard": services.web.url,
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

    events = EventLog(world.clock)
    async with AsyncExitStack() as stack:
        with events.bound():
            services = await _open_services(config, world, stack, fail, events)
            api = LocalNode(services)
            if is_served:
                control = ControlServer(api, config.control.socket or control_socket(config.node.data_dir))
                await control.start()
                stack.push_async_callback(control.close)
                meter = LagMeter(services.driver.counters.loop_lag, asyncio.get_running_loop())
                stack.callback(meter.close)
                await _serve_http(services, world.net, stack)
            node = RunningNode(services, api, failed)
            log.info(
                "node.ready",
                node=services.engine.node,
                address=node.facts()["listen"],
                groups=len(services.engine.replicas),
                duration_s=round(world.clock.monotonic() - began, 3),
            )
        try:
            yield node
        finally:
            events.close()  # Who follows has the rest before the server ends.
            with events.bound():
                await stack.aclose()
    log.info("node.stopped", node=services.engine.node, duration_s=round(world.clock.monotonic() - began, 3))


async def _serve_http(services: Services, net: Net, stack: AsyncExitStack) -> None:
    """Serve probes, metrics and the dashboard, if that is wanted; else their libraries are not loaded."""
    if services.config.http.port is None:
        return
    from .http.server import HttpServer

    server = HttpServer(services, net)
    stack.push_async_callback(server.close)
    await server.start()


async def _open_services(
    config: Config,
    world: World,
    stack: AsyncExitStack,
    fail: Callable[[BaseException], None],
    events: EventLog,
) -> Services:
    data = DataDir.open(config.node.data_dir, fs=world.fs)
    stack.callback(data.close)
    refuse_if_left(data.path, world.fs)
    identity = Identity.load(data.path, world.fs)
    hearers: list[Callable[[bytes], None]] = []
    store = await _open_store(config, world, data, fail, hearers)
    stack.push_async_callback(store.close)
    await store.bind_cluster(identity.cluster)
    engine = Engine(identity.node_key, random_bytes=world.rng.bytes)
    alarms = Alarms(world.clock)
    clones = CloneAlarm(alarms)
    await boot.load(engine, store, alarms)
    for address in (*config.peers.seeds, *identity.introducers):
        engine.overlay.add_seed(address)
    driver = GossipDriver(engine, store, world.clock, own_name=config.node.name)
    bulk_server = BulkServer(store.blobs)
    stack.push_async_callback(bulk_server.close)
    authority = load_authority(data.path, world.fs)
    invites = None if authority is None else StoredInvites(store)
    joining = None if authority is None or invites is None else _joining(authority, invites, identity, driver)
    endpoint = _make_endpoint(
        config, world, identity, driver=driver, bulk_server=bulk_server, joining=joining, clones=clones
    )
    certificate = CertificateKeeper(
        data.path,
        identity,
        authority=authority,
        joining=joining,
        driver=driver,
        alarms=alarms,
        clock=world.clock,
        rng=world.rng,
        fs=world.fs,
        net=world.net,
    )
    fetcher = Fetcher(
        store.blobs,
        peers=lambda: sorted(driver.connections),
        open=lambda peer: open_bulk(endpoint, driver, peer),
        clock=world.clock,
        rng=world.rng,
        node=engine.node,
    )
    keeper = ContentKeeper(engine=engine, driver=driver, store=store, fetcher=fetcher)
    scrub = Scrub(engine=engine, driver=driver, store=store, keeper=keeper, alarms=alarms, clock=world.clock)
    hearers += [lambda _blob: keeper.look_again(), scrub.note_damage]
    services = Services(
        config=config,
        identity=identity,
        engine=engine,
        driver=driver,
        store=store,
        fetcher=fetcher,
        keeper=keeper,
        scrub=scrub,
        imports=ImportDesk(store.blobs, keeper),
        endpoint=endpoint,
        certificate=certificate,
        invites=invites,
        alarms=alarms,
        clones=clones,
        events=events,
        clock=world.clock,
        rng=world.rng,
        fs=world.fs,
        started=world.clock.now(),
    )
    await _start(services, stack, fail)
    return services


async def _open_store(
    config: Config,
    world: World,
    data: DataDir,
    fail: Callable[[BaseException], None],
    hearers: list[Callable[[bytes], None]],
) -> Store:
    def damaged(blob: bytes, _reason: str) -> None:
        for hear in hearers:  # None yet while the store is being opened.
            hear(blob)

    return await Store.open(
        data,
        fs=world.fs,
        clock=world.clock,
        rng=world.rng,
        on_fatal=fail,
        on_corrupt=damaged,
        reserve_bytes=int(config.storage.reserve_bytes),
        executor=world.executor,
        vfs=world.vfs,
    )


async def _start(services: Services, stack: AsyncExitStack, fail: Callable[[BaseException], None]) -> None:
    """Connect the parts to each other and set them going; they stop in the reverse order."""
    driver, keeper, endpoint = services.driver, services.keeper, services.endpoint
    driver.endpoint = endpoint
    driver.callbacks.group_changed = keeper.changed
    driver.callbacks.peers_changed = services.fetcher.peers_changed
    driver.callbacks.mismatch = lambda effect: alarm_mismatch(services.alarms, driver, effect)
    driver.callbacks.cloned = lambda peer, remote: services.clones.raise_for(
        peer, remote, is_own=False, name=driver.name(peer)
    )
    driver.callbacks.fatal = fail
    stack.callback(services.clones.close)
    await keeper.load()
    await services.scrub.load()
    await endpoint.start()
    stack.push_async_callback(endpoint.close)
    driver.start()
    stack.push_async_callback(boot.save_roots, services.engine, services.store)
    stack.push_async_callback(driver.close)
    stack.push_async_callback(services.fetcher.close)
    restoration = Restoration(
        services.config.node.data_dir,
        driver=driver,
        keeper=keeper,
        alarms=services.alarms,
        clock=services.clock,
        fs=services.fs,
    )
    restoration.start()
    stack.push_async_callback(restoration.close)
    services.certificate.start()
    stack.push_async_callback(services.certificate.close)
    keeper.start()
    stack.push_async_callback(keeper.close)
    services.scrub.start()
    stack.push_async_callback(services.scrub.close)


def _make_endpoint(
    config: Config,
    world: World,
    identity: Identity,
    *,
    driver: GossipDriver,
    bulk_server: BulkServer,
    joining: JoinService | None,
    clones: CloneAlarm,
) -> Endpoint:
    def connected(connection: Connection) -> None:
        if connection.alpn == ALPN_BULK:
            driver.watch(connection)
            if driver.standing.is_serving:
                bulk_server.serve(connection)
            else:
                connection.close(driver.standing.reason)
        else:
            driver.connected(connection, dialled=None)

    return Endpoint(
        identity,
        EndpointConfig(
            host=config.listen.host,
            port=config.listen.port,
            advertise=config.listen.advertise,
            agent=f"crdt-merge-node/{VERSION}",
            features=_features(config, has_ca=joining is not None),
            instance=new_instance(identity.node, world.clock.now()),
        ),
        net=world.net,
        clock=world.clock,
        rng=world.rng,
        admit=lambda peer: driver.engine.overlay.refusal(peer, now=world.clock.monotonic()),
        on_connection=connected,
        on_refused=driver.refused,
        on_twin=lambda remote: clones.raise_for(identity.node, remote, is_own=True),
        join_service=joining,
        contexts=world.contexts,
    )


def _features(config: Config, *, has_ca: bool) -> tuple[str, ...]:
    name = (f"name={config.node.name}",) if config.node.name else ()
    return (*name, CA_FEATURE) if has_ca else name


def _joining(
    authority: CertificateAuthority, invites: StoredInvites, identity: Identity, driver: GossipDriver
) -> JoinService:
    return JoinService(
        authority,
        invites,
        cluster_name=identity.cluster_name,
        clock=driver.clock,
        introducers=lambda: _introducers(driver),
        admit=lambda node: driver.engine.overlay.refusal(node, now=driver.clock.monotonic()),
        closed=lambda: driver.standing.reason,
        on_joined=lambda node, remote: log.info("node.admitted", peer=node, remote=remote),
    )


def _introducers(driver: GossipDriver) -> tuple[str, ...]:
    """Return addresses of members for a new node to dial, this node's own first."""
    assert driver.endpoint is not None, "joiners come through the endpoint"
    own = driver.endpoint.advertised or local_addresses(driver.endpoint.address[1])
    return own + tuple(addresses[0] for _, addresses in driver.engine.overlay.introductions())
