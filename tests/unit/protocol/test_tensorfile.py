"""What strangers put at the start of a safetensors file, and what we put there (SCENARIOS T22, B47-B58)."""

from __future__ import annotations

import contextlib
import json
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_protocol.blobs import DTYPE_BYTES, TensorSpec
from crdt_merge_protocol.errors import MalformedTensorFileError
from crdt_merge_protocol.limits import SAFETENSORS_HEADER_BYTES_MAX, TENSORS_MAX
from crdt_merge_protocol.tensorfile import header_bytes, layout, parse_header
from hypothesis import given
from hypothesis import strategies as st
from support.profile import examples

GOOD = '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


def entry(name: str = "a", dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> str:
    return json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}})


def parse(header: str | bytes, data_bytes: int = 8):
    raw = header if isinstance(header, bytes) else header.encode()
    return parse_header(raw, 8 + len(raw) + data_bytes)


def test_a_file_of_the_safetensors_library_is_read():
    tensors = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "ids": np.arange(4), "e": np.zeros((0, 3))}
    data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    length = header_bytes(data[:8], len(data))

    found = parse_header(data[8 : 8 + length], len(data))

    assert found.metadata == {"format": "pt"}
    assert [item.spec for item in found.entries] == [
        TensorSpec(name="e", dtype="F64", shape=(0, 3)),
        TensorSpec(name="ids", dtype="I64", shape=(4,)),
        TensorSpec(name="w", dtype="F32", shape=(2, 3)),
    ]
    for item in found.entries:
        assert data[item.begin : item.end] == tensors[item.spec.name].tobytes()


def test_spaces_between_tokens_and_after_the_header_are_read():
    assert parse(json.dumps(json.loads(GOOD), indent=1) + "   ").entries[0].spec.shape == (2,)


def test_metadata_may_hold_json_with_many_brackets():
    # Trainers store their configuration as text; brackets in strings are not structure.
    text = json.dumps([{"a": [1, 2, "\\"]}] * 5000)
    header = json.dumps({"__metadata__": {"config": text}, **json.loads(GOOD)})

    assert parse(header).metadata["config"] == text


