"""The daemon's branches of the error tree: configuration, storage, transport, control.

The base class and everything the deterministic core raises are in ``crdt_merge_protocol.errors``. Codes are
stable: E14xx configuration, E15xx storage, E16xx transport, E17xx control.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Final

from crdt_merge_protocol.errors import CrdtMergeError
from crdt_merge_protocol.limits import NAME_CHARS_MAX

SHOWN_CHARS: Final = 64
"""Of text that is too long to be a name."""


class ConfigError(CrdtMergeError):
    """The configuration is wrong. Holds every problem found, not only the first."""

    code = "E1400"
    exit_code = 78

    def __init__(self, message: str, *, hint: str = "", problems: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems) or (message,)

    @classmethod
    def of(cls, problems: Sequence[str], *, hint: str = "") -> ConfigError:
        """Return one error that lists all ``problems``, one a line."""
        if len(problems) == 1:
            return cls(problems[0], hint=hint, problems=problems)
        lines = "".join(f"\n  - {problem}" for problem in problems)
        return cls(f"{len(problems)} problems in the configuration:{lines}", hint=hint, problems=problems)


class StorageError(CrdtMergeError):
    """The store cannot be opened, read or written."""

    code = "E1500"


class CorruptError(StorageError):
    """Stored bytes are not what was stored."""

    code = "E1501"
    exit_code = 7


class FullError(StorageError):
    """No room on the file system. Nothing was damaged; writing resumes once there is room."""

    code = "E1502"


class SchemaTooNewError(StorageError):
    """The data directory was written by a newer release."""

    code = "E1503"
    exit_code = 78


class StoreFailedError(StorageError):
    """A write or fsync failed. The store acknowledges nothing more until a restart re-reads the disk."""

    code = "E1504"
    exit_code = 74


class ErasedError(StorageError):
    """Administrators had these bytes erased: they are not stored again."""

    code = "E1505"
    exit_code = 5


class TransportError(CrdtMergeError):
    """A connection could not be made or kept."""

    code = "E1600"


class PeerUnreachableError(TransportError):
    """Nobody answers at the address."""

    code = "E1601"


class PeerRefusedError(TransportError):
    """The peer, or this node, refused the other with a reason."""

    code = "E1602"
    exit_code = 5


class TlsError(TransportError):
    """The TLS handshake failed."""

    code = "E1603"


class ControlError(CrdtMergeError):
    """A request to the daemon cannot be carried out."""

    code = "E1700"


class DaemonNotRunningError(ControlError):
    """No daemon answers on the control socket."""

    code = "E1701"
    exit_code = 3


class NotFoundError(ControlError):
    """There is no such peer, group or contribution."""

    code = "E1702"
    exit_code = 4


class AmbiguousNameError(NotFoundError):
    """A name or id prefix fits more than one thing."""

    code = "E1703"


class InvalidRequestError(ControlError):
    """The request contradicts itself or the state of the group."""

    code = "E1704"
    exit_code = 2


class TimedOutError(ControlError):
    """What was waited for did not happen in time."""

    code = "E1705"
    exit_code = 6


class AlreadyRunningError(ControlError):
    """Another daemon holds the data directory."""

    code = "E1706"
    exit_code = 73


def quoted(text: str) -> str:
    """Return what somebody gave for a name, in quotes, for a message: shortened where it can be none."""
    return (
        f'"{text}"' if len(text) <= NAME_CHARS_MAX else f'"{text[:SHOWN_CHARS]}…" of {len(text)} characters'
    )


class NotReadyError(ControlError):
    """The node holds back for now: it was restored and has not caught up, or it is leaving."""

    code = "E1709"
    exit_code = 6


class BannedError(ControlError):
    """Administrators of the group banned or erased this content: it is not taken in again."""

    code = "E1710"
    exit_code = 5


class NotAdministratorError(ControlError):
    """Only administrators of the group may do this."""

    code = "E1711"
    exit_code = 5


class QuorumError(ControlError):
    """The act needs the signatures of more administrators."""

    code = "E1712"
    exit_code = 5


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``Did you mean "…"?`` for the most similar of ``known``, or nothing if none is similar."""
    if len(word) > NAME_CHARS_MAX:
        return ""  # Comparing costs time and memory that grow with it, and nothing is like it.
    if len(word) > 100:  # Nobody misspells so much, and comparing takes the square of it.
        return ""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f'Did you mean "{close[0]}"?' if close else ""


def error_class(code: str) -> type[CrdtMergeError]:
    """Return the class whose stable code is ``code``, or the base class for a code of a newer release."""
    pending: list[type[CrdtMergeError]] = [CrdtMergeError]
    while pending:
        candidate = pending.pop()
        if candidate.code == code and "code" in vars(candidate):
            return candidate
        pending.extend(candidate.__subclasses__())
    return CrdtMergeError
