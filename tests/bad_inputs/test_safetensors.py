"""Files that are no safetensors files, given to a live node (SCENARIOS 6.2: B47-B52, B54, B56, B57; T22)."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from crdt_merge_protocol.errors import MalformedTensorFileError
from crdt_merge_protocol.limits import KIB, MIB, SAFETENSORS_HEADER_BYTES_MAX
from crdt_merge_protocol.tensorfile import header_bytes, parse_header
from safetensors.numpy import save
from support.siege import GROUP_NAME, MEMORY_BYTES_MAX, Siege, bounded_memory

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD = '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


def entry(**changes: object) -> str:
    return json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes})


def file(header: str | bytes, data: bytes = bytes(8), *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def archive() -> bytes:
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w") as made:
        made.writestr("evil.py", "raise SystemExit")
    return found.getvalue()


class Bomb:
    """What a pickle does to who loads it."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was loaded')",))


EMPTY = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
MANY = "{" + ",".join(f'"t{n}":{EMPTY}' for n in range(140_000)) + "}"

FILES: dict[str, bytes] = {
    "b47 a header of 2^63": file(GOOD, length=2**63),
    "b47 a header of 2^64 - 1": file(GOOD, length=2**64 - 1),
    "b47 a header longer than the file": file(GOOD, length=4096),
    "b47 a header one byte longer than the file": file(GOOD, b"", length=len(GOOD) + 1),
    "b47 a header of 100 MB": file(GOOD, length=100_000_000),
    "b47 a header of nothing": file(GOOD, length=0),
    "b47 a header of one byte": file(GOOD, length=1),
    "b47 a file of seven bytes": bytes(7),
    "b47 an empty file": b"",
    "b48 not UTF-8": file(b'{"\xff":{}}', b""),
    "b48 an array": file("[" + GOOD + "]"),
    "b48 text": file('"a"', b""),
    "b48 a leading space": file(" " + GOOD),
    "b48 a leading line break": file("\n" + GOOD),
    "b48 a trailing tab": file(GOOD + "\t"),
    "b48 a trailing NUL": file(GOOD + "\0\0"),
    "b48 a trailing line break": file(GOOD + "\n"),
    "b48 a byte order mark": file("\ufeff" + GOOD),
    "b48 UTF-16": file(GOOD.encode("utf-16-le")),
    "b48 two headers": file(GOOD + GOOD),
    "b49 an overlap": file(
        GOOD[:-1] + ',"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
    ),
    "b49 a hole": file(entry(shape=[1], data_offsets=[4, 8])),
    "b49 end before begin": file(entry(data_offsets=[8, 0])),
    "b49 bytes after the last tensor": file(GOOD, bytes(9)),
    "b49 bytes missing": file(GOOD, bytes(7)),
    "b50 a product beyond 64 bits": file(entry(shape=[2**31] * 3)),
    "b50 a product that wraps to the right size": file(entry(shape=[2**31, 2**31, 4, 2])),
    "b50 a negative dimension": file(entry(shape=[-2])),
    "b50 two negative dimensions": file(entry(shape=[-1, -2])),
    "b50 float offsets": file(entry(data_offsets=[0.0, 8.0])),
    "b50 ten thousand dimensions": file(entry(shape=[1] * 10_000)),
    "b50 nothing of 2^40": file(entry(shape=[0, 2**40], data_offsets=[0, 0]), b""),
    "b50 offsets of 2^63": file(entry(data_offsets=[2**63, 2**63 + 8])),
    "b51 an unknown type": file(entry(dtype="F33")),
    "b51 F64 where F32 is meant": file(entry(dtype="F64")),
    "b51 a type below a byte": file(entry(dtype="F4", shape=[16])),
    "b51 a type that is a number": file(entry(dtype=32)),
    "b52 one name twice": file(GOOD[:-1] + "," + GOOD[1:]),
    "b52 one key twice": file('{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "b52 an unknown key": file(entry(pickle="gASV")),
    "b52 a key missing": file('{"a":{"dtype":"F32","shape":[2]}}'),
    "b52 metadata of 5 MB": file('{"__metadata__":{"a":"' + "x" * 5_000_000 + '"},' + GOOD[1:]),
    "b52 metadata that is a number": file('{"__metadata__":{"a":1},' + GOOD[1:]),
    "b52 metadata that is a list": file('{"__metadata__":["a"],' + GOOD[1:]),
    "b54 140 k empty tensors": file(MANY, b""),
    "b54 a bomb of commas": file('{"a":[' + "0," * 3_000_000 + "0]}", b""),
    "b54 a bomb of brackets": file('{"a":' + "[[],[]]" * 900_000 + "}", b""),
    "b54 a bomb of strings": file("{" + '"":"",' * 1_000_000 + '"":""}', b""),
    "b56 a pickle": pickle.dumps(Bomb()),
    "b56 a pickle of 2^56 in front": b"\x80\x04" + bytes(5) + pickle.dumps(Bomb()),
    "b56 a zip": archive(),
    "b56 an ELF": b"\x7fELF\x02\x01\x01" + bytes(200),
    "b56 a numpy array": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
    "b56 a safetensors file and a zip": save({"a": np.zeros(2, np.float32)}) + archive(),
    "b57 depth 100,000": file('{"a":' * 100_000 + "1" + "}" * 100_000, b""),
    "b57 depth 2,000 in a shape": file('{"a":{"dtype":"F32","shape":' + "[" * 2000 + "]" * 2000 + "}}"),
    "b57 a number of a million digits": file('{"a":{"dtype":"F32","shape":[' + "1" * 1_000_000 + "]}}"),
    "b57 1e999": file('{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}}'),
    "b57 NaN": file('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}'),
    "b57 -Infinity": file('{"a":{"dtype":"F32","shape":[2],"data_offsets":[-Infinity,8]}}'),
    "b57 minus zero": file('{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}'),
}


@pytest.mark.parametrize("case", FILES)
async def test_b47_to_b57_a_node_refuses_the_file_and_copies_nothing_of_it(
    siege: Siege, case, tmp_path: Path
):
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILES[case])
    header = min(len(FILES[case]), SAFETENSORS_HEADER_BYTES_MAX)
    async with siege.unharmed(is_offence=False, memory_bytes=MEMORY_BYTES_MAX + 2 * header):
        with pytest.raises(MalformedTensorFileError) as caught:
            await siege.live.add(GROUP_NAME, path, slot="bad")

    assert caught.value.code == "E1310"
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2 * KIB


