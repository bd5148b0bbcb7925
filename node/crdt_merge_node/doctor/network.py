"""Ports, advertised addresses and seeds: what others need to reach, and what this node needs to."""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from crdt_merge_protocol.errors import CrdtMergeError

from crdt_merge_node.config.model import parse_address
from crdt_merge_node.ports import local_addresses
from crdt_merge_node.transport import ALPN_GOSSIP, Identity
from crdt_merge_node.transport.addresses import is_wildcard
from crdt_merge_node.transport.certificates import read_peer_certificate
from crdt_merge_node.transport.contexts import client_context
from crdt_merge_node.transport.refusals import transport_error

from .findings import Answer, Patient, ok, problem, warning

_VERDICT_S = 0.4
"""After a handshake of TLS 1.3 the other side may still refuse our certificate: how long it has for that."""


@dataclass(slots=True, kw_only=True)
class Probe:
    """What came of dialling an address."""

    address: str
    dns_s: float | None = None
    tcp_s: float | None = None
    tls_s: float | None = None
    node: str = ""
    """Id of the node that answered."""
    error: str = ""
    """Why it went no further."""

    def times(self) -> str:
        """Return how long each step took that succeeded."""
        steps = (("name", self.dns_s), ("TCP", self.tcp_s), ("TLS", self.tls_s))
        return ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in steps if s is not None)


def ports(patient: Patient) -> Iterator[Answer]:
    """Whether the ports can be listened on, or are ours already."""
    config = patient.settings
    if patient.status is not None:
        yield ok(f"the daemon listens on {patient.status.listen}")
        if patient.status.dashboard:
            yield ok(f"the daemon serves {patient.status.dashboard}")
    else:
        yield from _can_listen(config.listen.host, config.listen.port, "listen", is_vital=True)
        if config.http.port is not None:
            yield from _can_listen(config.http.host, config.http.port, "http", is_vital=False)
    if _is_loopback(config.listen.host):
        yield warning(
            f"listen.host is {config.listen.host}: no other machine can connect to this node",
            '[listen]\nhost = "0.0.0.0"',
        )
    if config.http.port is not None and not _is_loopback(config.http.host):
        yield warning(
            f"http.host is {config.http.host}: whoever reaches port {config.http.port} can see the status",
            '[http]\nhost = "127.0.0.1"',
        )


def advertised(patient: Patient) -> Iterator[Answer]:
    """Whether what peers are told to dial leads here."""
    config, member = patient.settings, patient.member
    chosen = config.listen.advertise
    port = config.listen.port
    if patient.status is not None:
        port = parse_address(patient.status.listen)[1]
    if not chosen and not is_wildcard(config.listen.host):
        chosen = (f"{config.listen.host}:{port}",) if port else ()
    addresses = chosen or (local_addresses(port) if port else ())
    fix = '[listen]\nadvertise = ["HOST:PORT"]   # what other machines reach'
    dialable = []
    for address in addresses:
        host = parse_address(address)[0]
        if is_wildcard(host):
            yield problem(f"{address} is advertised, which nobody can dial", fix)
        elif _is_loopback(host):
            yield warning(f"{address} is advertised, which only this machine can dial", fix)
        else:
            dialable.append(address)
    if not addresses:
        yield ok("which addresses are advertised is known once the daemon runs (port 0)")
    for probe in _dial(dialable, patient, None if patient.status is None else member):
        yield _judge_own(probe, patient, fix)


def seeds(patient: Patient) -> Iterator[Answer]:
    """Whether the nodes to begin with can be found, reached and talked to."""
    member = patient.member
    known = dict.fromkeys((*patient.settings.peers.seeds, *(member.introducers if member else ())))
    if not known:
        yield ok("none are set: others find this node, or it knows them from before")
    for probe in _dial(known, patient, member):
        if probe.error:
            fix = f"nc -vz {' '.join(map(str, parse_address(probe.address)))}"
            yield problem(f"{probe.address}: {probe.error}", fix if probe.tls_s is None else "")
        elif member is not None and probe.node == member.node.hex():
            yield warning(f"{probe.address} is this node itself", "take it out of peers.seeds")
        else:
            node = f"node {probe.node[:12]}, " if probe.node else ""
            yield ok(f"{probe.address} answers: {node}{probe.times()}")


