"""The operations of one message on their way in: each is decoded once, and its signature checked once.

Checking a signature costs more than all the rest that is done with an operation, and it can be done anywhere
and at any time before: it depends on the bytes alone. So a driver may ask :meth:`Engine.read` what it would
have to check of a message, check that elsewhere, and hand the answers over with the message. They are kept by
the whole signed bytes, so an answer can never be taken for that to another question. Whatever is not
answered the engine checks itself; so a driver that checks nothing beforehand is as right, only slower.
"""

from __future__ import annotations

from collections.abc import Iterable

from .errors import RemoteProtocolError
from .operations import SignedOperation


class Reading:
    """What is known of the bytes in one message. Not for two threads at a time but for :func:`check`."""

    def __init__(self) -> None:
        self._loaded: dict[bytes, SignedOperation] = {}
        self._verdicts: dict[bytes, RemoteProtocolError | None] = {}

    def load(self, wire: bytes) -> SignedOperation:
        """Return the operation in these bytes, decoded once.

        Raises:
            RemoteProtocolError: They are not a signed operation.
        """
        signed = self._loaded.get(wire)
        if signed is None:
            signed = self._loaded[wire] = SignedOperation.load(wire)
        return signed

    def check_signature(self, wire: bytes, signed: SignedOperation) -> None:
        """Check a signature, unless that was done.

        Raises:
            BadSignatureError: It is not the author's, or its id is no acceptable key.
        """
        if wire not in self._verdicts:
            signed.check_signature()
        elif (refused := self._verdicts[wire]) is not None:
            raise refused

    def note(self, wire: bytes, verdict: RemoteProtocolError | None) -> None:
        """Take in what :func:`check` has found."""
        self._verdicts[wire] = verdict


def check(operations: Iterable[SignedOperation]) -> list[RemoteProtocolError | None]:
    """Check signatures in order, up to the first that is not good; return what was found of each looked at.

    For any thread. While OpenSSL works on a signature, other threads run.
    """
    verdicts: list[RemoteProtocolError | None] = []
    for signed in operations:
        try:
            signed.check_signature()
        except RemoteProtocolError as error:
            verdicts.append(error)
            break
        verdicts.append(None)
    return verdicts
