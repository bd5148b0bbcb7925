"""The first moments of a connection: TLS, then HELLO or REFUSE (PROTOCOL 4; SCENARIOS T29, B9, B10).

Theory of operation. The dialler says HELLO as soon as TLS is up. The accepting side judges it, and answers
with its own HELLO or with REFUSE; so a dialler that holds the peer's HELLO has been admitted. What can be
judged from the certificate alone (is the peer blocked, is it who we expected) the dialler judges before it
says HELLO, so that the other side never announces a connection that we are about to refuse. Each refusal is
one sentence that reads the same on both sides, because both will log it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from crdt_merge_protocol.errors import (
    ClusterMismatchError,
    LimitExceededError,
    MalformedMessageError,
    RemoteProtocolError,
    VersionMismatchError,
)
from crdt_merge_protocol.limits import (
    CONTROL_BODY_BYTES_MAX,
    FRAME_HEADER_BYTES,
    HELLO_TIMEOUT_S,
    WIRE_VERSION_MAX,
    WIRE_VERSION_MIN,
)
from crdt_merge_protocol.messages.base import Message
from crdt_merge_protocol.messages.membership import Goodbye, Hello, Refuse
from crdt_merge_protocol.wire import FrameDecoder, encode_frame

from crdt_merge_node.cloning import FEATURE, instance_in
from crdt_merge_node.errors import PeerRefusedError, TransportError

from .certificates import CertificateError, PeerCertificate, read_peer_certificate
from .connection import Connection
from .contexts import ALPN_BULK, ALPN_GOSSIP, ALPN_JOIN
from .refusals import transport_error
from .tls import TlsPump

_REASON_CHARS_MAX: Final = 1000
PEER_ALPNS: Final = (ALPN_GOSSIP, ALPN_BULK)

Outcome = Connection | TransportError


class TwinRefusedError(PeerRefusedError):
    """The other end has this node's own id and key, and is another process."""

    code = "E1608"


