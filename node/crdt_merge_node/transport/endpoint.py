"""A node's end of the network: it listens, dials, judges who may talk, and hands out connections.

Everything that a stranger can make this node do happens here, in order of cost: the accept gate (before TLS),
the handshake, the hello. ``on_connection`` gets the connections that peers opened; the ones that this node
opened are what :meth:`Endpoint.dial` returns. A node may end up with two connections to one peer when both
dial at once: both sides keep the one with the smaller ``Connection.session``.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from crdt_merge_protocol.limits import ADDRESSES_PER_PEER_MAX

from crdt_merge_node.errors import PeerUnreachableError, TransportError
from crdt_merge_node.ports import Clock, Listener, Net, Rng
from crdt_merge_node.telemetry.counters import Traffic

from .addresses import DEFAULT_PORT, is_wildcard, join_address, source_of, split_address
from .connection import Connection
from .contexts import ALPN_GOSSIP, ALPN_JOIN, OpenSslContexts, TlsContexts
from .dialogue import Dialogue
from .gate import AcceptGate
from .greeting import PEER_ALPNS, Greeting, Manners, Outcome
from .identity import Identity
from .join import JoinService
from .tls import PumpBuffers, TlsPump

CONNECT_TIMEOUT_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 1.0
"""How long goodbyes may take when the endpoint closes."""
GATE_REPORT_S: Final = 1.0
"""Refusals at the gate are reported together, so that a flood of connections is no flood of logs."""

Admit = Callable[[bytes], str | None]


class PeerRefusedAtGateError(TransportError):
    """The gate let a connection go no further; reported in bundles, not one by one."""

    code = "E1605"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """Where to listen and what to say about it."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0: any free port."""
    advertise: tuple[str, ...] = ()
    """``host:port`` for others to dial. Empty: the address by which each peer reaches this node."""
    agent: str = "crdt-merge-node"
    features: tuple[str, ...] = ()
    instance: str = ""
    """Tells this start of the node from all others."""