def parse(data: bytes) -> None:
    length = header_bytes(data[:8], len(data))
    parse_header(data[8 : 8 + length], len(data))


@pytest.mark.parametrize("case", FILES)
async def test_b47_to_b57_a_file_that_is_refused_is_refused_by_the_parser_alone(case):
    """What the node says does not depend on its schema: the file itself is not what it claims to be."""
    data = FILES[case]
    fair = MEMORY_BYTES_MAX + 2 * min(len(data), SAFETENSORS_HEADER_BYTES_MAX)
    with bounded_memory(fair), pytest.raises(MalformedTensorFileError):
        parse(data)


@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "nothing", "link to nothing"])
async def test_b56_what_is_no_file_is_named_and_never_waited_for(siege: Siege, kind, tmp_path: Path):
    import os

    from crdt_merge_protocol.errors import CrdtMergeError

    path = tmp_path / "model.safetensors"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "link to nothing":
            path.symlink_to(tmp_path / "absent")
    async with siege.unharmed(is_offence=False):
        with pytest.raises(CrdtMergeError, match=path.name):
            await siege.live.add(GROUP_NAME, path, slot="bad")


async def test_b54_the_largest_header_that_is_allowed_is_read_within_its_bounds(siege: Siege):
    """20,000 tensors of long names: as large as a header may be, and no more memory than its objects take."""
    names = [f"model.layers.{n:05d}." + "x" * 150 for n in range(20_000)]
    text = "{" + ",".join(f'"{name}":{EMPTY}' for name in names) + "}"
    assert 4 * MIB < len(text) < SAFETENSORS_HEADER_BYTES_MAX
    with bounded_memory(10 * len(text)):
        found = parse_header(text.encode(), 8 + len(text))

    assert len(found.entries) == 20_000
