"""Whoever asks a node, from whatever task: what that leads to is logged in the name of that node.

Within a daemon everything is begun in the context of its one node anyway. Where several live in one process,
a caller belongs to none of them, or to another.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from crdt_merge_node.telemetry.events import each_bound

KindT = TypeVar("KindT", bound=type)


def in_own_name(kind: KindT) -> KindT:
    """Bind every public method of a class to the events of ``self._services``.

    Methods are coroutine functions, or return an async iterator at once.
    """
    for name, method in list(vars(kind).items()):
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        setattr(kind, name, _awaited(method) if inspect.iscoroutinefunction(method) else _iterated(method))
    return kind


def _awaited(method: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._services.events.bound():
            return await method(self, *args, **kwargs)

    return call


def _iterated(method: Callable[..., AsyncIterator[Any]]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        return each_bound(self._services.events, method(self, *args, **kwargs))

    return call
