"""Joining a cluster with a token: the admitting side and the joining side (PROTOCOL 4).

    admitting                                joining
    JOIN_OFFER {CA certificate}      ->      is it the CA that the token names, and did it sign the
                                             certificate of this very connection? Only then:
                                     <-      JOIN_REQUEST {secret, node id, CSR, proof}
    CSR and proof good? secret good?
    note who got it, then
    JOIN_GRANT {certificate, peers}  ->      check it, store it; from now on a member

Whatever is lost, the joiner runs the same command again: it keeps its keys, and the token stays his. A
member that knocks here with its certificate gets a new one instead (``renewing.py``).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.errors import CrdtMergeError, MalformedMessageError, RemoteProtocolError
from crdt_merge_protocol.identity import NodeKey, verify
from crdt_merge_protocol.limits import JOIN_TIMEOUT_S
from crdt_merge_protocol.messages.join import (
    INTRODUCERS_MAX,
    JoinGrant,
    JoinOffer,
    JoinRequest,
    RenewGrant,
    RenewRequest,
)
from cryptography.hazmat.primitives.serialization import Encoding

from crdt_merge_node.errors import ConfigError, PeerRefusedError, PeerUnreachableError, TransportError
from crdt_merge_node.ports import Clock, Fs, Net, Rng

from .addresses import split_address
from .certificates import (
    CertificateAuthority,
    CertificateError,
    certificate_from_der,
    check_issued,
    cluster_id,
    create_request,
    read_peer_certificate,
    read_request,
    spki,
)
from .contexts import joiner_context
from .dialogue import Dialogue
from .identity import Identity, prepare_keys, write_membership
from .invites import InviteStore, Token, Verdict, invite_digest
from .tls import PumpBuffers, TlsPump

_REFUSALS: Final[dict[Verdict, str]] = {
    "unknown": "the token is not one of this node's, or was withdrawn",
    "expired": "the token has expired; ask for a new one",
    "used": "the token was already used by another node; ask for a new one",
}


class JoinService:
    """The admitting side. For nodes that hold the CA."""

    def __init__(
        self,
        authority: CertificateAuthority,
        invites: InviteStore,
        *,
        cluster_name: str,
        clock: Clock,
        introducers: Callable[[], tuple[str, ...]],
        on_joined: Callable[[bytes, str], None] = lambda _node, _remote: None,
        admit: Callable[[bytes], str | None] = lambda _node: None,
        closed: Callable[[], str] = str,
    ) -> None:
        """Take what admitting needs.

        Args:
            introducers: Addresses of members for a new node to dial, this node's own first.
            on_joined: Gets (node id, remote ``host:port``) of every node admitted.
            admit: Node id to the reason why that member gets no new certificate, or None.
            closed: Returns why nobody is admitted at the moment; empty: somebody may be.
        """
        self.authority = authority
        """May be replaced by one with a newer certificate."""
        self._invites = invites
        self._cluster_name = cluster_name
        self._clock = clock
        self._introducers = introducers
        self._on_joined = on_joined
        self._admit = admit
        self._closed = closed

    async def serve(self, dialogue: Dialogue, on_refused: Callable[[str, str], None]) -> None:
        """Admit or refuse one joiner."""
        ca = self.authority.certificate.public_bytes(Encoding.DER)
        dialogue.send(JoinOffer(ca=ca, cluster_name=self._cluster_name))
        try:
            message = await dialogue.receive(timeout_s=JOIN_TIMEOUT_S)
            if reason := self._closed():
                raise PeerRefusedError(reason)
            grant: JoinGrant | RenewGrant
            if isinstance(message, RenewRequest):
                grant = self._renew(message, dialogue.pump.peer_certificate)
            elif isinstance(message, JoinRequest):
                grant = await self._grant(message)
            else:
                raise MalformedMessageError(f"{type(message).__name__} instead of a join request")
        except (RemoteProtocolError, TransportError) as error:
            dialogue.refuse(error)
            on_refused(dialogue.remote, f"join: {error.message}")
            return
        except CrdtMergeError as error:
            # Trouble of this node (a full disk): nothing that a stranger needs to know more about.
            dialogue.refuse(PeerUnreachableError("this node cannot admit anybody at the moment"))
            on_refused(dialogue.remote, f"join: {error.message}")
            return
        if isinstance(message, JoinRequest):
            self._on_joined(message.node, dialogue.remote)
        dialogue.send(grant)
        dialogue.pump.close()

    def _renew(self, request: RenewRequest, shown: bytes | None) -> RenewGrant:
        """Sign for whom the handshake has shown to be a member."""
        if shown is None:
            raise PeerRefusedError("only a member gets a new certificate without a token")
        node = read_peer_certificate(shown, self.authority.cluster).node
        if reason := self._admit(node):
            raise PeerRefusedError(reason)
        certificate = self.authority.issue(read_request(request.request), node, now=self._clock.now())
        return RenewGrant(
            certificate=certificate.public_bytes(Encoding.DER),
            ca=self.authority.certificate.public_bytes(Encoding.DER),
        )

    async def _grant(self, request: JoinRequest) -> JoinGrant:
        """Check everything that the token does not depend on, then the token, then sign."""
        key = read_request(request.request)
        verify(request.node, request.proof, join_proof(self.authority.cluster, request.request))
        now = self._clock.now()
        verdict = await self._invites.consume(invite_digest(request.secret), request.node, now=now)
        if verdict != "ok":
            raise PeerRefusedError(_REFUSALS[verdict])
        certificate = self.authority.issue(key, request.node, now=now)
        return JoinGrant(
            certificate=certificate.public_bytes(Encoding.DER),
            introducers=self._introducers()[:INTRODUCERS_MAX],
        )


async def join(
    token_text: str,
    data_dir: Path,
    *,
    fs: Fs,
    net: Net,
    clock: Clock,
    rng: Rng,
    is_again: bool = False,
) -> Identity:
    """Become a member of the cluster that invited, and return the identity now stored in ``data_dir``.

    Safe to run again after any failure: the keys stay, and the token admits the same node again until it
    expires.

    Args:
        token_text: The token.
        data_dir: Where the node is, or is to be.
        fs: The file system.
        net: The network.
        clock: By which certificates are judged.
        rng: What keys are made of.
        is_again: The directory holds a member of that cluster already, which has left, or whose certificate
            has expired; it keeps its keys and gets a new certificate.

    Raises:
        ConfigError: The token is damaged, or the directory already holds a member, if that was not expected.
        PeerRefusedError: The token is wrong, expired or used, or what answers is not of that cluster.
        PeerUnreachableError: No node of the token can be reached.
    """
    token = Token.from_text(token_text)
    if is_again and (known := Identity.load(data_dir, fs)).cluster != token.cluster:
        raise ConfigError(
            f"{data_dir} belongs to cluster {known.cluster.hex()[:12]} and the token to another one.",
            hint="Give each cluster a --data-dir of its own.",
        )
    if not is_again and Identity.is_present(data_dir, fs):
        raise ConfigError(
            f"{data_dir} already holds a node.",
            hint="Start it with `crdt-merge-node run`, or give another --data-dir.",
        )
    problems = []
    for address in token.addresses:
        try:
            await _join_at(address, token, data_dir, fs=fs, net=net, clock=clock, rng=rng)
        except PeerUnreachableError as error:
            problems.append(error.message)
        else:
            return Identity.load(data_dir, fs)
    raise PeerUnreachableError(
        "no node of the token can be reached: " + " ".join(problems), hint="Is that node running?"
    )


async def _join_at(
    address: str, token: Token, data_dir: Path, *, fs: Fs, net: Net, clock: Clock, rng: Rng
) -> None:
    dialogue = await open_dialogue(address, net, joiner_context())
    try:
        offer = await dialogue.receive(timeout_s=JOIN_TIMEOUT_S)
        if not isinstance(offer, JoinOffer):
            raise MalformedMessageError(f"{type(offer).__name__} instead of a join offer")
        _check_offer(offer, token, dialogue, now=clock.now())
        node_key, tls_key = prepare_keys(data_dir, fs=fs, rng=rng)
        dialogue.send(_request(token, node_key, create_request(tls_key)))
        grant = await dialogue.receive(timeout_s=JOIN_TIMEOUT_S)
        if not isinstance(grant, JoinGrant):
            raise MalformedMessageError(f"{type(grant).__name__} instead of a certificate")
        ca, certificate = certificate_from_der(offer.ca), certificate_from_der(grant.certificate)
        check_issued(certificate, ca, now=clock.now())
        _check_grant(grant, spki(tls_key.public_key()), node_key.node_id, token.cluster)
    except RemoteProtocolError as error:
        dialogue.refuse(error)
        raise
    except CertificateError as error:
        refusal = PeerRefusedError(f"this node refused {address}: {error.message}")
        dialogue.refuse(error)
        raise refusal from None
    finally:
        dialogue.pump.close()
    write_membership(data_dir, certificate, ca, name=offer.cluster_name, introducers=grant.introducers, fs=fs)


async def open_dialogue(address: str, net: Net, context: ssl.SSLContext) -> Dialogue:
    """Connect to a node that may hold the CA.

    Raises:
        PeerUnreachableError: It does not answer.
        TransportError: The handshake failed.
    """
    host, port = split_address(address)
    dialogue = Dialogue(address)
    dialogue.pump = TlsPump(context, dialogue, is_server=False, buffers=PumpBuffers())
    try:
        async with asyncio.timeout(JOIN_TIMEOUT_S):
            await net.connect(lambda: dialogue.pump, host, port)
            await dialogue.ready
    except TimeoutError:
        dialogue.pump.abort()
        raise PeerUnreachableError(f"{address} does not answer within {JOIN_TIMEOUT_S:g} s.") from None
    except OSError as error:
        raise PeerUnreachableError(f"{address} cannot be reached: {error.strerror or error}.") from None
    return dialogue


def _check_offer(offer: JoinOffer, token: Token, dialogue: Dialogue, *, now: float) -> None:
    """Check, before anything secret is said, that the peer is of the cluster that the token names.

    Raises:
        CertificateError: It is not.
    """
    ca = certificate_from_der(offer.ca)
    if cluster_id(ca) != token.cluster:
        raise CertificateError("the token is for another cluster.")
    check_issued(ca, ca, now=now)
    leaf = dialogue.pump.peer_certificate
    assert leaf is not None, "an accepting side always shows a certificate"
    check_issued(certificate_from_der(leaf), ca, now=now)
    read_peer_certificate(leaf, token.cluster)


def _check_grant(grant: JoinGrant, tls_key: bytes, node: bytes, cluster: bytes) -> None:
    certificate = certificate_from_der(grant.certificate)
    if spki(certificate.public_key()) != tls_key:
        raise CertificateError("the certificate that was issued is for another key.")
    if read_peer_certificate(grant.certificate, cluster).node != node:
        raise CertificateError("the certificate that was issued is for another node.")


def _request(token: Token, node_key: NodeKey, request: bytes) -> JoinRequest:
    return JoinRequest(
        secret=token.secret,
        node=node_key.node_id,
        request=request,
        proof=node_key.sign(join_proof(token.cluster, request)),
    )


def join_proof(cluster: bytes, request: bytes) -> bytes:
    """Return what a joiner signs with its node key: this request, to this cluster."""
    return digest("crdt-merge/join/1", cluster, request)
