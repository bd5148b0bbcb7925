"""A live node, an honest peer of it, and whoever attacks it over a real socket with a valid certificate.

Every attack runs inside :meth:`Siege.unharmed`, which holds the node to what SCENARIOS 6.2 asks of every bad
input: its state and its files are what they were, its memory grew by at most 8 MiB at any moment, nothing but
the one family of errors was met, and the honest peer, still on the same connection, is served.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import structlog
from crdt_merge_node.ports import TcpNet
from crdt_merge_node.telemetry.logging import log_level, set_log_level
from crdt_merge_node.transport.certificates import CertificateAuthority, key_to_pem
from crdt_merge_node.transport.contexts import ALPN_GOSSIP, client_context
from crdt_merge_node.transport.identity import Identity, load_authority
from crdt_merge_node.transport.refusals import explain
from crdt_merge_node.transport.tls import PumpBuffers, TlsPump
from crdt_merge_protocol.errors import CrdtMergeError, RemoteProtocolError
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.limits import MIB
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.membership import Goodbye, Hello, Refuse
from crdt_merge_protocol.operations import SignedOperation
from crdt_merge_protocol.wire import FrameDecoder, encode_frame
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from .authors import Author
from .whole_nodes import Site, WholeNode, save_model

GROUP_NAME = "besieged"
MEMORY_BYTES_MAX = 8 * MIB
PATIENCE_S = 300.0
"""Nothing takes a hundredth of it, but on a machine that does other things."""
PROBE_KIND = 200
"""A kind that no release knows: it is stored and relayed, and changes no view."""


def protocol_codes() -> set[str]:
    """Return the codes of the one family of errors that bytes of a peer may lead to."""
    found, pending = set(), [RemoteProtocolError]
    while pending:
        kind = pending.pop()
        found.add(kind.code)
        pending.extend(kind.__subclasses__())
    return found


class PeakMemory:
    """How far the resident memory of this process rose above what it was, in bytes."""

    def __init__(self) -> None:
        self._can_reset = True
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._can_reset = False  # Then growth is measured, and not the peak.
        self._before = self._read("VmRSS:")

    @property
    def grown_bytes(self) -> int:
        return self._read("VmHWM:" if self._can_reset else "VmRSS:") - self._before

    @staticmethod
    def _read(name: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) << 10
        raise AssertionError(f"no {name} on this system")


@contextmanager
def bounded_memory(limit_bytes: int = MEMORY_BYTES_MAX) -> Iterator[None]:
    """Assert that memory stays within ``limit_bytes`` of what it is."""
    memory = PeakMemory()
    yield
    grown = memory.grown_bytes
    assert grown <= limit_bytes, f"{grown >> 10} KiB more than before, at most {limit_bytes >> 10} are fair"


class Hostile:
    """A raw connection in the hands of a test: valid TLS, no manners. A ``TlsApp``."""

    def __init__(
        self, context: ssl.SSLContext, identity: Identity, *, digested: Callable[[], Awaitable[None]]
    ) -> None:
        self.identity = identity
        self._digested = digested
        self.node = identity.node
        self.messages: list[Message] = []
        self.error: Exception | None = None
        self._pulse = asyncio.Event()
        self._ready = asyncio.get_running_loop().create_future()
        self.closed = asyncio.get_running_loop().create_future()
        self._decoder = FrameDecoder()
        self.pump = TlsPump(context, self, is_server=False, buffers=PumpBuffers())

    def hello(self, **changes: Any) -> Hello:
        """Return the greeting that this member would say, changed."""
        fields: dict[str, Any] = {
            "version_min": 1,
            "version_max": 1,
            "cluster": self.identity.cluster,
            "node": self.node,
            "nonce": os.urandom(16),
            "agent": "hostile",
            "addresses": (),
        }
        return Hello(**fields | changes)

    async def connect(self, address: str, *, is_greeted: bool = True) -> Hostile:
        """Connect; unless told otherwise greet as a member would, and wait for the answer."""
        host, _, port = address.rpartition(":")
        await TcpNet().connect(lambda: self.pump, host, int(port))
        async with asyncio.timeout(PATIENCE_S):
            await self._ready
        if is_greeted:
            self.send(self.hello())
            await self.hears(Hello)
        return self

    def send(self, *messages: Message) -> None:
        """Send well-formed frames."""
        for message in messages:
            self.pump.write(encode_frame(message))

    def raw(self, data: bytes) -> None:
        """Send bytes."""
        self.pump.write(data)

    async def writable(self) -> None:
        """Return once the node has taken most of what was sent."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.pump.is_writable and not self.closed.done():
                await self._pulse.wait()

    async def hears(self, kind: type[Any], *, count: int = 1) -> Any:
        """Return the last of ``count`` messages of a kind, once they have come."""
        async with asyncio.timeout(PATIENCE_S):
            while len(found := [message for message in self.messages if isinstance(message, kind)]) < count:
                assert not self.closed.done(), f"it closed: {self.told}"
                await self._pulse.wait()
        return found[count - 1]

    async def is_sent_away(self) -> str:
        """Return why, once the node has ended the connection."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.shield(self.closed)
        return self.told

    async def is_still_heard(self) -> None:
        """Return once the node has answered, on this connection, something said now, and dealt with all else.

        A ping is answered before the operations that came before it are checked.
        """
        from crdt_merge_protocol.messages.membership import Ping, Pong

        nonce = int.from_bytes(os.urandom(7))
        self.send(Ping(nonce=nonce))
        async with asyncio.timeout(PATIENCE_S):
            while Pong(nonce=nonce) not in self.messages:
                assert not self.closed.done(), f"it closed: {self.told}"
                await self._pulse.wait()
        await self._digested()

    @property
    def told(self) -> str:
        """What the other side said about the end: in band, else by an alert."""
        said = [message.reason for message in self.messages if isinstance(message, Refuse | Goodbye)]
        return said[-1] if said else explain(self.error).reason

    async def close(self) -> None:
        """Go, and return once the socket has gone."""
        self.pump.abort()
        await self.pump.lost

    def _beat(self) -> None:
        self._pulse.set()
        self._pulse = asyncio.Event()

    def tls_connecting(self) -> None: ...

    def tls_ready(self) -> None:
        self._ready.set_result(None)

    def tls_data(self, data: memoryview) -> None:
        self.messages += self._decoder.feed(data)
        self._beat()

    def tls_writable(self) -> None:
        self._beat()

    def tls_closed(self, error: Exception | None) -> None:
        self.error = error
        if not self.closed.done():
            self.closed.set_result(None)
        if not self._ready.done():
            self._ready.set_result(None)
        self._beat()


class Siege:
    """One besieged node and everybody around it."""

    def __init__(self, site: Site, live: WholeNode, honest: WholeNode, authority: CertificateAuthority):
        self.site = site
        directory = self.directory = site.directory
        self.live = live
        self.honest = honest
        self.authority = authority
        self.group: bytes = b""
        self.model = save_model(directory / "model.safetensors", 1.0)
        self.lines: list[Any] = []
        """Log lines of the attack that is, or was last, under way."""
        self._members = itertools.count()
        self._contexts: list[dict[str, Any]] = []

    @property
    def state(self) -> Any:
        """The durable state of the group on the besieged node."""
        return self.live.services.engine.state(self.group)

    @property
    def replica(self) -> Any:
        return self.live.services.engine.replicas[self.group]

    def member(self) -> Identity:
        """Return a new member of the cluster, certified as any other; nothing is synced to the disk."""
        directory = self.directory / f"hostile-{next(self._members)}"
        directory.mkdir()
        node_key, tls_key = NodeKey(os.urandom(32)), Ed25519PrivateKey.generate()
        issued = self.authority.issue(
            tls_key.public_key(), node_key.node_id, now=self.live.services.clock.now()
        )
        (directory / "tls.key").write_bytes(key_to_pem(tls_key))
        (directory / "tls.crt").write_bytes(issued.public_bytes(Encoding.PEM))
        (directory / "ca.crt").write_bytes(self.authority.certificate.public_bytes(Encoding.PEM))
        return Identity(directory, node_key, self.live.services.identity.cluster, "test", (), 0.0)

    def author(self, identity: Identity | None = None) -> Author:
        """Return somebody who signs operations of the group, and knows what the besieged node knows."""
        author = Author(self.state.genesis)
        author.key = identity.node_key if identity else NodeKey(os.urandom(32))
        author.node_id = author.key.node_id
        author.state = self.state.copy()
        author.log = os.urandom(16)
        return author

    @asynccontextmanager
    async def hostile(
        self,
        *,
        alpn: str = ALPN_GOSSIP,
        identity: Identity | None = None,
        is_greeted: bool = True,
        context: Callable[[Identity], ssl.SSLContext] | None = None,
    ) -> AsyncIterator[Hostile]:
        """Connect as a member nobody has met; the connection is gone afterwards, on both sides."""
        identity = identity or self.member()
        made = context(identity) if context else client_context(identity, alpn)
        hostile = Hostile(made, identity, digested=lambda: self._digested(identity.node))
        try:
            yield await hostile.connect(self.live.address, is_greeted=is_greeted)
        finally:
            await hostile.close()
            await self.live.until(lambda: hostile.node not in self.live.services.driver.connections)

    async def _digested(self, peer: bytes) -> None:
        """Return once the besieged node has dealt with all that has come of a peer."""
        driver = self.live.services.driver
        if (connection := driver.connections.get(peer)) is not None:
            done = asyncio.get_running_loop().create_future()
            driver._verifier.ended(connection, lambda: done.set_result(None))
            async with asyncio.timeout(PATIENCE_S):
                await done

    def shows(self, tag: str) -> bool:
        """Tell whether a contribution is visible on the besieged node."""
        view = self.state.view
        return tag in {shown.tag.hex() for shown in (*view.visible, *view.pending)}

    # --- what must hold -------------------------------------------------------------------------------

    def facts(self) -> tuple[Any, ...]:
        """Return all that an attack must not change."""
        state = self.state
        files = sorted(
            str(path.relative_to(self.directory))
            for path in self.live.services.config.node.data_dir.rglob("*")
            if not path.is_dir()  # Room for blobs by their first byte is made once.
        )
        return (
            sorted(self.live.services.engine.replicas),
            state.sync_root,
            len(state),
            state.view.fingerprint,
            state.heads(),
            sorted(self.live.services.store.blobs.digests()),
            files,
        )

    @asynccontextmanager
    async def unharmed(
        self, *, memory_bytes: int = MEMORY_BYTES_MAX, is_offence: bool | None = True
    ) -> AsyncIterator[None]:
        """Assert that what happens inside harms nothing.

        Args:
            memory_bytes: How far memory may rise meanwhile.
            is_offence: Whether it must be noted as an offence against the protocol, must not be (False), or
                may be (None).
        """
        before = self.facts()
        connection = self.live.services.driver.connections[self.honest.id]
        memory = PeakMemory()
        with structlog.testing.capture_logs() as lines:
            self.lines = lines
            yield
            await self.settled()
            grown = memory.grown_bytes
        assert self.facts() == before
        assert grown <= memory_bytes, f"{grown >> 10} KiB more, at most {memory_bytes >> 10} are fair"
        self._check_errors(is_offence)
        assert self.live.services.driver.connections[self.honest.id] is connection
        await self.serves_the_honest()

    def _check_errors(self, is_offence: bool | None) -> None:
        assert not self._contexts, f"an error reached the event loop: {self._contexts}"
        assert not self.live.running.failed.done()
        bugs = [
            line
            for line in self.lines
            if line["event"] in ("message.failed", "bulk.failed", "node.failed")
            or (line["event"].endswith(".failed") and not isinstance(line.get("error"), CrdtMergeError))
        ]
        assert not bugs, f"something other than a protocol error was met: {bugs}"
        if is_offence is not None:
            codes = self.codes()
            assert bool(codes) is is_offence, f"codes {codes} in {self.lines}"

    def codes(self) -> set[str]:
        """Return the codes of the protocol errors that the last attack led to."""
        said = {str(line.get("error_code")) for line in self.lines if line["event"] == "peer.refused"}
        said |= {str(line.get("reason"))[:5] for line in self.lines if line["event"] == "peer.left"}
        said |= {str(line.get("reason"))[:5] for line in self.lines if line["event"] == "bulk.left"}
        return said & protocol_codes()

    async def turns(self) -> None:
        """Let everything that is ready to run have its turn, sockets included."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def until_logged(self, lines: list[Any], check: Callable[[Any], bool]) -> None:
        """Return once one of the lines is such; something is logged from time to time by itself."""
        async with asyncio.timeout(PATIENCE_S):
            while not any(check(line) for line in list(lines)):  # noqa: ASYNC110 - lines tell nobody.
                await asyncio.sleep(0.005)

    async def settled(self) -> None:
        """Return once whatever was received has been dealt with, down to the disk."""
        await self.turns()
        await self.live.until(lambda: not self.replica.in_flight_count)

    async def serves_the_honest(self) -> SignedOperation:
        """Let the honest peer add an operation; return it once the besieged node has it."""
        signed = await self.honest.services.driver.author(self.group, PROBE_KIND, b"\x01" + os.urandom(8))
        await self.live.until(lambda: signed.id in self.state)
        return signed


@asynccontextmanager
async def besieged(directory: Path) -> AsyncIterator[Siege]:
    """Run a node and an honest peer that share a group with a contribution of each."""
    site = Site(directory)
    async with site.nodes(2) as (live, honest):
        authority = load_authority(directory / "node-0", live.services.fs)
        assert authority is not None
        siege = Siege(site, live, honest, authority)
        level = log_level()
        set_log_level("info")  # Whatever a test before has set.
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: siege._contexts.append(context))
        await live.create_group(GROUP_NAME, siege.model)
        group = live.group(GROUP_NAME)
        assert group is not None
        siege.group = group
        for number, node in enumerate((live, honest)):
            await node.until_group(GROUP_NAME, lambda info: info.missing_blobs == 0)
            await node.add(GROUP_NAME, save_model(directory / f"model-{number}.safetensors", 2.0 + number))
        for node in (live, honest):
            await node.until_group(GROUP_NAME, lambda info: info.used == 2)
        await live.equal(GROUP_NAME, honest)
        await siege.serves_the_honest()
        yield siege
        set_log_level(level)
        loop.set_exception_handler(None)
