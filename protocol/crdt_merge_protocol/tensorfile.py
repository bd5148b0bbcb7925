"""The strict subset of the safetensors format that contributions are made of, and our own fixed layout.

A file is eight bytes of header length (little-endian), a JSON header, then the tensors' bytes without gap or
overlap. :func:`parse_header` reads what the safetensors library and its like write, and nothing looser: the
header comes from strangers and is judged before a tensor byte is touched (SCENARIOS T22, B47-B58).
:func:`layout` is the one way in which this project writes a file: tensors in byte order of their names, no
metadata, so that equal tensors give equal files (STRATEGIES 1.11).

The header is counted before it is parsed: outside of strings there must not be more brackets and commas than
the caps allow, so that a header of eight mebibytes cannot become hundreds of mebibytes of Python objects.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from .blobs import DTYPE_BYTES, TensorSpec
from .canonical import is_name
from .errors import MalformedTensorFileError
from .limits import BLOB_BYTES_MAX, DIMENSION_MAX, MIB, NDIM_MAX, SAFETENSORS_HEADER_BYTES_MAX, TENSORS_MAX

LENGTH_BYTES: Final = 8
"""The header's length field, at the start of the file."""
METADATA_BYTES_MAX: Final = MIB
"""Free text beside the tensors. Trainers store their whole configuration there: hundreds of KiB are seen."""
_ALIGNMENT: Final = 8
_METADATA: Final = "__metadata__"
_ENTRY_KEYS: Final = {"dtype", "shape", "data_offsets"}
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BRACKETS_MAX: Final = 2 * (3 * TENSORS_MAX + 2)
_COMMAS_MAX: Final = TENSORS_MAX * (NDIM_MAX + 4)
_NUMBER_DIGITS_MAX: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """A tensor and where its bytes stand: ``[begin, end)`` counted from the start of the file."""

    spec: TensorSpec
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """What a header says, checked. Entries are in byte order of their names."""

    entries: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]


def header_bytes(prefix: bytes, file_size: int) -> int:
    """Return the length of the JSON header from the first eight bytes of a file of ``file_size`` bytes.

    Raises:
        MalformedTensorFileError: Too short a file, or an impossible or excessive length (SCENARIOS B47).
    """
    if len(prefix) < LENGTH_BYTES or file_size < LENGTH_BYTES:
        _refuse(f"{file_size} bytes are too few for a safetensors file")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > SAFETENSORS_HEADER_BYTES_MAX:
        _refuse(f"it declares a header of {length} bytes, at most {SAFETENSORS_HEADER_BYTES_MAX} are read")
    if not 2 <= length <= file_size - LENGTH_BYTES:
        _refuse(f"it declares a header of {length} bytes in a file of {file_size}")
    return length


def parse_header(header: bytes, file_size: int) -> TensorFile:
    """Return the tensors of a file from its JSON header, the ``header_bytes`` after the length field.

    Raises:
        MalformedTensorFileError: Anything that the strict subset does not allow; the message says what.
    """
    if len(header) > SAFETENSORS_HEADER_BYTES_MAX:
        _refuse(f"the header has {len(header)} bytes, at most {SAFETENSORS_HEADER_BYTES_MAX} are read")
    document = _parse_json(header)
    metadata = _read_metadata(document.pop(_METADATA, {}))
    if len(document) > TENSORS_MAX:
        _refuse(f"it holds {len(document)} tensors, at most {TENSORS_MAX} are read")
    start = LENGTH_BYTES + len(header)
    entries = [_read_entry(name, value, start) for name, value in document.items()]
    _check_contiguous(entries, start, file_size)
    entries.sort(key=lambda entry: entry.spec.name.encode())
    return TensorFile(entries=tuple(entries), metadata=metadata)