JoinHandler = Callable[[TlsPump], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """What a node says about itself and whom it hears: the same for all its connections."""

    cluster: bytes
    node: bytes
    agent: str
    features: tuple[str, ...]
    admit: Callable[[bytes], str | None]
    """Node id to the reason why it is not heard; None: it is."""
    addresses: Callable[[TlsPump], tuple[str, ...]]
    """Where this node can be dialled, for the peer on that connection."""
    nonce: Callable[[], bytes]
    on_twin: Callable[[str], None]
    """Gets the remote ``host:port`` of another process that runs with this node's id and key."""
    instance: str
    """Tells this start of the node from all others; said in HELLO. Empty: nothing is said."""
    join: JoinHandler | None
    """Takes over connections of joiners, who have no certificate. None: this node admits nobody."""


class Greeting:
    """Greets on one fresh connection, then hands over. A :class:`TlsApp`."""

    def __init__(
        self,
        manners: Manners,
        *,
        outbound: bool,
        on_outcome: Callable[[Outcome], None],
        on_connecting: Callable[[], None] = lambda: None,
        alpn: str | None = None,
        expect: bytes | None = None,
        address: str = "",
    ) -> None:
        self._manners = manners
        self._outbound = outbound
        self._on_outcome = on_outcome
        self._on_connecting = on_connecting
        self._alpn = alpn
        self._expect = expect
        self._address = address
        self._decoder = FrameDecoder()
        self._nonce = manners.nonce()
        self._certificate: PeerCertificate | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.is_over = False
        """There was an outcome, or a joiner was handed over."""
        self.pump: TlsPump
        """Set by the endpoint right after both were made."""

    @property
    def _is_own_id(self) -> bool:
        return self._certificate is not None and self._certificate.node == self._manners.node

    @property
    def remote(self) -> str:
        """The address that was dialled, or the one that the peer came from."""
        return self._address or self.pump.remote

    # --- the pump's calls -----------------------------------------------------------------------------

    def tls_connecting(self) -> None:
        """Let the endpoint's gate look at the address."""
        self._on_connecting()

    def tls_ready(self) -> None:
        """Judge what TLS has told, then greet or wait for the greeting."""
        alpn = self.pump.alpn
        if alpn == ALPN_JOIN and not self._outbound:
            self._begin_join()
            return
        self._timer = asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, self._timed_out)
        problem = self._judge_tls(alpn)
        if problem is not None:
            self._refuse(problem)
        elif self._outbound:
            self.pump.write(encode_frame(self._own_hello()))

    def tls_data(self, data: memoryview) -> None:
        """Take the peer's first message."""
        try:
            messages = self._decoder.feed(data)
            if messages:
                self._receive(messages[0], messages[1:])
            elif self._decoder.buffered_bytes > CONTROL_BODY_BYTES_MAX + FRAME_HEADER_BYTES:
                raise LimitExceededError("a frame that is longer than any hello, before a hello")
        except RemoteProtocolError as error:
            self._refuse(error)

    def tls_writable(self) -> None:
        """A greeting fits any buffer."""

    def tls_closed(self, error: Exception | None) -> None:
        """Say in words why it ended before it began."""
        self._finish(transport_error(self.remote, error))

    # --- judging --------------------------------------------------------------------------------------

    def _judge_tls(self, alpn: str | None) -> RemoteProtocolError | PeerRefusedError | None:
        if alpn not in PEER_ALPNS or (self._outbound and alpn != self._alpn):
            wanted = f'"{self._alpn}"' if self._outbound else " or ".join(f'"{name}"' for name in PEER_ALPNS)
            return PeerRefusedError(f"no application protocol in common (ALPN {wanted} is needed)")
        der = self.pump.peer_certificate
        if der is None:
            return PeerRefusedError("no certificate was shown, and only members are heard here")
        try:
            self._certificate = read_peer_certificate(der, self._manners.cluster)
        except CertificateError as error:
            return PeerRefusedError(error.message)
        node = self._certificate.node
        if self._expect is not None and node != self._expect:
            return PeerRefusedError(
                f"node {_short(self._expect)} was expected and node {_short(node)} answers"
            )
        return self._judge_member(node)

    def _judge_member(self, node: bytes) -> PeerRefusedError | None:
        if node == self._manners.node:
            return None  # The hello tells whether it is this very process.
        reason = self._manners.admit(node)
        return PeerRefusedError(reason) if reason is not None else None

    def _judge_hello(self, hello: Hello) -> None:
        if not 0 < hello.version_min <= hello.version_max:
            raise MalformedMessageError(
                f"wire versions {hello.version_min}..{hello.version_max} are no range"
            )
        if hello.version_min > WIRE_VERSION_MAX or hello.version_max < WIRE_VERSION_MIN:
            raise VersionMismatchError(
                f"wire versions {hello.version_min}..{hello.version_max} and "
                f"{WIRE_VERSION_MIN}..{WIRE_VERSION_MAX} have none in common"
            )
        if hello.cluster != self._manners.cluster:
            raise ClusterMismatchError(
                f"cluster {_short(hello.cluster)} is not cluster {_short(self._manners.cluster)}"
            )
        assert self._certificate is not None, "nobody is heard before the certificate is read"
        if hello.node != self._certificate.node:
            raise MalformedMessageError(
                f"the hello is of node {_short(hello.node)} and the certificate of node "
                f"{_short(self._certificate.node)}"
            )

    def _judge_own_id(self, hello: Hello) -> PeerRefusedError | None:
        """Refuse a caller with this node's own id: a dial that led back here, or a copy (SCENARIOS B72)."""
        if hello.node != self._manners.node:
            return None
        if instance_in(hello.features) in ("", self._manners.instance):
            return PeerRefusedError("both ends are the same node")
        self._manners.on_twin(self.remote)
        return TwinRefusedError("another process runs with this node's id and key")

    # --- talking --------------------------------------------------------------------------------------

    def _receive(self, message: Message, rest: list[Message]) -> None:
        if self.is_over:
            return
        if isinstance(message, Refuse | Goodbye):
            if isinstance(message, Refuse) and message.code == TwinRefusedError.code and self._is_own_id:
                self._manners.on_twin(self.remote)
            self._finish(PeerRefusedError(f"{self.remote} refused this node: {message.reason}."))
            self.pump.close()
            return
        if not isinstance(message, Hello):
            raise MalformedMessageError(f"{type(message).__name__} before a hello")
        self._judge_hello(message)
        if (refusal := self._judge_own_id(message)) is not None:
            self._refuse(refusal)
            return
        if not self._outbound:
            self.pump.write(encode_frame(self._own_hello()))
        assert self._certificate is not None, "_judge_hello has looked at it"
        connection = Connection(
            self.pump,
            peer=self._certificate.node,
            outbound=self._outbound,
            hello=message,
            own_nonce=self._nonce,
            decoder=self._decoder,
            early=rest,
        )
        self._finish(connection)

    def _own_hello(self) -> Hello:
        return Hello(
            version_min=WIRE_VERSION_MIN,
            version_max=WIRE_VERSION_MAX,
            cluster=self._manners.cluster,
            node=self._manners.node,
            nonce=self._nonce,
            agent=self._manners.agent,
            addresses=self._manners.addresses(self.pump),
            features=(
                *self._manners.features,
                *((f"{FEATURE}{self._manners.instance}",) if self._manners.instance else ()),
            ),
        )

    def _begin_join(self) -> None:
        join = self._manners.join
        if join is None:
            self._refuse(PeerRefusedError("this node admits nobody: it does not hold the cluster's CA"))
            return
        self.is_over = True
        join(self.pump)

    def _refuse(self, error: RemoteProtocolError | PeerRefusedError) -> None:
        if self.is_over:
            return
        refusal = Refuse(code=error.code, reason=error.message[:_REASON_CHARS_MAX])
        self.pump.write(encode_frame(refusal))
        self._finish(PeerRefusedError(f"this node refused {self.remote}: {error.message}."))
        self.pump.close()

    def _timed_out(self) -> None:
        self._refuse(PeerRefusedError(f"no hello within {HELLO_TIMEOUT_S:g} s"))

    # --- ending ---------------------------------------------------------------------------------------

    def fail(self, error: TransportError) -> None:
        """End from outside: evicted, or the endpoint closes."""
        self._finish(error)
        self.pump.abort()

    def _finish(self, outcome: Outcome) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.is_over:
            self.is_over = True
            self._on_outcome(outcome)


def _short(node: bytes) -> str:
    return node.hex()[:12]
