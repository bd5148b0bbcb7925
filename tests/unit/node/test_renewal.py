"""Certificates over years of virtual time: nobody drops out, and it is said in time when somebody would."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from crdt_merge_node.alarms import Alarms
from crdt_merge_node.errors import PeerUnreachableError, TransportError
from crdt_merge_node.ports import SeededRng, SystemFs
from crdt_merge_node.renewal import CA_FEATURE, DAY_S, CertificateKeeper
from crdt_merge_node.transport.certificates import CA_DAYS, LEAF_DAYS, Term, certificate_from_der, cluster_id
from crdt_merge_node.transport.contexts import TlsFiles
from crdt_merge_node.transport.identity import Identity, load_authority, read_certificates
from crdt_merge_node.transport.invites import StoredInvites
from crdt_merge_node.transport.join import JoinService
from crdt_merge_simulations.plaintext import PlaintextContext, PlaintextObject
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support.transport_world import Node, World, member, quiet_world

YEAR_S = 365 * DAY_S


class _JudgingObject(PlaintextObject):
    """Judges the certificates of both sides by the clock of the world, as OpenSSL does by the machine's."""

    world: World
    cas: list[x509.Certificate]

    def do_handshake(self) -> None:
        super().do_handshake()
        shown = self.getpeercert(True)
        assert shown is not None
        now, leaf = self.world.now(), certificate_from_der(shown)
        for certificate in (leaf, *self.cas):
            term = Term.of(certificate)
            if not term.begins_at <= now <= term.expires_at:
                error = ssl.SSLError(ssl.SSL_ERROR_SSL, "[SSL: CERTIFICATE_VERIFY_FAILED]")
                error.library, error.reason = "SSL", "CERTIFICATE_EXPIRED"
                raise error
        leaf.verify_directly_issued_by(self.cas[0])


class _JudgingContext(PlaintextContext):
    def __init__(self, world: World, files: TlsFiles, alpn: str) -> None:
        leaf = x509.load_pem_x509_certificate(files.certificate_path.read_bytes())
        super().__init__(leaf.public_bytes(Encoding.DER), alpn)
        self._world = world
        self._ca = x509.load_pem_x509_certificate(files.ca_path.read_bytes())

    def wrap_bio(self, incoming: Any, outgoing: Any, *, server_side: bool) -> PlaintextObject:
        made = _JudgingObject(incoming, outgoing, self._certificate, self._alpn, is_server=server_side)
        made.world, made.cas = self._world, [self._ca]
        return made


class _JudgingContexts:
    """Reads the identity files when it is asked, and never again: what reloading is for."""

    def __init__(self, world: World) -> None:
        self._world = world

    def server(self, identity: TlsFiles, *, hears_joiners: bool) -> ssl.SSLContext:
        return cast(ssl.SSLContext, _JudgingContext(self._world, identity, ""))

    def client(self, identity: TlsFiles, alpn: str) -> ssl.SSLContext:
        return cast(ssl.SSLContext, _JudgingContext(self._world, identity, alpn))


class _Meta:
    async def put_meta(self, key: str, value: bytes) -> None: ...

    async def get_meta(self, key: str) -> bytes | None:
        return None


class _Member:
    """An endpoint with a keeper of its certificate, and no gossip: years of pings would be billions."""

    def __init__(self, world: World, data_dir: Path) -> None:
        self.world, self.data_dir, self.fs = world, data_dir, SystemFs()
        self.identity = Identity.load(data_dir, self.fs)
        self.problem = ""
        self.addresses: list[str] = []
        """Of others, as far as it knows."""
        self.failures: list[BaseException] = []
        authority = load_authority(data_dir, self.fs)
        self.joining = authority and JoinService(
            authority,
            StoredInvites(_Meta()),
            cluster_name="prod",
            clock=world,
            introducers=tuple,
            admit=lambda node: self.node.blocked.get(node),  # noqa: PLW0108  It is made below.
        )
        self.node = Node(self.identity, world, join_service=self.joining, contexts=_JudgingContexts(world))
        world.nodes.append(self.node)
        self.alarms = Alarms(world)
        overlay = SimpleNamespace(peers={}, introductions=lambda: [(b"", (a,)) for a in self.addresses])
        driver: Any = SimpleNamespace(
            connections={},
            engine=SimpleNamespace(overlay=overlay),
            endpoint=self.node.endpoint,
            fail=self.failures.append,
        )
        self.driver = driver
        self.keeper = CertificateKeeper(
            data_dir,
            self.identity,
            authority=authority,
            joining=self.joining,
            driver=driver,
            alarms=self.alarms,
            clock=world,
            rng=SeededRng(str(data_dir)),
            fs=self.fs,
            net=world.net,
        )

    async def start(self) -> _Member:
        await self.node.endpoint.start()
        self.keeper.start()
        return self

    async def reaches(self, other: _Member) -> bool:
        try:
            connection = await self.node.endpoint.dial(other.node.address, expect=other.identity.node)
        except TransportError as error:
            self.problem = f"{(self.world.now() - self.world.started) / YEAR_S:.2f} years: {error}"
            return False
        connection.abort("seen")
        return True

    @property
    def severities(self) -> list[str]:
        return [alarm.severity for alarm in self.alarms.standing()]


