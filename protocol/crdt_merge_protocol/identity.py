"""Node ids and Ed25519 keys. A node id *is* the node's public key: 32 bytes, shown as 64 hex digits.

OpenSSL accepts the identity point as a public key, and under it one signature verifies every message; so
small-order points and encodings that are not canonical are refused here before any verification
(SCENARIOS T4, B28). Source: RFC 8032, and Chalkias et al. 2020, "Taming the many EdDSAs", table 1.
"""

from __future__ import annotations

import functools
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .errors import BadSignatureError, LocalProtocolError

PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
KEYS_REMEMBERED_MAX: Final = 1024
"""Of authors whose signatures were checked lately."""
_FIELD_PRIME: Final = 2**255 - 19
# y-coordinates of the eight points whose order divides 8 (two share 0 up to sign).
_ORDER_8_Y: Final = 2707385501144840649318225287225658788936804267575313519463743609750303402022
_ORDER_8_Y_NEGATIVE: Final = _FIELD_PRIME - _ORDER_8_Y
_SMALL_ORDER_Y: Final = frozenset({0, 1, _FIELD_PRIME - 1, _ORDER_8_Y, _ORDER_8_Y_NEGATIVE})


class NodeKey:
    """The private half of a node's identity. Signs operations; never leaves its node."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != PUBLIC_KEY_BYTES:
            raise LocalProtocolError(f"a node key is {PUBLIC_KEY_BYTES} bytes, got {len(seed)}.")
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.seed = seed
        self.node_id = self._private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of ``message``."""
        return self._private.sign(message)


def check_public_key(public: bytes) -> None:
    """Refuse encodings that are not canonical and points of small order.

    Raises:
        BadSignatureError: The key must not be used to verify anything.
    """
    if len(public) != PUBLIC_KEY_BYTES:
        raise BadSignatureError(f"a node id is {PUBLIC_KEY_BYTES} bytes, got {len(public)}.")
    y = int.from_bytes(public, "little") & ((1 << 255) - 1)
    if y >= _FIELD_PRIME or y in _SMALL_ORDER_Y:
        raise BadSignatureError(f"node id {public.hex()[:12]} is not an acceptable Ed25519 point.")


def verify(public: bytes, signature: bytes, message: bytes) -> None:
    """Check an Ed25519 signature.

    Raises:
        BadSignatureError: Wrong length, unacceptable key, or it does not verify.
    """
    key = _key(public)
    if len(signature) != SIGNATURE_BYTES:
        raise BadSignatureError(f"a signature is {SIGNATURE_BYTES} bytes, got {len(signature)}.")
    try:
        key.verify(signature, message)
    except (InvalidSignature, ValueError):
        raise BadSignatureError(f"the signature by {public.hex()[:12]} does not verify.") from None


@functools.lru_cache(maxsize=KEYS_REMEMBERED_MAX)
def _key(public: bytes) -> Ed25519PublicKey:
    """Return an acceptable key, ready for use. What is refused is not remembered."""
    check_public_key(public)
    try:
        return Ed25519PublicKey.from_public_bytes(public)
    except ValueError:
        raise BadSignatureError(f"node id {public.hex()[:12]} is not an acceptable Ed25519 point.") from None
