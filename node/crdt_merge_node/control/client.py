"""Python clients of a running node: :class:`AsyncClient`, itself a ``NodeApi``, and a sync :class:`Client`.

    with Client.of(data_dir) as node:
        for event in node.resolve("digits", output_path="/tmp/model.safetensors"):
            print(event)

Both have the methods of ``NodeApi``, where they are documented, and raise the daemon's own errors. No call
has a deadline unless asked for: a socket on the same machine fails at once when the daemon is gone, and long
work reports progress.

A method has the parameters of the function of that name in ``calls``; here stands only whether it gives one
answer or a stream of them, which type checkers and ``help`` see as if it were written out.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

import grpc
from crdt_merge_proto.v1 import node_service_pb2_grpc as pb_grpc

from crdt_merge_node.errors import ControlError

from . import calls
from .calls import Call, Stream
from .codec import METADATA_BYTES_MAX, decode_event, error_of
from .socket_path import control_socket, require_socket

ParamsT = ParamSpec("ParamsT")
ValueT = TypeVar("ValueT")

_MIB: Final = 1 << 20
_OPTIONS: Final = (
    # 1,024 groups or 100,000 contributions in one answer; gRPC's own default is 4 MiB.
    ("grpc.max_receive_message_length", 64 * _MIB),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    # Channels would otherwise share the backoff of an earlier failed attempt: a caller that waits for a
    # daemon to come up would see it a second late.
    ("grpc.use_local_subchannel_pool", 1),
)


def _target(socket: Path) -> str:
    require_socket(socket)
    return f"unix:{socket}"


class ClientClosedError(ControlError):
    """A client was asked after it was closed."""


def _as_method(method: Any, call: Callable[..., object]) -> None:
    """Show a method with the name, the words and the parameters of the function that makes its call."""
    method.__name__, method.__doc__ = call.__name__, call.__doc__
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = inspect.Signature([own, *inspect.signature(call).parameters.values()])


def _async_answer(
    call: Callable[ParamsT, Call[ValueT]],
) -> Callable[Concatenate[AsyncClient, ParamsT], Coroutine[Any, Any, ValueT]]:
    async def method(client: AsyncClient, /, *args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ValueT:
        return await client.answer(call(*args, **kwargs))

    _as_method(method, call)
    return method


def _async_stream(
    call: Callable[ParamsT, Stream[ValueT]],
) -> Callable[Concatenate[AsyncClient, ParamsT], AsyncIterator[ValueT]]:
    def method(
        client: AsyncClient, /, *args: ParamsT.args, **kwargs: ParamsT.kwargs
    ) -> AsyncIterator[ValueT]:
        return client.stream(call(*args, **kwargs))

    _as_method(method, call)
    return method


def _answer(
    call: Callable[ParamsT, Call[ValueT]],
) -> Callable[Concatenate[Client, ParamsT], ValueT]:
    def method(client: Client, /, *args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ValueT:
        return client.answer(call(*args, **kwargs))

    _as_method(method, call)
    return method


def _stream(
    call: Callable[ParamsT, Stream[ValueT]],
) -> Callable[Concatenate[Client, ParamsT], Iterator[ValueT]]:
    def method(client: Client, /, *args: ParamsT.args, **kwargs: ParamsT.kwargs) -> Iterator[ValueT]:
        return client.stream(call(*args, **kwargs))

    _as_method(method, call)
    return method


class AsyncClient:
    """A ``NodeApi`` on the other side of a control socket.

    Raises:
        DaemonNotRunningError: There is no such socket.
    """

    def __init__(self, socket: Path) -> None:
        # Here and not above: the command line has no use for it, and it takes as long as all of gRPC.
        import grpc.aio

        self._socket = socket
        self._channel = grpc.aio.insecure_channel(_target(socket), options=_OPTIONS)
        self._closed_error = grpc.aio.UsageError
        self._calls: Any = pb_grpc.NodeServiceStub(self._channel)
        self._is_closed = False

    @classmethod
    def of(cls, data_dir: Path) -> Self:
        """Return a client of the node whose data is in ``data_dir``."""
        return cls(control_socket(data_dir))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._is_closed = True
        await self._channel.close(None)

    @property
    def _stub(self) -> Any:
        if self._is_closed:
            raise ClientClosedError("this client of a node was closed.")
        return self._calls

    async def answer(self, call: Call[ValueT]) -> ValueT:
        """Make a call with one answer."""
        try:
            return call.read(await getattr(self._stub, call.method)(call.request))
        except grpc.RpcError as error:
            raise error_of(error, socket=self._socket) from None
        except self._closed_error as error:
            raise ClientClosedError(f"the client was closed: {error}.") from None

    def stream(self, call: Stream[ValueT]) -> AsyncIterator[ValueT]:
        """Begin a call with a stream of answers, which ends when the iterator is closed."""
        return self._events(getattr(self._stub, call.method)(call.request))

    async def _events(self, call: Any) -> AsyncIterator[Any]:
        try:
            async for response in call:
                if (event := decode_event(response)) is not None:
                    yield event
        except grpc.RpcError as error:
            raise error_of(error, socket=self._socket) from None
        except self._closed_error as error:
            raise ClientClosedError(f"the client was closed: {error}.") from None
        finally:
            call.cancel()

    version = _async_answer(calls.version)
    status = _async_answer(calls.status)
    why = _async_answer(calls.why)
    invite = _async_answer(calls.invite)
    events = _async_stream(calls.events)
    log_level = _async_answer(calls.log_level)
    peer_list = _async_answer(calls.peer_list)
    peer_show = _async_answer(calls.peer_show)
    peer_block = _async_answer(calls.peer_block)
    peer_unblock = _async_answer(calls.peer_unblock)
    peer_forget = _async_answer(calls.peer_forget)
    certificate_show = _async_answer(calls.certificate_show)
    certificate_renew = _async_answer(calls.certificate_renew)
    leave = _async_stream(calls.leave)
    backup = _async_stream(calls.backup)
    group_create = _async_stream(calls.group_create)
    group_list = _async_answer(calls.group_list)
    group_show = _async_answer(calls.group_show)
    group_follow = _async_answer(calls.group_follow)
    policy_show = _async_answer(calls.policy_show)
    policy_set = _async_stream(calls.policy_set)
    contribution_add = _async_stream(calls.contribution_add)
    contribution_get = _async_stream(calls.contribution_get)
    contribution_list = _async_answer(calls.contribution_list)
    contribution_show = _async_answer(calls.contribution_show)
    contribution_remove = _async_answer(calls.contribution_remove)
    act_propose = _async_answer(calls.act_propose)
    act_show = _async_answer(calls.act_show)
    act_sign = _async_answer(calls.act_sign)
    act_submit = _async_answer(calls.act_submit)
    erasure_list = _async_answer(calls.erasure_list)
    resolve = _async_stream(calls.resolve)


class Client:
    """The same methods, blocking; streams are plain iterators. For scripts, notebooks and the command line.

    Args:
        timeout_s: How long a single answer may take; none: as long as it takes. Streams have no such limit.

    Raises:
        DaemonNotRunningError: There is no such socket.
        TimedOutError: From any call with a single answer: it took too long.
    """

    def __init__(self, socket: Path, *, timeout_s: float | None = None) -> None:
        self._socket = socket
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(_target(socket), options=_OPTIONS)
        self._stub: Any = pb_grpc.NodeServiceStub(self._channel)

    @classmethod
    def of(cls, data_dir: Path) -> Self:
        """Return a client of the node whose data is in ``data_dir``."""
        return cls(control_socket(data_dir))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._channel.close()

    def answer(self, call: Call[ValueT]) -> ValueT:
        """Make a call with one answer."""
        try:
            return call.read(getattr(self._stub, call.method)(call.request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise error_of(error, socket=self._socket) from None

    def stream(self, call: Stream[ValueT]) -> Iterator[ValueT]:
        """Begin a call with a stream of answers, which ends when the iterator is closed."""
        return self._events(getattr(self._stub, call.method)(call.request))

    def _events(self, call: Any) -> Iterator[Any]:
        try:
            for response in call:
                if (event := decode_event(response)) is not None:
                    yield event
        except grpc.RpcError as error:
            raise error_of(error, socket=self._socket) from None
        finally:
            call.cancel()

    version = _answer(calls.version)
    status = _answer(calls.status)
    why = _answer(calls.why)
    invite = _answer(calls.invite)
    events = _stream(calls.events)
    log_level = _answer(calls.log_level)
    peer_list = _answer(calls.peer_list)
    peer_show = _answer(calls.peer_show)
    peer_block = _answer(calls.peer_block)
    peer_unblock = _answer(calls.peer_unblock)
    peer_forget = _answer(calls.peer_forget)
    certificate_show = _answer(calls.certificate_show)
    certificate_renew = _answer(calls.certificate_renew)
    leave = _stream(calls.leave)
    backup = _stream(calls.backup)
    group_create = _stream(calls.group_create)
    group_list = _answer(calls.group_list)
    group_show = _answer(calls.group_show)
    group_follow = _answer(calls.group_follow)
    policy_show = _answer(calls.policy_show)
    policy_set = _stream(calls.policy_set)
    contribution_add = _stream(calls.contribution_add)
    contribution_get = _stream(calls.contribution_get)
    contribution_list = _answer(calls.contribution_list)
    contribution_show = _answer(calls.contribution_show)
    contribution_remove = _answer(calls.contribution_remove)
    act_propose = _answer(calls.act_propose)
    act_show = _answer(calls.act_show)
    act_sign = _answer(calls.act_sign)
    act_submit = _answer(calls.act_submit)
    erasure_list = _answer(calls.erasure_list)
    resolve = _stream(calls.resolve)