class Endpoint:
    """Listens and dials. One per daemon."""

    def __init__(
        self,
        identity: Identity,
        config: EndpointConfig,
        *,
        net: Net,
        clock: Clock,
        rng: Rng,
        admit: Admit,
        on_connection: Callable[[Connection], None],
        on_refused: Callable[[str, str], None] = lambda _remote, _reason: None,
        on_twin: Callable[[str], None] = lambda _remote: None,
        join_service: JoinService | None = None,
        contexts: TlsContexts | None = None,
    ) -> None:
        """Take what the endpoint works with.

        Args:
            admit: Node id to the reason why that peer is not heard, or None. Asked for dialled peers too.
            on_connection: Gets every connection that a peer opened, authenticated and greeted.
            on_refused: Gets (remote ``host:port``, reason) of every incoming connection that came to nothing.
            on_twin: Gets the remote ``host:port`` of another process that runs as this node.
            join_service: Serves joiners, if this node holds the CA.
            contexts: OpenSSL's, unless a simulation replaces them.
        """
        self._config = config
        self._net = net
        self._clock = clock
        self._on_connection = on_connection
        self._on_refused = on_refused
        self._join_service = join_service
        self._contexts = contexts or OpenSslContexts()
        self.reload(identity)
        self._buffers = PumpBuffers()
        self._gate = AcceptGate()
        self._gate_refusals: dict[str, tuple[str, int]] = {}
        self._tickets = itertools.count()
        self._listener: Listener | None = None
        # Dicts, because the order of a set of objects depends on their addresses; closing them shall not.
        self._pumps: dict[TlsPump, None] = {}
        self._greetings: dict[int, Greeting] = {}
        """Accepted connections that have not said who they are, by ticket."""
        self._connections: dict[Connection, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._ended_bytes: dict[str, tuple[int, int]] = {}
        """In and out on connections that are gone, by application protocol."""
        self.traffic = Traffic()
        self._manners = Manners(
            cluster=identity.cluster,
            node=identity.node,
            agent=config.agent,
            features=config.features,
            on_twin=on_twin,
            instance=config.instance,
            admit=admit,
            addresses=self._addresses,
            nonce=lambda: rng.bytes(16),
            join=None if join_service is None else self._serve_join,
        )

    def reload(self, identity: Identity) -> None:
        """Use the certificate that is in the files now, for connections made from now on."""
        self._server_context = self._contexts.server(identity, hears_joiners=self._join_service is not None)
        self._client_contexts = {
            alpn: self._contexts.client(identity, alpn) for alpn in (*PEER_ALPNS, ALPN_JOIN)
        }

    @property
    def join_context(self) -> ssl.SSLContext:
        """Settings with which a member knocks where nodes are admitted, to get a new certificate."""
        return self._client_contexts[ALPN_JOIN]

    # --- listening ------------------------------------------------------------------------------------

    async def start(self) -> tuple[str, int]:
        """Listen, and return the bound host and port.

        Raises:
            TransportError: The address cannot be bound.
        """
        host, port = self._config.host, self._config.port
        try:
            self._listener = await self._net.listen(self._accept, host, port)
        except OSError as error:
            raise TransportError(
                f"cannot listen on {join_address(host, port)}: {error.strerror or error}.",
                hint="Set listen.host and listen.port (run --host, --port); port 0 is any free one.",
            ) from None
        return self._listener.address

    @property
    def address(self) -> tuple[str, int]:
        """The bound host and port."""
        assert self._listener is not None, "start() first"
        return self._listener.address

    @property
    def advertised(self) -> tuple[str, ...]:
        """Addresses for others to dial, as far as they are known without a connection to go by."""
        if self._config.advertise:
            return self._config.advertise[:ADDRESSES_PER_PEER_MAX]
        if self._listener is None or is_wildcard(self._listener.address[0]):
            return ()
        return (join_address(*self._listener.address),)

    def _addresses(self, pump: TlsPump) -> tuple[str, ...]:
        if self.advertised or self._listener is None or not pump.local_host:
            return self.advertised
        return (join_address(pump.local_host, self._listener.address[1]),)

    def _accept(self) -> TlsPump:
        ticket = next(self._tickets)
        greeting = Greeting(
            self._manners,
            outbound=False,
            on_connecting=lambda: self._pass_gate(ticket),
            on_outcome=lambda outcome: self._greeted(ticket, outcome),
        )
        pump = TlsPump(self._server_context, greeting, is_server=True, buffers=self._buffers)
        greeting.pump = pump
        self._greetings[ticket] = greeting
        self._keep(pump)
        pump.lost.add_done_callback(lambda _: self._forget(ticket))
        return pump

    def _pass_gate(self, ticket: int) -> None:
        greeting = self._greetings[ticket]
        if self._is_closed:
            greeting.fail(PeerUnreachableError("this node is shutting down."))
            return
        source = source_of(greeting.pump.remote_host)
        admission = self._gate.admit(ticket, source, now=self._clock.monotonic())
        if admission.refusal:
            self._note_gate_refusal(greeting, admission.refusal)
        elif admission.evict is not None and (victim := self._greetings.get(admission.evict)):
            self._note_gate_refusal(victim, "it made way for a newer connection before it had said who it is")

    def _note_gate_refusal(self, greeting: Greeting, reason: str) -> None:
        remote = greeting.remote
        if not self._gate_refusals:
            asyncio.get_running_loop().call_later(GATE_REPORT_S, self._report_gate_refusals)
        count = self._gate_refusals.get(reason, (remote, 0))[1]
        self._gate_refusals[reason] = (remote, count + 1)
        greeting.fail(PeerRefusedAtGateError(reason))

    def _report_gate_refusals(self) -> None:
        refusals, self._gate_refusals = self._gate_refusals, {}
        for reason, (remote, count) in refusals.items():
            self._on_refused(
                remote, reason if count == 1 else f"{reason} ({count} times in {GATE_REPORT_S:g} s)"
            )

    def _greeted(self, ticket: int, outcome: Outcome) -> None:
        if isinstance(outcome, Connection):
            self._gate.authenticated(ticket)
            self._greetings.pop(ticket, None)
            self._track(outcome)
            self._on_connection(outcome)
        elif not isinstance(outcome, PeerRefusedAtGateError) and not self._is_closed:
            self._on_refused(self._greetings[ticket].remote, outcome.message)

    def _forget(self, ticket: int) -> None:
        self._gate.release(ticket)
        self._greetings.pop(ticket, None)

    def _serve_join(self, pump: TlsPump) -> None:
        assert self._join_service is not None, "manners offer joining only with a service"
        task = asyncio.create_task(self._join_service.serve(Dialogue.take_over(pump), self._on_refused))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- dialling -------------------------------------------------------------------------------------

    async def dial(self, address: str, *, alpn: str = ALPN_GOSSIP, expect: bytes | None = None) -> Connection:
        """Connect to ``host:port`` and return once the peer has admitted this node.

        Nothing is read from the connection before its ``on_message`` is set.

        Args:
            alpn: ``ALPN_GOSSIP`` or ``ALPN_BULK``.
            expect: Node id that must answer; any member if not given.

        Raises:
            PeerUnreachableError: Nobody answers, or the connection broke.
            PeerRefusedError: One side refused the other; the message says which and why.
            TlsError: What answers does not speak our TLS.
        """
        host, port = split_address(address)
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def settle(outcome: Outcome) -> None:
            if not done.done():
                done.set_result(outcome)

        greeting = Greeting(
            self._manners, outbound=True, alpn=alpn, expect=expect, address=address, on_outcome=settle
        )
        greeting.pump = TlsPump(self._client_contexts[alpn], greeting, is_server=False, buffers=self._buffers)
        try:
            await self._connect(greeting.pump, address, host, port)
            self._keep(greeting.pump)
            outcome = await done
        except BaseException:
            greeting.pump.abort()
            raise
        if isinstance(outcome, TransportError):
            raise outcome
        if self._is_closed:
            outcome.abort("the node is shutting down")
            raise PeerUnreachableError("this node is shutting down.")
        self._track(outcome)
        return outcome

    async def _connect(self, pump: TlsPump, address: str, host: str, port: int) -> None:
        if self._is_closed:
            raise PeerUnreachableError("this node is shutting down.")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._net.connect(lambda: pump, host, port)
        except TimeoutError:
            raise PeerUnreachableError(f"{address} does not answer within {CONNECT_TIMEOUT_S:g} s.") from None
        except OSError as error:
            raise PeerUnreachableError(f"{address} cannot be reached: {error.strerror or error}.") from None

    # --- keeping --------------------------------------------------------------------------------------

    def _keep(self, pump: TlsPump) -> None:
        self._pumps[pump] = None
        pump.lost.add_done_callback(lambda _: self._forget_pump(pump))

    def _forget_pump(self, pump: TlsPump) -> None:
        if pump in self._pumps:
            del self._pumps[pump]
            _add_bytes(self._ended_bytes, pump)

    def bytes_by_protocol(self) -> dict[str, tuple[int, int]]:
        """Return application protocol -> (bytes received, bytes sent) since the start, TLS included.

        Connections that came to nothing before one was agreed upon are under the empty name.
        """
        totals = dict(self._ended_bytes)
        for pump in self._pumps:
            _add_bytes(totals, pump)
        return totals

    @property
    def bytes_in(self) -> int:
        """Bytes received since the start on all connections of whatever kind, TLS included."""
        return sum(received for received, _ in self.bytes_by_protocol().values())

    @property
    def bytes_out(self) -> int:
        """Bytes sent since the start on all connections of whatever kind, TLS included."""
        return sum(sent for _, sent in self.bytes_by_protocol().values())

    def _track(self, connection: Connection) -> None:
        connection.traffic = self.traffic
        connection.monotonic = self._clock.monotonic
        self._connections[connection] = None
        connection.closed.add_done_callback(lambda _: self._connections.pop(connection, None))

    async def close(self, reason: str = "the node is shutting down") -> None:
        """Stop listening, say goodbye on every connection, and return once all sockets are gone."""
        self._is_closed = True
        if self._listener is not None:
            self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        for connection in list(self._connections):
            connection.close(reason)
        for greeting in [greeting for greeting in self._greetings.values() if not greeting.is_over]:
            greeting.fail(PeerUnreachableError(f"{reason}."))
        pumps = list(self._pumps)
        if pumps:
            await asyncio.wait([pump.lost for pump in pumps], timeout=CLOSE_TIMEOUT_S)
            for pump in pumps:
                pump.abort()
            await asyncio.gather(*(pump.lost for pump in pumps), *self._tasks, return_exceptions=True)


def _add_bytes(totals: dict[str, tuple[int, int]], pump: TlsPump) -> None:
    received, sent = totals.get(pump.alpn or "", (0, 0))
    totals[pump.alpn or ""] = (received + pump.wire_bytes_in, sent + pump.wire_bytes_out)