class _Cluster:
    """Members, the first of whom hold the CA."""

    def __init__(self, world: World, root: Path) -> None:
        self.world, self.root = world, root
        Identity.create(root / "0", "prod", fs=SystemFs(), rng=SeededRng("holder"), now=world.now())
        self.members: list[_Member] = []

    async def grow(self, count: int, *, age_s: float = 0.0) -> list[_Member]:
        authority = load_authority(self.root / "0", SystemFs())
        for number in range(len(self.members), count):
            path = self.root / str(number)
            if number:
                member(path, authority, SeededRng(number), now=self.world.now() - age_s)
            self.members.append(await _Member(self.world, path).start())
        for each in self.members:
            each.addresses = [other.node.address for other in self.members if other is not each]
        return self.members

    async def all_reach_all(self) -> bool:
        pairs = [(one, two) for one in self.members for two in self.members if one is not two]
        return all([await one.reaches(two) for one, two in pairs])

    async def close(self) -> None:
        for each in self.members:
            await each.keeper.close()
            await each.node.endpoint.close()
        assert [failure for each in self.members for failure in each.failures] == []


@pytest.fixture
def world() -> Iterator[World]:
    with quiet_world() as found:
        yield found


@pytest.fixture
def cluster(world: World, tmp_path: Path) -> _Cluster:
    return _Cluster(world, tmp_path)


def _run(world: World, story: Any) -> None:
    """Run a story that takes years; ``World.run`` allows ten minutes."""
    world.loop.run_until_complete(story)


def test_in_twelve_years_no_node_drops_out(world: World, cluster: _Cluster) -> None:
    """Longer than the CA's own certificate lives; the node key, hence the author, is the same at the end."""

    async def story() -> None:
        members = await cluster.grow(3)
        keys = [each.identity.node for each in members]
        for _ in range(12 * 12):
            await asyncio.sleep(YEAR_S / 12)
            assert await cluster.all_reach_all(), [each.problem for each in members]
            assert [alarm for each in members for alarm in each.severities] == []
        for each, key in zip(members, keys, strict=True):
            now = Identity.load(each.data_dir, SystemFs())
            _, ca = read_certificates(each.data_dir, SystemFs())

            assert (now.node, cluster_id(ca)) == (key, each.identity.cluster)
            assert each.keeper.expires_at > world.now() + LEAF_DAYS * DAY_S / 4
            assert Term.of(ca).expires_at > world.started + 1.5 * CA_DAYS * DAY_S
        await cluster.close()

    _run(world, story())


def test_without_a_holder_of_the_ca_it_alarms_and_recovers(world: World, cluster: _Cluster) -> None:
    async def story() -> None:
        holder, node = await cluster.grow(2)
        await holder.keeper.close()
        await holder.node.endpoint.close()
        expires = node.keeper.expires_at
        seen: dict[int, list[str]] = {}
        for days in (31, 29, 8, 6):
            await asyncio.sleep(expires - days * DAY_S - world.now())
            seen[days] = node.severities
        assert seen == {31: [], 29: ["warning"], 8: ["warning"], 6: ["error"]}
        [alarm] = node.alarms.standing()
        assert "could not be renewed" in alarm.message
        assert node.keeper.info().last_error

        again = await _Member(world, holder.data_dir).start()
        cluster.members[0] = again
        node.addresses = [again.node.address]
        await asyncio.sleep(DAY_S)

        assert node.severities == []
        assert node.keeper.expires_at > world.now() + (LEAF_DAYS - 2) * DAY_S
        assert await cluster.all_reach_all()
        await cluster.close()

    _run(world, story())


def test_who_holds_the_ca_is_asked_first(world: World, cluster: _Cluster) -> None:
    async def story() -> None:
        holder, node, *others = await cluster.grow(4, age_s=0.0)
        target = SimpleNamespace(addresses=[holder.node.address])
        node.driver.engine.overlay.peers[holder.identity.node] = target
        hello = SimpleNamespace(features=("name=x", CA_FEATURE))
        node.driver.connections[holder.identity.node] = SimpleNamespace(hello=hello)

        assert node.keeper._addresses()[0] == holder.node.address
        assert len(node.keeper._addresses()) == 3
        await node.keeper.renew()
        assert [other.node.refused for other in others] == [[], []]
        await cluster.close()

    _run(world, story())


def test_a_blocked_member_gets_no_new_certificate(world: World, cluster: _Cluster) -> None:
    async def story() -> None:
        holder, node = await cluster.grow(2)
        holder.node.blocked[node.identity.node] = "blocked by the operator of this node"
        before = node.keeper.expires_at
        await asyncio.sleep(DAY_S)
        with pytest.raises(PeerUnreachableError, match="blocked by the operator"):
            await node.keeper.renew()

        assert node.keeper.expires_at == before
        await cluster.close()

    _run(world, story())


def test_nobody_but_a_holder_signs(world: World, cluster: _Cluster) -> None:
    async def story() -> None:
        _, node, other = await cluster.grow(3)
        node.addresses = [other.node.address]
        with pytest.raises(PeerUnreachableError, match="does not hold the cluster's CA"):
            await node.keeper.renew()
        await cluster.close()

    _run(world, story())


def test_renewals_of_nodes_made_together_are_spread(tmp_path: Path) -> None:
    identity = Identity.create(tmp_path / "0", "prod", fs=SystemFs(), rng=SeededRng(1), now=0.0)
    authority = load_authority(tmp_path / "0", SystemFs())
    assert authority is not None
    key = identity.node_key._private.public_key()
    shares = []
    for _ in range(50):
        term = Term.of(authority.issue(key, identity.node, now=0.0))
        shares.append((term.renewed_at - term.begins_at) / (term.expires_at - term.begins_at))

    assert 0.61 < min(shares) < max(shares) <= 2 / 3
    assert max(shares) - min(shares) > 0.03