REFUSED = {
    "B48 not UTF-8": b'{"\xff":1}',
    "B48 an array": "[]",
    "B48 a leading space": " " + GOOD,
    "B48 a byte order mark": "\ufeff" + GOOD,
    "B48 a trailing tab": GOOD + "\t",
    "B48 a trailing NUL": GOOD + "\0",
    "B48 two values": GOOD + GOOD,
    "B48 UTF-16": GOOD.encode("utf-16-le"),
    "B49 a hole": entry(shape=[1], offsets=[4, 8]),
    "B49 end before begin": entry(offsets=[8, 0]),
    "B49 bytes left over": entry(shape=[1], offsets=[0, 4]),
    "B49 an end behind the file": entry(shape=[3], offsets=[0, 12]),
    "B49 an overlap": '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    '"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
    "B50 a product beyond 64 bits": entry(shape=[1 << 31] * 3),
    "B50 a negative size": entry(shape=[-2]),
    "B50 minus zero": '{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}',
    "B50 a float offset": entry(offsets=[0, 8.0]),
    "B50 a boolean size": entry(shape=[True, 2]),
    "B50 ten thousand dimensions": entry(shape=[1] * 10_000),
    "B50 nine dimensions": entry(shape=[1] * 8 + [2]),
    "B50 a huge empty shape": entry(shape=[0, 1 << 40], offsets=[0, 0]),
    "B50 three offsets": entry(offsets=[0, 4, 8]),
    "B51 an unknown type": entry(dtype="F33"),
    "B51 a type of four bits": entry(dtype="F4", shape=[16]),
    "B51 a type of exponents": entry(dtype="F8_E8M0", shape=[8]),
    "B51 a type in lower case": entry(dtype="f32"),
    "B51 a type that is no text": entry(dtype=["F32"]),
    "B51 F64 where the bytes say F32": entry(dtype="F64"),
    "B52 one name twice": GOOD[:-1] + "," + GOOD[1:],
    "B52 one key twice": '{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}',
    "B52 an unknown key": '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}',
    "B52 a missing key": '{"a":{"dtype":"F32","shape":[2]}}',
    "B52 metadata twice": '{"__metadata__":{},"__metadata__":{},' + GOOD[1:],
    "B52 metadata that is no text": '{"__metadata__":{"a":1},' + GOOD[1:],
    "B52 metadata that is no object": '{"__metadata__":"x",' + GOOD[1:],
    "B52 metadata of five megabytes": '{"__metadata__":{"a":"' + "x" * 5_000_000 + '"},' + GOOD[1:],
    "B53 a path that climbs": entry(name="../../etc/passwd"),
    "B53 an absolute path": entry(name="/etc/passwd"),
    "B53 a NUL": entry(name="a\0b"),
    "B53 a line break": entry(name="a\nb"),
    "B53 no name": entry(name=""),
    "B53 a name of a megabyte": entry(name="a" * 1_000_000),
    "B53 201 characters": entry(name="a" * 201),
    "B53 right to left": '{"a\u202eb":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "B53 a full-width twin": '{"\uff41":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "B53 a lone surrogate": '{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "B53 a hidden file": entry(name=".bashrc"),
    "B56 a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00",
    "B56 a zip": b"PK\x03\x04" + bytes(60),
    "B56 an ELF": b"\x7fELF" + bytes(60),
    "B57 depth 100,000": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "B57 depth 2,000": '{"a":' + "[" * 2_000 + "]" * 2_000 + "}",
    "B57 a number of a million digits": '{"a":{"dtype":"F32","shape":[' + "1" * 1_000_000 + "]}}",
    "B57 1e999": '{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}}',
    "B57 NaN": '{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
    "B57 a control character in a string": '{"a\x01":1}',
    "an unterminated string": '{"a',
    "a tensor that is a number": '{"a":1}',
    "nothing": "",
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_header_is_refused(case: str):
    with pytest.raises(MalformedTensorFileError, match="not an acceptable safetensors file"):
        parse(REFUSED[case])


@pytest.mark.parametrize(
    ("length", "file_size"),
    [
        (1 << 63, 100),
        (93, 100),
        (0, 100),
        (1, 100),
        (100 << 20, 200 << 20),
        (SAFETENSORS_HEADER_BYTES_MAX + 1, 1 << 40),
    ],
)
def test_an_impossible_header_length_is_refused(length: int, file_size: int):
    """B47."""
    with pytest.raises(MalformedTensorFileError):
        header_bytes(length.to_bytes(8, "little"), file_size)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_a_file_too_short_for_a_header_is_refused(size: int):
    with pytest.raises(MalformedTensorFileError):
        header_bytes(b"\x02" + bytes(min(size, 8) - 1 if size else 0), size)


def test_a_bomb_of_empty_tensors_is_refused_before_it_becomes_objects():
    """B54: the library needs 243 MB for such a header."""
    bomb = ",".join(
        f'"{i}":{{"dtype":"F32","shape":[],"data_offsets":[0,0]}}' for i in range(TENSORS_MAX * 2)
    )
    raw = ("{" + bomb + "}").encode()
    assert len(raw) < SAFETENSORS_HEADER_BYTES_MAX
    tracemalloc.start()

    with pytest.raises(MalformedTensorFileError, match="could need"):
        parse_header(raw, 8 + len(raw))

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(raw)


def test_a_bomb_of_commas_is_refused():
    with pytest.raises(MalformedTensorFileError, match="could need"):
        parse('{"a":{"dtype":"F32","shape":[' + "0," * 1_000_000 + "0]}}")


@pytest.mark.parametrize("name", ["model.layers.0.weight", "CON", "a/b-c_d", "a" * 200])
def test_a_name_that_is_only_a_name_is_read(name: str):
    assert parse(entry(name=name)).entries[0].spec.name == name


@examples(100)
@given(st.data())
def test_a_mutated_header_is_read_or_refused_with_the_one_error(data: st.DataObject):
    raw = bytearray(GOOD.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw) - 1))
        raw[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    # Any other exception fails the test: nothing else may escape (DESIGN 3.4).
    with contextlib.suppress(MalformedTensorFileError):
        found = parse(bytes(raw))
        assert sum(item.end - item.begin for item in found.entries) == 8


def test_the_layout_of_outputs_is_pinned():
    """STRATEGIES 1.11: changing one byte here changes the SHA-256 of every output."""
    specs = [
        TensorSpec(name="b", dtype="BF16", shape=(2, 3)),
        TensorSpec(name="B", dtype="F32", shape=()),
        TensorSpec(name="a.b", dtype="I64", shape=(0, 4)),
    ]

    start, offsets = layout(specs)

    header = (
        b'{"B":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
        b'"a.b":{"dtype":"I64","shape":[0,4],"data_offsets":[4,4]},'
        b'"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]}}'
    )
    padded = header + b" " * (-len(header) % 8)
    assert start == len(padded).to_bytes(8, "little") + padded
    assert offsets == {"B": len(start), "a.b": len(start) + 4, "b": len(start) + 4}


@examples(50)
@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9_]{1,12}(\.[a-z]{1,5})?", fullmatch=True),
        st.tuples(st.sampled_from(sorted(DTYPE_BYTES)), st.lists(st.integers(0, 5), max_size=4)),
        max_size=8,
    )
)
def test_our_layout_is_read_back_by_us_and_by_the_library(shapes: dict[str, tuple[str, list[int]]]):
    specs = [TensorSpec(name=name, dtype=d, shape=tuple(s)) for name, (d, s) in shapes.items()]
    start, offsets = layout(specs)
    size = len(start) + sum(spec.nbytes for spec in specs)

    found = parse_header(start[8:], size)

    assert {item.spec for item in found.entries} == set(specs)
    assert {item.spec.name: item.begin for item in found.entries} == offsets
    names = [name for name, _ in safetensors.deserialize(start + bytes(size - len(start)))]
    assert sorted(names) == sorted(shapes)