def layout(specs: Iterable[TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """Return the start of an output file and the offset of each tensor from the start of the file.

    The start is the length field and the header, padded with spaces to a multiple of eight bytes. Tensors
    follow one another in byte order of their names. The bytes are a function of the specs alone and are
    pinned by a test: changing them changes the SHA-256 of every output.
    """
    ordered = sorted(specs, key=lambda spec: spec.name.encode())
    document: dict[str, Any] = {}
    position = 0
    for spec in ordered:
        end = position + spec.nbytes
        document[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [position, end],
        }
        position = end
    header = json.dumps(document, separators=(",", ":"), ensure_ascii=True).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    start = LENGTH_BYTES + len(header)
    offsets = {spec.name: start + document[spec.name]["data_offsets"][0] for spec in ordered}
    return len(header).to_bytes(LENGTH_BYTES, "little") + header, offsets


def _refuse(reason: str) -> NoReturn:
    raise MalformedTensorFileError(f"not an acceptable safetensors file: {reason}.")


def _parse_json(header: bytes) -> dict[str, Any]:
    if not header.startswith(b"{"):
        _refuse("the header does not begin with '{'")
    # Writers pad with spaces; any other trailing byte is a second way to write the same header (B48).
    trimmed = header.rstrip(b" ")
    if not trimmed.endswith(b"}"):
        _refuse("something other than spaces follows the header")
    _check_counts(trimmed)
    try:
        document = json.loads(
            trimmed.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_read_integer,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except UnicodeDecodeError:
        _refuse("the header is not UTF-8")
    except (ValueError, RecursionError) as error:
        _refuse(f"the header is not JSON ({error})")
    if not isinstance(document, dict):
        _refuse("the header is not an object")
    return document


def _check_counts(header: bytes) -> None:
    """Refuse more brackets and commas than the caps allow, leaving out those within strings."""
    brackets, commas = _count(header)
    if brackets <= _BRACKETS_MAX and commas <= _COMMAS_MAX:
        return
    brackets = commas = position = 0
    for string in itertools.chain(_STRING.finditer(header), [None]):
        more_brackets, more_commas = _count(header[position : string.start() if string else None])
        brackets += more_brackets
        commas += more_commas
        if brackets > _BRACKETS_MAX or commas > _COMMAS_MAX:
            _refuse(f"the header holds more than {TENSORS_MAX} tensors of {NDIM_MAX} dimensions could need")
        position = string.end() if string else position


def _count(text: bytes) -> tuple[int, int]:
    return sum(text.count(mark) for mark in (b"{", b"}", b"[", b"]")), text.count(b",")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build one object; two equal keys would let two readers see two different files."""
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse("a key occurs twice")
    return found


def _read_integer(text: str) -> int:
    if text.startswith("-") or len(text) > _NUMBER_DIGITS_MAX:
        _refuse(f"the number {text[:_NUMBER_DIGITS_MAX]} is out of range")
    return int(text)


def _refuse_number(text: str) -> NoReturn:
    _refuse(f"{text[:_NUMBER_DIGITS_MAX]} is not an integer")


def _read_metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        _refuse(f"{_METADATA} is not an object")
    nbytes = 0
    for key, text in value.items():
        if not isinstance(text, str):
            _refuse(f"{_METADATA} holds something other than text")
        nbytes += len(key) + len(text)
    if nbytes > METADATA_BYTES_MAX:
        _refuse(f"{_METADATA} has {nbytes} characters, at most {METADATA_BYTES_MAX} are read")
    return value


def _read_entry(name: str, value: Any, start: int) -> TensorEntry:
    if not is_name(name):
        _refuse(f"{name[:64]!a} is not a tensor name ([A-Za-z0-9._/-], at most 200, no '..')")
    if not isinstance(value, dict) or value.keys() != _ENTRY_KEYS:
        _refuse(f"tensor {name}: exactly dtype, shape and data_offsets were expected")
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        _refuse(f"tensor {name}: element type {str(dtype)[:16]!a} is not one of {', '.join(DTYPE_BYTES)}")
    shape = _read_integers(value["shape"], what=f"tensor {name}: shape")
    offsets = _read_integers(value["data_offsets"], what=f"tensor {name}: data_offsets")
    if len(shape) > NDIM_MAX or any(size > DIMENSION_MAX for size in shape):
        _refuse(f"tensor {name}: at most {NDIM_MAX} dimensions of at most {DIMENSION_MAX} are read")
    spec = TensorSpec(name=name, dtype=dtype, shape=shape)
    if len(offsets) != 2 or offsets[1] - offsets[0] != spec.nbytes:
        _refuse(f"tensor {name}: its offsets do not span the {spec.nbytes} bytes of its shape")
    if spec.nbytes > BLOB_BYTES_MAX:
        _refuse(f"tensor {name}: it has {spec.nbytes} bytes, at most {BLOB_BYTES_MAX} are stored")
    return TensorEntry(spec=spec, begin=start + offsets[0], end=start + offsets[1])


def _read_integers(value: Any, *, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(item) is not int for item in value):
        _refuse(f"{what} is not a list of integers")
    return tuple(value)


def _check_contiguous(entries: list[TensorEntry], start: int, file_size: int) -> None:
    """Every byte behind the header belongs to exactly one tensor (B49)."""
    position = start
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            _refuse(f"tensor {entry.spec.name} begins at byte {entry.begin}, {position} was expected")
        position = entry.end
    if position != file_size:
        _refuse(f"the tensors end at byte {position} of {file_size}")