def _judge_own(probe: Probe, patient: Patient, fix: str) -> Answer:
    if probe.dns_s is None:
        return problem(f"{probe.address} is advertised: {probe.error}", fix)
    if patient.status is None:
        return ok(f"{probe.address} is advertised and its name is known; the daemon does not run")
    if probe.error:
        return warning(f"{probe.address} is advertised and not reached from here: {probe.error}", fix)
    if probe.node and probe.node != patient.status.node:
        return problem(f"{probe.address} is advertised and leads to node {probe.node[:12]}, not here", fix)
    return ok(f"{probe.address} leads to this node: {probe.times()}")


def _can_listen(host: str, port: int, section: str, *, is_vital: bool) -> Iterator[Answer]:
    judge = problem if is_vital else warning
    try:
        family, kind, number, _, target = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with closing(socket.socket(family, kind, number)) as probe:
            # As asyncio does: connections of the last daemon that still linger are not in the way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            probe.listen(1)
    except OSError as error:
        fixes: Mapping[int | None, str] = {
            errno.EADDRINUSE: f"ss -ltnp 'sport = :{port}'   # who has it; or set {section}.port",
            errno.EACCES: f"set {section}.port to 1024 or more",
            errno.EADDRNOTAVAIL: f"ip address   # {section}.host has to be one of these, or 0.0.0.0",
        }
        yield judge(
            f"{host}:{port} cannot be listened on: {error.strerror}",
            fixes.get(error.errno, f"set {section}.host and {section}.port"),
        )
    else:
        yield ok(f"{host}:{port} is free" if port else f"{host}: any free port will be taken")


def _dial(addresses: Iterable[str], patient: Patient, member: Identity | None) -> list[Probe]:
    """Dial all addresses at once; whoever has not answered when the time is over did not answer."""
    probes = [Probe(address=address) for address in addresses]
    # Daemon threads: nobody can interrupt the resolver of the C library, and nobody needs to wait for it.
    threads = [
        threading.Thread(target=_probe, args=(probe, patient, member), daemon=True) for probe in probes
    ]
    for thread in threads:
        thread.start()
    end = patient.clock.monotonic() + 3 * patient.timeout_s + _VERDICT_S
    for thread, probe in zip(threads, probes, strict=True):
        thread.join(max(end - patient.clock.monotonic(), 0.0))
        if thread.is_alive() and not probe.error:
            probe.error = f"no answer within {3 * patient.timeout_s:g} s"
    return probes


def _probe(probe: Probe, patient: Patient, member: Identity | None) -> None:
    host, port = parse_address(probe.address)
    now = patient.clock.monotonic
    began = now()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        probe.error = f"the name {host} is not known: {error.strerror}"
        return
    probe.dns_s, began = now() - began, now()
    try:
        connection = _connect(found, patient.timeout_s)
    except OSError as error:
        probe.error = f"no connection: {error.strerror or error}"
        return
    with closing(connection):
        probe.tcp_s, began = now() - began, now()
        if member is not None:
            _greet(probe, connection, member, patient, began)


def _connect(found: list[tuple[Any, Any, int, str, Any]], timeout_s: float) -> socket.socket:
    """Return a connection to the first address that answers; the error is that of the last."""
    failure = OSError("the name has no address")
    for family, kind, number, _, target in found:
        connection = socket.socket(family, kind, number)
        connection.settimeout(timeout_s)
        try:
            connection.connect(target)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure


def _greet(probe: Probe, connection: socket.socket, member: Identity, patient: Patient, began: float) -> None:
    """Shake hands and see who it is. No hello is said, so no connection of the daemon is disturbed."""
    try:
        with client_context(member, ALPN_GOSSIP).wrap_socket(connection) as tls:
            probe.tls_s = patient.clock.monotonic() - began
            der = tls.getpeercert(binary_form=True)
            assert der is not None, "verify_mode asks for one"
            probe.node = read_peer_certificate(der, member.cluster).node.hex()
            tls.settimeout(_VERDICT_S)
            if not tls.recv(1):
                probe.error = "it closed the connection without a reason"
    except TimeoutError:
        # After the handshake silence is what we want: it waits for our hello.
        if probe.tls_s is None:
            probe.error = f"no TLS handshake within {patient.timeout_s:g} s"
    except (ssl.SSLError, OSError) as error:
        probe.error = transport_error(probe.address, error).message
    except CrdtMergeError as error:
        probe.error = error.message


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
