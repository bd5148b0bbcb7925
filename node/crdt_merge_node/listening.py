"""How peers and joiners reach a node: its endpoint, put together from its parts."""

from __future__ import annotations

from .bulk import BulkServer
from .cloning import CloneAlarm, new_instance
from .config import Config
from .gossip import GossipDriver
from .ports import local_addresses
from .renewal import CA_FEATURE
from .telemetry.logging import get_logger
from .transport import (
    ALPN_BULK,
    Connection,
    Endpoint,
    EndpointConfig,
    Identity,
    JoinService,
    StoredInvites,
)
from .transport.certificates import CertificateAuthority
from .version import VERSION
from .world import World

log = get_logger()


def make_endpoint(
    config: Config,
    world: World,
    identity: Identity,
    *,
    driver: GossipDriver,
    bulk_server: BulkServer,
    joining: JoinService | None,
    clones: CloneAlarm,
) -> Endpoint:
    """Return the endpoint of a node, not yet listening; what connects is given to the part that it is for."""

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


def make_join_service(
    authority: CertificateAuthority, invites: StoredInvites, identity: Identity, driver: GossipDriver
) -> JoinService:
    """Return what admits new nodes, for a node that has the key of the cluster's CA."""
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
