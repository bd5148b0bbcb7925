"""Names that a shell completes: groups and peers of the running daemon, if it answers at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from .output import clean
from .place import find_data_dir, find_socket

if TYPE_CHECKING:
    from crdt_merge_node.control.client import Client

TIMEOUT_S: Final = 0.3
"""Whoever presses a key does not wait for a daemon that is busy."""


class _Known(click.ParamType[str]):
    """A text that the daemon may know how to complete."""

    def __init__(self, name: str, ask: Callable[[Client], Iterable[tuple[str, str]]]) -> None:
        self.name = name
        self._ask = ask

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        """Take the text as it is: the daemon judges it."""
        return str(value)

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002  click's signature.
        incomplete: str,
    ) -> list[CompletionItem]:
        """Return what the daemon knows and begins so; nothing if it does not answer in time."""
        named = ctx.params.get("data_dir") or ctx.find_root().params.get("data_dir")
        try:
            found = self._find(named)
        except Exception:  # noqa: BLE001  A shell that completes has no place for an error of any kind.
            return []
        return [
            CompletionItem(name, help=clean(about)) for name, about in found if name.startswith(incomplete)
        ]

    def _find(self, data_dir: str | None) -> list[tuple[str, str]]:
        from crdt_merge_node.control.lean import import_grpc
        from crdt_merge_node.control.socket_path import require_socket

        socket = find_socket(find_data_dir(data_dir, os.environ), os.environ)
        require_socket(socket)
        import_grpc()
        from crdt_merge_node.control.client import Client

        with Client(socket, timeout_s=TIMEOUT_S) as client:
            # Names that a shell would have to quote, or that could move its cursor, are left to be typed.
            return [(name, about) for name, about in self._ask(client) if name and name.isprintable()]


def _groups(client: Client) -> Iterable[tuple[str, str]]:
    return ((group.name, group.strategy) for group in client.group_list())


def _peers(client: Client) -> Iterable[tuple[str, str]]:
    return ((peer.name or peer.id[:12], peer.state) for peer in client.peer_list())


GROUP: Final = _Known("group", _groups)
PEER: Final = _Known("peer", _peers)
