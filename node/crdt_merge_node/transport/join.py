"""Joining a cluster with a token: the admitting side and the joining side (PROTOCOL 4).

    admitting                                joining
    JOIN_OFFER {CA certificate}      ->      is it the CA that the token names, and did it sign the
                                             certificate of this very connection? Only then:
                                     <-      JOIN_REQUEST {secret, node id, CSR, proof}
    CSR and proof good? secret good?
    note who got it, then
    JOIN_GRANT {certificate, peers}  ->      check it, store it; from now on a member

Whatever is lost, the joiner runs the same command again: it keeps its keys, and the token stays his.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.errors import CrdtMergeError, MalformedMessageError, RemoteProtocolError
from crdt_merge_protocol.identity import NodeKey, verify
from crdt_merge_protocol.limits import JOIN_TIMEOUT_S
from crdt_merge_protocol.messages.join import INTRODUCERS_MAX, JoinGrant, JoinOffer, JoinRequest
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
    ) -> None:
        """Take what admitting needs.

        Args:
            introducers: Addresses of members for a new node to dial, this node's own first.
            on_joined: Gets (node id, remote ``host:port``) of every node admitted.
        """
        self._authority = authority
        self._invites = invites
        self._offer = JoinOffer(
            ca=authority.certificate.public_bytes(Encoding.DER), cluster_name=cluster_name
        )
        self._clock = clock
        self._introducers = introducers
        self._on_joined = on_joined

    async def serve(self, dialogue: Dialogue, on_refused: Callable[[str, str], None]) -> None:
        """Admit or refuse one joiner."""
        dialogue.send(self._offer)
        try:
            message = await dialogue.receive(timeout_s=JOIN_TIMEOUT_S)
            if not isinstance(message, JoinRequest):
                raise MalformedMessageError(f"{type(message).__name__} instead of a join request")
            grant = await self._grant(message)
        except (RemoteProtocolError, TransportError) as error:
            dialogue.refuse(error)
            on_refused(dialogue.remote, f"join: {error.message}")
            return
        except CrdtMergeError as error:
            # Trouble of this node (a full disk): nothing that a stranger needs to know more about.
            dialogue.refuse(PeerUnreachableError("this node cannot admit anybody at the moment"))
            on_refused(dialogue.remote, f"join: {error.message}")
            return
        self._on_joined(message.node, dialogue.remote)
        dialogue.send(grant)
        dialogue.pump.close()

    async def _grant(self, request: JoinRequest) -> JoinGrant:
        """Check everything that the token does not depend on, then the token, then sign."""
        key = read_request(request.request)
        verify(request.node, request.proof, join_proof(self._authority.cluster, request.request))
        now = self._clock.now()
        verdict = await self._invites.consume(invite_digest(request.secret), request.node, now=now)
        if verdict != "ok":
            raise PeerRefusedError(_REFUSALS[verdict])
        certificate = self._authority.issue(key, request.node, now=now)
        return JoinGrant(
            certificate=certificate.public_bytes(Encoding.DER),
            introducers=self._introducers()[:INTRODUCERS_MAX],
        )


async def join(token_text: str, data_dir: Path, *, fs: Fs, net: Net, clock: Clock, rng: Rng) -> Identity:
    """Become a member of the cluster that invited, and return the identity now stored in ``data_dir``.

    Safe to run again after any failure: the keys stay, and the token admits the same node again until it
    expires.

    Raises:
        ConfigError: The token is damaged, or the directory already holds a member.
        PeerRefusedError: The token is wrong, expired or used, or what answers is not of that cluster.
        PeerUnreachableError: No node of the token can be reached.
    """
    token = Token.from_text(token_text)
    if Identity.is_present(data_dir, fs):
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
    dialogue = await _connect(address, net)
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


async def _connect(address: str, net: Net) -> Dialogue:
    host, port = split_address(address)
    dialogue = Dialogue(address)
    dialogue.pump = TlsPump(joiner_context(), dialogue, is_server=False, buffers=PumpBuffers())
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
