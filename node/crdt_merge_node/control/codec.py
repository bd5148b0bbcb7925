"""Between the plain values of ``model`` and the generated messages, and between errors and gRPC status.

The dataclasses and the messages have the same names and the same fields, so one generic walk serves all;
``tests/unit/control/test_codec.py`` holds them to it. Errors are mapped here and nowhere else: the daemon
puts code, message and hint into the trailing metadata, the client makes the same class of them again.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import grpc
from crdt_merge_proto.v1 import types_pb2
from crdt_merge_protocol.errors import CrdtMergeError
from google.protobuf.message import DecodeError, Message

from crdt_merge_node.errors import ConfigError, ControlError, FullError, TimedOutError, error_class

from . import model
from .socket_path import not_running

ValueT = TypeVar("ValueT")
MessageT = TypeVar("MessageT", bound=Message)

METADATA_BYTES_MAX: Final = 64 * 1024
"""gRPC drops a whole answer whose trailing metadata exceeds this; its own default is 8 KiB."""
ERROR_TEXT_CHARS_MAX: Final = 8192
"""Of one message or hint, so that the metadata stay well below their cap."""
PROBLEMS_MAX: Final = 50
_SCALARS: Final = (str, int, float, bool, type(None))
_Reader: TypeAlias = Callable[[Any, str], Any]
_plans: dict[type[Any], Mapping[str, _Reader]] = {}
_ERROR_KEY: Final = "crdt-merge-error-bin"
_STATUS_BY_EXIT: Final = {
    2: grpc.StatusCode.INVALID_ARGUMENT,
    4: grpc.StatusCode.NOT_FOUND,
    5: grpc.StatusCode.PERMISSION_DENIED,
    6: grpc.StatusCode.DEADLINE_EXCEEDED,
    7: grpc.StatusCode.DATA_LOSS,
}


# --- values -------------------------------------------------------------------------------------------


def encode(value: Any, kind: type[MessageT]) -> MessageT:
    """Return the message of class ``kind`` with the fields of the dataclass ``value``."""
    # protobuf leaves a field absent that is given as None: what optional fields want.
    return kind(**{name: _to_wire(getattr(value, name)) for name in _plan(type(value))})


def decode(message: Message, kind: type[ValueT]) -> ValueT:
    """Return the dataclass ``kind`` with the fields of ``message``."""
    return kind(**{name: read(message, name) for name, read in _plan(kind).items()})


def encode_event(value: Any, kind: type[MessageT]) -> MessageT:
    """Return the response ``kind`` of a stream: ``value`` goes into the field of its type."""
    for field in kind.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.name == type(value).__name__:
            return kind(**{field.name: encode(value, getattr(types_pb2, type(value).__name__))})
    raise TypeError(f"{kind.__name__} carries no {type(value).__name__}.")


def decode_event(response: Message) -> Any:
    """Return the one value that a response of a stream carries, or None for one this release cannot read."""
    name = response.WhichOneof("event")
    if name is None:
        return None
    message: Message = getattr(response, name)
    return decode(message, getattr(model, message.DESCRIPTOR.name))


def _to_wire(value: Any) -> Any:
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, tuple):
        return [_to_wire(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    kind: type[Message] = getattr(types_pb2, type(value).__name__)
    return encode(value, kind)


def _plan(kind: type[Any]) -> Mapping[str, _Reader]:
    """Return how each field of a dataclass is read from a message, in order."""
    if kind not in _plans:
        _plans[kind] = {name: _reader(hint) for name, hint in get_type_hints(kind).items()}
    return _plans[kind]


def _reader(hint: Any) -> _Reader:
    origin = get_origin(hint)
    if origin is types.UnionType:
        return lambda message, name: getattr(message, name) if message.HasField(name) else None
    if origin is tuple:
        item = get_args(hint)[0]
        if _is_model(item):
            return lambda message, name: tuple(decode(part, item) for part in getattr(message, name))
        return lambda message, name: tuple(getattr(message, name))
    if origin is not None and issubclass(origin, Mapping):
        return lambda message, name: dict(sorted(getattr(message, name).items()))
    if _is_model(hint):
        return lambda message, name: decode(getattr(message, name), hint)
    return getattr


def _is_model(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint)


# --- errors -------------------------------------------------------------------------------------------


def status_of(error: CrdtMergeError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Return the gRPC status, its short text and the trailing metadata that carry ``error``."""
    detail = types_pb2.ErrorDetail(code=error.code, message=_clip(error.message), hint=_clip(error.hint))
    if isinstance(error, ConfigError):
        detail.problems.extend(_clip(problem) for problem in error.problems[:PROBLEMS_MAX])
    status = _STATUS_BY_EXIT.get(error.exit_code, grpc.StatusCode.FAILED_PRECONDITION)
    if isinstance(error, FullError):
        status = grpc.StatusCode.RESOURCE_EXHAUSTED
    return status, f"{error.code}: {error.message}"[:200], ((_ERROR_KEY, detail.SerializeToString()),)


def error_of(error: grpc.RpcError, *, socket: Path) -> CrdtMergeError:
    """Return the error that the daemon raised, as its own class; or what a broken call means.

    Args:
        error: What gRPC raised, sync or async; it is a ``grpc.Call`` too.
        socket: Path of the control socket, for the message.
    """
    call: Any = error
    for key, value in call.trailing_metadata() or ():
        if key == _ERROR_KEY and (carried := _carried(value)) is not None:
            return carried
    if call.code() is grpc.StatusCode.UNAVAILABLE:
        return not_running(socket)
    if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOutError(
            f"the daemon behind {socket} did not answer in time.",
            hint="It may be stuck or very busy: look at its log, and at `py-spy dump --pid PID`.",
        )
    if call.code() is grpc.StatusCode.UNIMPLEMENTED:
        return ControlError(
            "the daemon does not know this request: it is of another release.",
            hint="Restart the daemon after an upgrade; `crdt-merge-node version` shows both versions.",
        )
    return ControlError(
        f"the daemon answered {call.code().name}: {call.details()}.", hint="Its log has the cause."
    )


def _carried(data: Any) -> CrdtMergeError | None:
    try:
        detail = types_pb2.ErrorDetail.FromString(data)
    except (DecodeError, TypeError):
        return None
    kind = error_class(detail.code)
    # Not kind(...): a class may demand arguments that an error from elsewhere cannot have.
    error = kind.__new__(kind, detail.message)
    CrdtMergeError.__init__(error, detail.message, hint=detail.hint)
    if isinstance(error, ConfigError):
        error.problems = tuple(detail.problems) or (detail.message,)
    return error


def _clip(text: str) -> str:
    if len(text) <= ERROR_TEXT_CHARS_MAX:
        return text
    return f"{text[:ERROR_TEXT_CHARS_MAX]}… ({len(text) - ERROR_TEXT_CHARS_MAX} more characters)"
