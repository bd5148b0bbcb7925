"""Joining with a token: once, in time, by the right node, to the right cluster, and safe to repeat."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from crdt_merge_node.errors import ConfigError, FullError, PeerRefusedError, PeerUnreachableError
from crdt_merge_node.ports import SeededRng, SystemFs
from crdt_merge_node.transport.certificates import create_request
from crdt_merge_node.transport.contexts import joiner_context
from crdt_merge_node.transport.identity import Identity, load_authority
from crdt_merge_node.transport.invites import StoredInvites, Token, create_invite
from crdt_merge_node.transport.join import JoinService, join, join_proof
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.limits import JOIN_TIMEOUT_S
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.join import JoinGrant, JoinOffer, JoinRequest
from crdt_merge_protocol.messages.membership import Peers, Refuse
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.transport_world import Node, RawTls

SECRET = bytes(range(16))


class Meta:
    """Small facts in memory, in the shape of the node's store."""

    def __init__(self) -> None:
        self.facts: dict[str, bytes] = {}

    async def put_meta(self, key: str, value: bytes) -> None:
        self.facts[key] = value

    async def get_meta(self, key: str) -> bytes | None:
        return self.facts.get(key)


class Door:
    """A node that admits, and one token of it."""

    def __init__(self, world: Any, members: SimpleNamespace) -> None:
        self.world, self.members = world, members
        self.meta = Meta()
        self.invites = StoredInvites(self.meta)
        self.joined: list[bytes] = []
        self.node: Node
        self.token: str

    async def open(self, *, expires_in_s: float = 60) -> Door:
        service = JoinService(
            self.members.authority,
            self.invites,
            cluster_name="prod",
            clock=self.world,
            introducers=lambda: (self.node.address, "b.example:7946"),
            on_joined=lambda node, _: self.joined.append(node),
        )
        self.node = await self.world.node(self.members.a, join_service=service)
        self.token = await create_invite(
            self.invites,
            cluster=self.members.a.cluster,
            addresses=(self.node.address,),
            secret=SECRET,
            expires_at=int(self.world.now() + expires_in_s),
        )
        return self

    async def join(self, data_dir: Path, **changes: Any) -> Identity:
        token = dataclasses.replace(Token.from_text(self.token), **changes)
        fs, rng = SystemFs(), SeededRng(str(data_dir))
        return await join(token.to_text(), data_dir, fs=fs, net=self.world.net, clock=self.world, rng=rng)


@pytest.fixture
def door(world: Any, members: SimpleNamespace) -> Door:
    return Door(world, members)


def test_a_joiner_becomes_a_member(door: Door, world: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        await door.open()
        identity = await door.join(tmp_path / "n")
        await world.settle()
        node = await world.node(identity)
        connection = await node.endpoint.dial(door.node.address)

        assert door.joined == [identity.node]
        assert (identity.cluster, identity.cluster_name) == (door.members.a.cluster, "prod")
        assert identity.introducers == (door.node.address, "b.example:7946")
        assert connection.peer == door.members.a.node
        assert not (tmp_path / "n" / "ca").exists()

    world.run(scenario())


@pytest.mark.parametrize(
    ("changes", "delay_s", "words"),
    [
        ({"secret": bytes(16)}, 0, "the token is not one of this node's"),
        ({}, 61, "the token has expired"),
        ({"expires_at": 1 << 40}, 61, "the token has expired"),
    ],
)
def test_a_wrong_or_late_token_is_refused_with_the_reason_on_both_sides(
    door: Door, tmp_path: Path, changes: dict[str, Any], delay_s: float, words: str
) -> None:
    async def scenario() -> None:
        await door.open()
        await asyncio.sleep(delay_s)
        with pytest.raises(PeerRefusedError, match=words) as caught:
            await door.join(tmp_path / "n", **changes)
        await door.world.settle()

        assert caught.value.exit_code == 5
        assert words in door.node.reasons[0]
        assert door.joined == []
        assert not Identity.is_present(tmp_path / "n", SystemFs())

    door.world.run(scenario())


def test_a_token_admits_one_node(door: Door, world: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        await door.open()
        first = await door.join(tmp_path / "n")
        with pytest.raises(PeerRefusedError, match="already used by another node"):
            await door.join(tmp_path / "m")
        await world.settle()

        assert door.joined == [first.node]
        assert "already used by another node" in door.node.reasons[0]

    world.run(scenario())


@pytest.mark.parametrize("lost_after", [1, 200, 1200, 1700, 2200, 2500])
def test_whatever_is_lost_the_same_command_run_again_joins(
    door: Door, world: Any, tmp_path: Path, lost_after: int
) -> None:
    """The admitting side's end is cut after so many bytes: in the handshake, the offer, or the grant."""

    async def scenario() -> None:
        await door.open()
        world.net.segment = 1
        attempt = asyncio.create_task(door.join(tmp_path / "n"))
        await world.until(lambda: world.net.pipes)
        pipe = world.net.pipes[0][1]
        await world.until(
            lambda: len(pipe.sent) - pipe.get_write_buffer_size() >= lost_after or attempt.done()
        )
        pipe.abort()
        first = await asyncio.gather(attempt, return_exceptions=True)
        world.net.segment = 1 << 30
        identity = first[0] if isinstance(first[0], Identity) else await door.join(tmp_path / "n")
        await world.settle()

        assert isinstance(first[0], PeerUnreachableError | Identity)
        assert set(door.joined) == {identity.node}

    world.run(scenario())


def test_the_secret_is_not_shown_to_another_cluster(
    world: Any, members: SimpleNamespace, door: Door, tmp_path: Path
) -> None:
    """Somebody answers at the address of the token, with a CA of its own."""

    async def scenario() -> None:
        await door.open()
        authority = load_authority(members.root / "x", SystemFs())
        assert authority is not None
        liar = JoinService(authority, door.invites, cluster_name="prod", clock=world, introducers=lambda: ())
        impostor = await world.node(members.stranger, join_service=liar)
        with pytest.raises(PeerRefusedError, match="the token is for another cluster"):
            await door.join(tmp_path / "n", addresses=(impostor.address,))
        await world.settle()

        assert "the token is for another cluster" in impostor.reasons[0]
        assert await door.invites.consume(next_invite(door), bytes(32), now=0) == "ok"

    world.run(scenario())


def next_invite(door: Door) -> bytes:
    return bytes.fromhex(next(iter(door.meta.facts)).removeprefix("invite/"))


def test_the_secret_is_not_shown_to_an_impostor_with_the_right_ca_certificate(
    world: Any, members: SimpleNamespace, door: Door, tmp_path: Path
) -> None:
    """A CA certificate is public; the connection itself must be certified by it."""

    async def scenario() -> None:
        await door.open()
        liar = JoinService(
            members.authority, door.invites, cluster_name="prod", clock=world, introducers=lambda: ()
        )
        impostor = await world.node(members.stranger, join_service=liar)
        with pytest.raises(PeerRefusedError, match="was not signed by this cluster's CA"):
            await door.join(tmp_path / "n", addresses=(impostor.address,))
        await world.settle()

        assert "was not signed by this cluster's CA" in impostor.reasons[0]

    world.run(scenario())


async def ask(world: Any, door: Door, **changes: Any) -> list[Message]:
    """Send a join request that is proper but for ``changes``, and return what came back."""
    key = NodeKey(b"k" * 32)
    request = changes.pop("request", None) or create_request(Ed25519PrivateKey.generate())
    proper = JoinRequest(
        secret=SECRET,
        node=key.node_id,
        request=request,
        proof=key.sign(join_proof(door.members.a.cluster, request)),
    )
    client = await RawTls(joiner_context()).connect(world, door.node)
    client.send(dataclasses.replace(proper, **changes))
    await world.settle()
    return client.messages


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"node": NodeKey(b"v" * 32).node_id}, "E1204"),
        ({"node": bytes(32)}, "E1204"),
        ({"proof": bytes(64)}, "E1204"),
        ({"request": b"not a request"}, "E1604"),
    ],
)
def test_a_bad_request_is_refused_and_the_token_stays_good(
    door: Door, world: Any, changes: dict[str, Any], code: str
) -> None:
    """Above all: nobody is certified under the id of a node whose key he does not hold."""

    async def scenario() -> None:
        await door.open()
        offer, refusal = await ask(world, door, **changes)
        assert isinstance(offer, JoinOffer)
        assert isinstance(refusal, Refuse)
        assert refusal.code == code
        assert refusal.reason in door.node.reasons[0]
        _, grant = await ask(world, door)

        assert isinstance(grant, JoinGrant)

    world.run(scenario())


