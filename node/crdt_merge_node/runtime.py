"""The composition root: opens the parts of a node in order, runs them, closes them in the reverse order.

    lock the data directory -> identity -> store -> state rebuilt from operations -> peers -> commands

Each step may rely on the ones before it; a failure closes what is open. The node is *ready* when peers and
commands are heard. How long it runs is decided in ``daemon``; how peers reach it is put together in
``listening``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from crdt_merge_protocol.engine import Engine

from . import boot
from .alarms import Alarms
from .api import LocalNode
from .attesting import alarm_mismatch
from .bulk import BulkServer, Fetcher
from .cloning import CloneAlarm
from .config import Config
from .control.service import ControlServer
from .control.socket_path import control_socket
from .dialling import open_bulk
from .gossip import GossipDriver
from .imports import ImportDesk
from .keeper import ContentKeeper
from .leaving import refuse_if_left
from .listening import make_endpoint, make_join_service
from .ports import Net
from .renewal import CertificateKeeper
from .restoring import Restoration
from .scrub import Scrub
from .services import Services
from .storage import DataDir, Store
from .telemetry.counters import LagMeter
from .telemetry.events import EventLog
from .telemetry.logging import get_logger
from .transport import Endpoint, Identity, StoredInvites, load_authority
from .version import VERSION
from .world import World

log = get_logger()

Facts = dict[str, Any]


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
    invites = StoredInvites(store) if authority else None
    joining = make_join_service(authority, invites, identity, driver) if authority and invites else None
    endpoint = make_endpoint(
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
    fetcher = _make_fetcher(store, driver, endpoint, world)
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


def _make_fetcher(store: Store, driver: GossipDriver, endpoint: Endpoint, world: World) -> Fetcher:
    return Fetcher(
        store.blobs,
        peers=lambda: sorted(driver.connections),
        open=lambda peer: open_bulk(endpoint, driver, peer),
        clock=world.clock,
        rng=world.rng,
        node=driver.engine.node,
    )


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
