"""Keeps this node's certificate from expiring (PROTOCOL 4, SCENARIOS T31).

Two thirds into its life a certificate is replaced: a node that holds the cluster's CA signs for itself, any
other asks one that does, with the certificate that it still has. Nobody answers? Then again, sooner and
sooner, and from 30 days before the end on there is an alarm. New connections use the new certificate; those
that are open stay, because TLS looks at certificates only when a connection begins. A holder renews the CA's
own certificate in the same way, with the same key, so that the cluster's id and every older copy keep their
worth; the others get it along with their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from crdt_merge_protocol.errors import CrdtMergeError

from .alarms import Alarms
from .background import Duties
from .control.model import CertificateInfo, Severity
from .errors import PeerUnreachableError, StorageError
from .gossip import GossipDriver
from .ports import Clock, Fs, Net, Rng
from .telemetry.logging import get_logger
from .transport import Identity
from .transport.certificates import CertificateAuthority, Term
from .transport.identity import (
    load_authority,
    load_tls_key,
    read_certificates,
    store_authority,
    store_renewed,
)
from .transport.join import JoinService
from .transport.renewing import Renewed, ask_renewal

log = get_logger()

CA_FEATURE: Final = "ca"
"""What a node says of itself in its hello if it holds the cluster's CA."""
DAY_S: Final = 86_400.0
WARNING_S: Final = 30 * DAY_S
ERROR_S: Final = 7 * DAY_S
LOOK_S: Final = DAY_S / 2
"""How often the clock is looked at; it may be set meanwhile."""
RETRY_S_MIN: Final = 60.0
RETRY_S_MAX: Final = DAY_S / 4
RETRY_SHARE: Final = 1 / 100
"""Of the time that is left, after which a failed attempt is repeated."""
ADDRESSES_MAX: Final = 24
"""Asked in one attempt; the next one takes others."""
ALARM: Final = "certificate.delayed"


def read_info(data_dir: Path, fs: Fs) -> CertificateInfo:
    """Return what the files say of a node's certificate, whether its daemon runs or not.

    Raises:
        NotFoundError: There is no node.
        CorruptError: A file is damaged.
    """
    identity = Identity.load(data_dir, fs)
    certificate, ca = (Term.of(each) for each in read_certificates(data_dir, fs))
    return CertificateInfo(
        node=identity.node.hex(),
        cluster=identity.cluster.hex(),
        begins=certificate.begins_at,
        renews=certificate.renewed_at,
        expires=certificate.expires_at,
        ca_expires=ca.expires_at,
        has_ca=load_authority(data_dir, fs) is not None,
        next_attempt=certificate.renewed_at,
    )