def test_a_joiner_is_heard_on_nothing_but_joining(door: Door, world: Any) -> None:
    async def scenario() -> None:
        await door.open()
        client = await RawTls(joiner_context()).connect(world, door.node)
        client.send(Peers(peers=()))
        await world.settle()

        assert client.told == "Peers instead of a join request"
        assert "Peers instead of a join request" in door.node.reasons[0]

    world.run(scenario())


def test_a_silent_joiner_is_sent_away(door: Door, world: Any) -> None:
    async def scenario() -> None:
        await door.open()
        client = await RawTls(joiner_context()).connect(world, door.node)
        await asyncio.sleep(JOIN_TIMEOUT_S + 0.1)

        assert "said nothing for 10 s" in client.told
        assert client.is_closed

    world.run(scenario())


def test_a_joiner_tries_every_address_of_the_token(door: Door, world: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        await door.open()
        identity = await door.join(tmp_path / "n", addresses=("127.0.0.1:1", door.node.address))

        assert door.joined == [identity.node]
        with pytest.raises(PeerUnreachableError, match="no node of the token can be reached"):
            await door.join(tmp_path / "m", addresses=("127.0.0.1:1",))

    world.run(scenario())


def test_a_member_does_not_join_again_by_accident(door: Door, world: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        await door.open()
        await door.join(tmp_path / "n")
        with pytest.raises(ConfigError, match="already holds a node"):
            await door.join(tmp_path / "n")

    world.run(scenario())


def test_a_node_without_the_ca_sends_joiners_away(
    door: Door, world: Any, members: SimpleNamespace, tmp_path: Path
) -> None:
    async def scenario() -> None:
        await door.open()
        other = await world.node(members.b)
        with pytest.raises(PeerRefusedError, match="only members are heard here"):
            await door.join(tmp_path / "n", addresses=(other.address,))

    world.run(scenario())


def test_trouble_of_the_admitting_node_is_its_own_business(door: Door, world: Any, tmp_path: Path) -> None:
    """A stranger learns that it failed; the operator learns why."""

    async def fail(key: str, value: bytes) -> None:
        raise FullError("no room left in /var/lib/secret-place.")

    async def scenario() -> None:
        await door.open()
        door.meta.put_meta = fail  # type: ignore[method-assign]
        with pytest.raises(PeerRefusedError, match="cannot admit anybody at the moment") as caught:
            await door.join(tmp_path / "n")
        await world.settle()

        assert "secret-place" not in caught.value.message
        assert "secret-place" in door.node.reasons[0]
        assert door.joined == []

    world.run(scenario())
