"""A bulk transfer and gossip on one link of known latency and bandwidth, in virtual time (TARGETS C6)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from random import Random

from crdt_merge_node.bulk import BulkServer, Fetcher
from crdt_merge_node.ports import SeededRng, SystemFs
from crdt_merge_node.transport import ALPN_BULK, ALPN_GOSSIP, Endpoint, EndpointConfig, Identity
from crdt_merge_node.transport.connection import Connection, Lane
from crdt_merge_node.transport.identity import load_authority, prepare_keys, write_membership
from crdt_merge_protocol.limits import MIB
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.bulk import HaveQuery
from crdt_merge_simulations.link import Direction
from crdt_merge_simulations.network import PORT, MachineNet, Network, host_of
from crdt_merge_simulations.plaintext import PlaintextContexts
from cryptography import x509

from .bulk import InlineExecutor, LoopClock, MemoryStore, pattern, run

PROBE_EVERY_S = 0.01


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured."""

    idle_p99_s: float
    busy_p99_s: float
    """One way, from the node that sends the blob to the node that fetches it."""
    probes: int
    link_share: float
    """How much of the link the transfer used."""


class _Side:
    """One node: an endpoint and a store in memory."""

    def __init__(self, directory: Path, number: int, network: Network) -> None:
        self.identity = Identity.load(directory, SystemFs())
        self.store = MemoryStore()
        self.server = BulkServer(self.store, executor=InlineExecutor())
        self.gossip: list[Connection] = []
        certificate = x509.load_pem_x509_certificate(self.identity.certificate_path.read_bytes())
        self.endpoint = Endpoint(
            self.identity,
            EndpointConfig(),
            net=MachineNet(network, number),
            clock=LoopClock(),
            rng=SeededRng(number),
            admit=lambda _: None,
            on_connection=self._accept,
            contexts=PlaintextContexts(certificate),
        )

    def _accept(self, connection: Connection) -> None:
        if connection.alpn == ALPN_BULK:
            self.server.serve(connection)
        else:
            connection.on_message = lambda _connection, _message: None
            self.gossip.append(connection)


def make_members(root: Path) -> tuple[Path, Path]:
    """Write the identities of two members of a cluster."""
    fs, rng = SystemFs(), SeededRng(6)
    now = 1_790_000_000.0
    Identity.create(root / "a", "link", fs=fs, rng=rng, now=now)
    authority = load_authority(root / "a", fs)
    assert authority is not None
    key, tls_key = prepare_keys(root / "b", fs=fs, rng=rng)
    certificate = authority.issue(tls_key.public_key(), key.node_id, now=now)
    write_membership(root / "b", certificate, authority.certificate, name="link", introducers=(), fs=fs)
    return root / "a", root / "b"


def gossip_beside_bulk(root: Path, *, bytes_per_s: float, latency_s: float, blob_mib: int) -> Figures:
    """Return how long messages take on an idle link and beside a transfer that fills it."""
    return run(_measure(*make_members(root), bytes_per_s, latency_s, blob_mib * MIB))


async def _measure(a: Path, b: Path, bytes_per_s: float, latency_s: float, nbytes: int) -> Figures:
    loop = asyncio.get_running_loop()
    network = Network(loop)  # type: ignore[arg-type]  # Any loop on virtual time will do.
    network.is_content_traced = False
    network.socket_bytes = round(latency_s * bytes_per_s)  # As TCP learns it: what fills the link.
    for ends in ((0, 1), (1, 0)):
        network.directions[ends] = Direction(latency_s, bytes_per_s, Random(str(ends)))
    source, target = _Side(a, 0, network), _Side(b, 1, network)
    await source.endpoint.start()
    address = f"{host_of(0)}:{PORT}"
    line = await target.endpoint.dial(address, alpn=ALPN_GOSSIP)
    sent: list[float] = []
    seen: list[float] = []

    def arrived(_connection: Connection, _message: Message) -> None:
        seen.append(loop.time() - sent[len(seen)])

    line.on_message = arrived
    blob = source.store.add(b"".join(pattern(MIB, seed) for seed in range(nbytes // MIB)))
    fetcher = Fetcher(
        target.store,
        node=target.identity.node,
        peers=lambda: [source.identity.node],
        open=lambda peer: target.endpoint.dial(address, alpn=ALPN_BULK, expect=peer),
        clock=LoopClock(),
        rng=Random(1),
        executor=InlineExecutor(),
    )
    await asyncio.sleep(1)

    async def probe() -> None:
        sent.append(loop.time())
        source.gossip[0].send(HaveQuery(blob=len(sent).to_bytes(32, "big")), Lane.OPERATIONS)
        await asyncio.sleep(PROBE_EVERY_S)

    for _ in range(100):
        await probe()
    await asyncio.sleep(1)
    idle_count, began = len(seen), loop.time()
    fetch = asyncio.create_task(fetcher.want_blob(blob, nbytes))
    while not fetch.done():
        await probe()
    share = nbytes / bytes_per_s / (loop.time() - began)
    await fetch
    await asyncio.sleep(1)
    await fetcher.close()
    await source.server.close()
    await asyncio.gather(source.endpoint.close(), target.endpoint.close())
    return Figures(
        idle_p99_s=_p99(seen[:idle_count]),
        busy_p99_s=_p99(seen[idle_count:]),
        probes=len(seen),
        link_share=share,
    )


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * len(seconds))]
