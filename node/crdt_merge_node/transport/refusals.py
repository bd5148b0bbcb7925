"""TLS failures in words, for both sides.

OpenSSL names a failure by a constant. The side that found it has one constant, the side that is told by an
alert has another. Both are mapped here to the same sentence, which starts with "its" where this node judged
the peer and with "your" where the peer judged this node.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from crdt_merge_node.errors import PeerRefusedError, PeerUnreachableError, TlsError, TransportError

_NOT_OUR_CA: Final = "certificate was not signed by this cluster's CA"
_EXPIRED: Final = "certificate has expired"
_WRONG_PURPOSE: Final = "certificate is not meant for this use"

# OpenSSL X509_V_ERR_* numbers: openssl/x509_vfy.h.
_VERIFY_CODES: Final = {
    7: "certificate carries a signature that does not verify",
    9: "certificate is not valid yet (is the clock right?)",
    10: _EXPIRED,
    18: _NOT_OUR_CA,
    19: _NOT_OUR_CA,
    20: _NOT_OUR_CA,
    21: _NOT_OUR_CA,
    23: "certificate has been revoked",
    24: _NOT_OUR_CA,
    26: _WRONG_PURPOSE,
    30: _NOT_OUR_CA,
}
_ALERTS: Final = {
    "TLSV1_ALERT_UNKNOWN_CA": _NOT_OUR_CA,
    "TLSV1_ALERT_DECRYPT_ERROR": _NOT_OUR_CA,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": _EXPIRED,
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "certificate has been revoked",
    "SSLV3_ALERT_BAD_CERTIFICATE": "certificate is not acceptable (not valid yet, or malformed)",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": _WRONG_PURPOSE,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "certificate could not be checked",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "certificate is missing, and only members are heard here",
    "TLSV1_ALERT_ACCESS_DENIED": "certificate gives no access here",
}
_ALERTS_OTHER: Final = {
    "TLSV1_ALERT_PROTOCOL_VERSION": "only TLS 1.3 is spoken here",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "no TLS parameters in common",
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": "no application protocol in common",
    "TLSV1_ALERT_INTERNAL_ERROR": "it had an internal error",
    "SSLV3_ALERT_ILLEGAL_PARAMETER": "the TLS handshake was malformed",
    "SSLV3_ALERT_UNEXPECTED_MESSAGE": "the TLS handshake was malformed",
}
_NOT_TLS: Final = {
    "HTTP_REQUEST": "it sent a plaintext HTTP request, and only TLS 1.3 is spoken here",
    "HTTPS_PROXY_REQUEST": "it sent a plaintext proxy request, and only TLS 1.3 is spoken here",
    "WRONG_VERSION_NUMBER": "what it sent is not TLS",
    "PACKET_LENGTH_TOO_LONG": "what it sent is not TLS",
    "BAD_RECORD_TYPE": "what it sent is not TLS",
    "UNKNOWN_PROTOCOL": "what it sent is not TLS",
    "UNEXPECTED_MESSAGE": "what it sent is not a TLS handshake",
}
_LOCAL: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "its certificate is missing, and only members are heard here",
    "UNSUPPORTED_PROTOCOL": "it does not speak TLS 1.3",
    "NO_PROTOCOLS_AVAILABLE": "it does not speak TLS 1.3",
    "NO_SHARED_CIPHER": "no TLS parameters in common",
}
_PLAINTEXT: Final = b"This port speaks TLS 1.3 between the nodes of one cluster, nothing else.\n"


class Fault(Enum):
    """Who or what ended a connection."""

    PEER_REFUSED = auto()
    """The peer judged this node."""
    WE_REFUSED = auto()
    """This node judged the peer."""
    NOT_TLS = auto()
    """What came is not the TLS that we speak."""
    BROKEN = auto()
    """Nobody said anything."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a connection ended."""

    fault: Fault
    reason: str


def explain(error: Exception | None) -> Explanation:
    """Return in words why a connection ended; None is an end that the peer announced properly."""
    if isinstance(error, ssl.SSLCertVerificationError):
        words = _VERIFY_CODES.get(error.verify_code, f"certificate does not verify ({error.verify_message})")
        return Explanation(Fault.WE_REFUSED, f"its {words}")
    if error is None or isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Explanation(Fault.BROKEN, "it closed the connection without a reason")
    if isinstance(error, ssl.SSLError):
        return _explain_tls(error.reason or str(error))
    if isinstance(error, TimeoutError):
        return Explanation(Fault.BROKEN, str(error))
    return Explanation(Fault.BROKEN, f"the connection broke ({error})")


def transport_error(remote: str, error: Exception | None) -> TransportError:
    """Return what to raise when the connection to ``remote`` ended because of ``error``."""
    why = explain(error)
    hint = "Is it another cluster? Join with a token of the right one." if "CA" in why.reason else ""
    match why.fault:
        case Fault.PEER_REFUSED:
            return PeerRefusedError(f"{remote} refused this node: {why.reason}.", hint=hint)
        case Fault.WE_REFUSED:
            return PeerRefusedError(f"this node refused {remote}: {why.reason}.", hint=hint)
        case Fault.NOT_TLS:
            return TlsError(f"{remote}: {why.reason}.")
        case Fault.BROKEN:
            return PeerUnreachableError(f"{remote}: {why.reason}.")


def _explain_tls(reason: str) -> Explanation:
    if reason in _ALERTS:
        return Explanation(Fault.PEER_REFUSED, f"your {_ALERTS[reason]}")
    if reason in _ALERTS_OTHER:
        return Explanation(Fault.PEER_REFUSED, _ALERTS_OTHER[reason])
    if "_ALERT_" in reason:
        return Explanation(Fault.PEER_REFUSED, reason.partition("_ALERT_")[2].replace("_", " ").lower())
    if reason in _LOCAL:
        return Explanation(Fault.WE_REFUSED, _LOCAL[reason])
    return Explanation(
        Fault.NOT_TLS, _NOT_TLS.get(reason, f"TLS failed ({reason.replace('_', ' ').lower()})")
    )


def plaintext_answer(error: Exception) -> bytes:
    """Return what to tell a caller that does not speak TLS, in plain text; nothing to one that does.

    OpenSSL sends no alert to such callers, and an HTTP client or a person with ``nc`` could not read one.
    """
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    if reason == "HTTP_REQUEST":
        head = (
            f"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {len(_PLAINTEXT)}\r\n"
        )
        return head.encode() + b"Connection: close\r\n\r\n" + _PLAINTEXT
    return _PLAINTEXT if reason in ("WRONG_VERSION_NUMBER", "HTTPS_PROXY_REQUEST") else b""
