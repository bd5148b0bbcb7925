"""What every command has in common: where its node is, how it answers and how it fails."""

from __future__ import annotations

import errno
import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, NoReturn, ParamSpec

import click
from crdt_merge_protocol.errors import CrdtMergeError

from crdt_merge_node.documents import error_document
from crdt_merge_node.errors import ConfigError, FullError, InvalidRequestError, StorageError

from .output import INTERRUPTED, NO_INPUT, QUIET, clean, warn
from .place import find_data_dir, find_socket

if TYPE_CHECKING:
    from crdt_merge_node.control.client import Client

P = ParamSpec("P")
TEXT_CHARS_MAX = 8000
"""Of a message or a hint; one that lists 50 problems has room."""
PATH_CHARS_MAX = 200
"""Of a path in a message."""
_NOT_ALLOWED: Final = "This user is not allowed to: change the permissions, or name another place."
_NO_ROOM: Final = "Make room, or name another place."
_REMEDIES: Final = {
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: _NOT_ALLOWED,
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "The file system there, or `ulimit -f`, allows no file of this size; name another place.",
    errno.ENOENT: "Make it first, or name another place.",
}
"""By the number of an error of the operating system that no command foresaw."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """One run of a command: for which node, and in which form it answers."""

    data_dir: Path
    is_json: bool
    is_debug: bool
    is_quiet: bool = False
    """Only warnings and errors go to standard error, and no progress anywhere."""
    data_dir_flag: str | None = None
    """What was given as ``--data-dir``, if anything."""

    @property
    def socket(self) -> Path:
        """The control socket of the node."""
        return find_socket(self.data_dir, os.environ)

    def client(self, *, timeout_s: float | None = None) -> Client:
        """Return a client of the running daemon, to be used in a ``with``.

        Args:
            timeout_s: How long one answer may take; none: as long as it takes. Streams never time out.

        Raises:
            DaemonNotRunningError: It does not run.
        """
        from crdt_merge_node.control.socket_path import require_socket

        # Before the import of gRPC, which takes longer than everything else: "not running" comes at once.
        require_socket(self.socket)
        from crdt_merge_node.control.lean import import_grpc

        import_grpc()
        from crdt_merge_node.control.client import Client

        return Client(self.socket, timeout_s=timeout_s)

    @contextmanager
    def reporting_errors(self) -> Iterator[None]:
        """End the command with the error's own exit status, its text and its remedy."""
        try:
            yield
        except CrdtMergeError as error:
            if self.is_debug:
                raise
            self._fail(error)
        except (KeyboardInterrupt, click.Abort):
            warn("interrupted")
            raise click.exceptions.Exit(INTERRUPTED) from None
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except Exception as error:
            if self.is_debug:
                raise
            self._fail(_in_our_words(error))

    def _fail(self, error: CrdtMergeError) -> NoReturn:
        message, hint = _cut(error.message), _cut(error.hint)
        warn(f"error {error.code}: {clean(message)}")
        if hint:
            warn(f"hint: {clean(hint)}")
        if self.is_json:
            click.echo(json.dumps(error_document(error)))
        raise click.exceptions.Exit(error.exit_code)


def _in_our_words(error: Exception) -> CrdtMergeError:
    """Return what an error of Python means to who typed the command."""
    if isinstance(error, UnicodeEncodeError):
        bad = error.object[error.start : error.end]
        return InvalidRequestError(f"an argument is not UTF-8: it holds {bad[:PATH_CHARS_MAX]!r}.")
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # Of pathlib, with no other mark.
        return InvalidRequestError("a path begins with the home directory (~) of nobody who is known here.")
    if isinstance(error, OSError):
        where = f"{str(error.filename)[:PATH_CHARS_MAX]}: " if error.filename else ""
        kind = FullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        hint = _REMEDIES.get(error.errno or 0, "With --debug it says where.")
        return kind(f"{where}{error.strerror or error}.", hint=hint)
    return CrdtMergeError(
        f"{type(error).__name__}: {error}.",
        hint="This was not foreseen. Run it again with --debug and report what it prints.",
    )


def _cut(text: str) -> str:
    """Return a text of a length that a person may still read: arguments in it may be of any."""
    if len(text) <= TEXT_CHARS_MAX:
        return text
    return f"{text[: TEXT_CHARS_MAX // 2]} … {text[-TEXT_CHARS_MAX // 2 :]}"


def command(function: Callable[Concatenate[Invocation, P], None]) -> Callable[..., None]:
    """Give a command the common options; it receives them as an :class:`Invocation`, its first argument.

    Goes between ``@click.command()`` and the command's own options.
    """

    @click.option("--data-dir", type=click.Path(file_okay=False), help="Directory of the node's data.")
    @click.option("--json", "is_json", is_flag=True, help="Print JSON with a versioned schema.")
    @click.option("--quiet", "-q", "is_quiet", is_flag=True, help="No notes and no progress, only errors.")
    @click.option(
        "--no-input", "is_silent", is_flag=True, help="Never ask; fail where somebody would be asked."
    )
    @click.option("--debug", "is_debug", is_flag=True, help="Show tracebacks.")
    @functools.wraps(function)
    def wrapper(
        *args: Any,
        data_dir: str | None,
        is_json: bool,
        is_quiet: bool,
        is_debug: bool,
        **kwargs: Any,
    ) -> None:
        context = click.get_current_context()
        above = context.find_root().params
        flag = above.get("data_dir") if data_dir is None else data_dir
        try:
            place = find_data_dir(flag, os.environ)
        except ConfigError as error:
            raise click.UsageError(f"{error.message} {error.hint}") from None
        invocation = Invocation(
            data_dir=place,
            is_json=is_json,
            is_debug=is_debug or bool(above.get("debug")),
            is_quiet=is_quiet,
            data_dir_flag=flag,
        )
        context.meta[QUIET] = is_quiet
        context.meta[NO_INPUT] = kwargs.pop("is_silent")
        with invocation.reporting_errors():
            function(invocation, *args, **kwargs)

    return wrapper