class CertificateKeeper:
    """Renews the certificate of one node in time, for as long as it runs."""

    def __init__(
        self,
        data_dir: Path,
        identity: Identity,
        *,
        authority: CertificateAuthority | None,
        joining: JoinService | None,
        driver: GossipDriver,
        alarms: Alarms,
        clock: Clock,
        rng: Rng,
        fs: Fs,
        net: Net,
    ) -> None:
        """Take what renewing needs.

        Args:
            data_dir: The data directory.
            identity: Who this node is.
            authority: The cluster's CA, if it is here.
            joining: Who signs for others, and is told of a renewed CA.
            driver: Knows peers and their addresses.
            alarms: Where it stands that time runs out.
            clock: Wall time.
            rng: Whom to ask first.
            fs: Where the files are.
            net: For asking.
        """
        self._data_dir = data_dir
        self._identity = identity
        self._authority = authority
        self._joining = joining
        self._driver = driver
        self._alarms = alarms
        self._clock = clock
        self._rng = rng
        self._fs = fs
        self._net = net
        self._term, self._ca_term = self._read_terms()
        self._last_error = ""
        self._last_attempt = 0.0
        self._next_attempt = 0.0
        self._lock = asyncio.Lock()
        self._duties = Duties(driver.fail)

    @property
    def expires_at(self) -> float:
        """Wall time at which the present certificate ends, in seconds since 1970."""
        return self._term.expires_at

    def info(self) -> CertificateInfo:
        """Return what there is to know about the certificate."""
        return CertificateInfo(
            node=self._identity.node.hex(),
            cluster=self._identity.cluster.hex(),
            begins=self._term.begins_at,
            renews=self._term.renewed_at,
            expires=self._term.expires_at,
            ca_expires=self._ca_term.expires_at,
            has_ca=self._authority is not None,
            last_attempt=self._last_attempt,
            last_error=self._last_error,
            next_attempt=self._next_attempt or self._term.renewed_at,
        )

    def start(self) -> None:
        """Look after it from now on."""
        self._duties.begin(self._run(), name="certificate")

    async def close(self) -> None:
        """Stop; what is stored is whole."""
        await self._duties.close()

    async def _run(self) -> None:
        while True:
            now = self._clock.now()
            if now >= max(self._next_due(), self._next_attempt):
                try:
                    await self.renew()
                except CrdtMergeError as error:
                    log.warning("certificate.delayed", error=error)
            self._judge()
            now = self._clock.now()
            await asyncio.sleep(min(LOOK_S, max(max(self._next_due(), self._next_attempt) - now, 1.0)))

    def _next_due(self) -> float:
        due = self._term.renewed_at
        return min(due, self._ca_term.renewed_at) if self._authority is not None else due

    async def renew(self) -> CertificateInfo:
        """Get a new certificate now, whether it is due or not.

        Raises:
            PeerUnreachableError: No node that holds the CA could be reached; the message has all reasons.
            StorageError: It could not be stored; the old one is still there.
        """
        async with self._lock:
            self._last_attempt = now = self._clock.now()
            left_s = self._term.expires_at - now
            # Once it has expired nobody talks to this node, unless its clock was wrong: no hurry.
            wait_s = left_s * RETRY_SHARE if left_s > 0 else RETRY_S_MAX
            self._next_attempt = now + min(max(wait_s, RETRY_S_MIN), RETRY_S_MAX)
            try:
                if self._authority is not None:
                    renewed = await self._sign(self._authority)
                else:
                    renewed = await self._ask()
                await self._take(renewed)
            except CrdtMergeError as error:
                self._last_error = error.message
                self._judge()
                raise
            self._last_error, self._next_attempt = "", 0.0
            self._judge()
            log.info("certificate.renewed", node=self._identity.node, days=self._days_left())
        return self.info()

    async def _sign(self, authority: CertificateAuthority) -> Renewed:
        """Sign for oneself, after the CA's own certificate if that is due."""
        now = self._clock.now()
        if now >= Term.of(authority.certificate).renewed_at:
            authority = authority.renewed(now=now)
            await self._files(lambda: store_authority(self._data_dir, authority, fs=self._fs))
            self._authority = authority
            if self._joining is not None:
                self._joining.authority = authority
        key = load_tls_key(self._data_dir, self._fs).public_key()
        return Renewed(authority.issue(key, self._identity.node, now=now), authority.certificate)

    async def _ask(self) -> Renewed:
        """Ask one node after the other until one signs."""
        problems: list[str] = []
        for address in self._addresses():
            assert self._driver.endpoint is not None, "the endpoint is there before anything is asked"
            try:
                return await ask_renewal(
                    address,
                    node=self._identity.node,
                    cluster=self._identity.cluster,
                    tls_key=load_tls_key(self._data_dir, self._fs),
                    valid_until=self._term.expires_at,
                    context=self._driver.endpoint.join_context,
                    net=self._net,
                    clock=self._clock,
                )
            except CrdtMergeError as error:
                problems.append(error.message)
        told = " ".join(dict.fromkeys(problems)) or "No address of any peer is known."
        raise PeerUnreachableError(
            f"no node that holds the cluster's CA signs a new certificate: {told}",
            hint="Start one that holds it, or `crdt-merge-node ca import` it on another.",
        )

    def _addresses(self) -> list[str]:
        """Return whom to ask: who said it holds the CA, who admitted this node, then others at random."""
        others = list(self._other_addresses())
        self._rng.shuffle(others)
        ordered = dict.fromkeys((*self._holder_addresses(), *self._identity.introducers, *others))
        return list(ordered)[:ADDRESSES_MAX]

    def _holder_addresses(self) -> Iterator[str]:
        for peer, connection in sorted(self._driver.connections.items()):
            if CA_FEATURE in connection.hello.features and (
                target := self._driver.engine.overlay.peers.get(peer)
            ):
                yield from target.addresses

    def _other_addresses(self) -> Iterator[str]:
        for _, addresses in self._driver.engine.overlay.introductions():
            yield from addresses

    async def _take(self, renewed: Renewed) -> None:
        """Store a new certificate and use it for new connections."""

        def store() -> None:
            _, present = read_certificates(self._data_dir, self._fs)
            ca = max(renewed.ca, present, key=lambda each: Term.of(each).expires_at)
            store_renewed(self._data_dir, renewed.certificate, ca, fs=self._fs)

        await self._files(store)
        self._term, self._ca_term = self._read_terms()
        if self._driver.endpoint is not None:
            self._driver.endpoint.reload(self._identity)

    async def _files(self, work: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(work)
        except OSError as error:
            raise StorageError(
                f"the new certificate cannot be stored in {self._data_dir}: {error.strerror}.",
                hint="The old one is still in use. Check the disk and permissions.",
            ) from error

    def _read_terms(self) -> tuple[Term, Term]:
        certificate, ca = read_certificates(self._data_dir, self._fs)
        return Term.of(certificate), Term.of(ca)

    def _days_left(self) -> int:
        return int((self._term.expires_at - self._clock.now()) // DAY_S)

    def _judge(self) -> None:
        """Let the alarm stand as it has to."""
        left_s = min(self._term.expires_at, self._ca_term.expires_at) - self._clock.now()
        if left_s > WARNING_S:
            self._alarms.clear(ALARM)
            return
        what = f"ends in {int(left_s // DAY_S)} days" if left_s > 0 else "has expired"
        self._alarms.set(
            ALARM,
            severity=Severity.WARNING if left_s > ERROR_S else Severity.ERROR,
            code="E1604",
            message=f"the certificate of this node {what} and could not be renewed"
            + (f": {self._last_error}" if self._last_error else "."),
            hint="Start a node that holds the cluster's CA, then: crdt-merge-node cert renew"
            if left_s > 0
            else "Get a token from a node that holds the CA, stop this one, then: "
            "crdt-merge-node cert renew --join TOKEN",
        )
