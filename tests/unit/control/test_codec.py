"""Values and messages say the same; errors come back as they were raised."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import grpc
import pytest
from crdt_merge_node import errors as node_errors
from crdt_merge_node.control import model
from crdt_merge_node.control.codec import (
    ERROR_TEXT_CHARS_MAX,
    METADATA_BYTES_MAX,
    decode,
    decode_event,
    encode,
    encode_event,
    error_of,
    status_of,
)
from crdt_merge_proto.v1 import node_service_pb2 as pb
from crdt_merge_proto.v1 import types_pb2
from crdt_merge_protocol import errors as protocol_errors
from crdt_merge_protocol.errors import CrdtMergeError
from support import nodes

NAMED = [getattr(model, name) for name in model.__all__]
MODELS = [kind for kind in NAMED if inspect.isclass(kind) and dataclasses.is_dataclass(kind)]
ERRORS = sorted(
    {
        kind
        for module in (protocol_errors, node_errors)
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, CrdtMergeError)
    },
    key=lambda kind: kind.code,
)
EXAMPLES = [
    nodes.STATUS,
    nodes.WHY,
    nodes.POLICY,
    nodes.OWN,
    nodes.ALIVE,
    nodes.GROUP_INFO,
    *nodes.EVENTS[1:],
    nodes.DETAIL,
]


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_every_value_has_a_message_with_the_same_fields_in_the_same_order(kind: Any) -> None:
    message = getattr(types_pb2, kind.__name__)

    names = [field.name for field in message.DESCRIPTOR.fields]

    assert [field.name for field in dataclasses.fields(kind)] == names
    assert [field.number for field in message.DESCRIPTOR.fields] == list(range(1, len(names) + 1))


def test_every_message_but_the_error_has_a_value() -> None:
    messages = set(types_pb2.DESCRIPTOR.message_types_by_name) - {"ErrorDetail"}

    assert {kind.__name__ for kind in MODELS} == messages


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_equal(value: Any) -> None:
    message = encode(value, getattr(types_pb2, type(value).__name__))

    assert value == decode(type(message).FromString(message.SerializeToString()), type(value))


def test_none_zero_and_empty_stay_apart() -> None:
    none = model.PolicyChanges()
    zero = model.PolicyChanges(strategy="", holders=0, weight_cap=0)

    for value in (none, zero):
        assert value == decode(encode(value, types_pb2.PolicyChanges), model.PolicyChanges)


def test_parameters_come_back_sorted_whatever_the_wire_did() -> None:
    changes = model.PolicyChanges(params={"b": "2", "a": "1", "c": ""})

    back = decode(encode(changes, types_pb2.PolicyChanges), model.PolicyChanges)

    assert list(back.params) == ["a", "b", "c"]


def test_an_event_travels_in_the_field_of_its_type() -> None:
    progress = model.Progress(step="merging", done_bytes=3, total_bytes=4)

    response = encode_event(progress, pb.ResolveResponse)

    assert response.WhichOneof("event") == "progress"
    assert decode_event(response) == progress


def test_an_event_that_a_stream_cannot_carry_is_a_bug() -> None:
    with pytest.raises(TypeError, match="carries no GroupInfo"):
        encode_event(nodes.GROUP_INFO, pb.ResolveResponse)


def test_an_event_of_a_newer_release_is_skipped() -> None:
    assert decode_event(pb.ResolveResponse()) is None


class _Failed(grpc.RpcError):
    """What gRPC raises: an error that is also the call."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: Any) -> None:
        self._answers = code, details, metadata

    def code(self) -> grpc.StatusCode:
        return self._answers[0]

    def details(self) -> str:
        return self._answers[1]

    def trailing_metadata(self) -> Any:
        return self._answers[2]


def _carried(error: CrdtMergeError) -> CrdtMergeError:
    return error_of(_Failed(*status_of(error)), socket=Path("/s"))


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_comes_back_as_its_own_class(kind: type[CrdtMergeError]) -> None:
    error = kind("it broke: 7 ≠ 8.", hint="Mend it.")

    back = _carried(error)

    assert type(back) is kind
    assert (back.message, back.hint, back.exit_code) == (error.message, error.hint, error.exit_code)


def test_codes_are_unique() -> None:
    assert len({kind.code for kind in ERRORS}) == len(ERRORS)


def test_all_problems_of_a_configuration_travel() -> None:
    back = _carried(node_errors.ConfigError.of(["one", "two"]))

    assert isinstance(back, node_errors.ConfigError)
    assert back.problems == ("one", "two")


def test_an_error_of_any_length_stays_below_what_metadata_may_hold() -> None:
    error = node_errors.ConfigError("x" * 10**6, hint="y" * 10**6, problems=["z" * 500] * 200)

    _, text, metadata = status_of(error)

    assert len(text) <= 200
    assert sum(len(key) + len(value) for key, value in metadata) < METADATA_BYTES_MAX
    assert _carried(error).message.startswith("x" * ERROR_TEXT_CHARS_MAX + "…")


def test_no_connection_means_no_daemon() -> None:
    error = error_of(_Failed(grpc.StatusCode.UNAVAILABLE, "No such file", ()), socket=Path("/run/x.sock"))

    assert isinstance(error, node_errors.DaemonNotRunningError)
    assert "/run/x.sock" in error.message


@pytest.mark.parametrize(
    ("code", "metadata"),
    [
        (grpc.StatusCode.UNIMPLEMENTED, ()),
        (grpc.StatusCode.UNKNOWN, None),
        (grpc.StatusCode.INTERNAL, (("crdt-merge-error-bin", b"\xff\xff"),)),
    ],
)
def test_an_answer_that_makes_no_sense_is_still_an_error_with_a_remedy(code: Any, metadata: Any) -> None:
    error = error_of(_Failed(code, "?", metadata), socket=Path("/s"))

    assert isinstance(error, node_errors.ControlError)
    assert error.hint
