"""Checkpoints in several files: the index of a sharded directory, and how we cut an output into shards.

The layout is that of Hugging Face: ``model-00001-of-00003.safetensors`` and so on, and beside them
``model.safetensors.index.json`` that says which tensor is in which file. A model that fits one shard is
``model.safetensors`` without an index. How tensors are spread over files is no property of a model: it enters
neither its content id nor any merge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from .blobs import TensorSpec
from .canonical import is_name
from .errors import MalformedCheckpointError
from .limits import MIB, SHARD_NAME_CHARS_MAX, SHARDS_MAX, TENSORS_MAX
from .tensorfile import layout

SINGLE_NAME: Final = "model.safetensors"
"""The one file of a checkpoint without an index."""
INDEX_NAME: Final = "model.safetensors.index.json"
INDEX_BYTES_MAX: Final = 8 * MIB
_SUFFIX: Final = ".safetensors"
_SHARD_NAME: Final = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{SHARD_NAME_CHARS_MAX - 1}}}")
_NUMBERED: Final = re.compile(r".+-\d{1,8}-of-\d{1,8}\.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of an output."""

    name: str
    header: bytes
    """Length field and JSON header: how the file begins."""
    specs: tuple[TensorSpec, ...]
    """In the order of the file: byte order of their names."""

    @property
    def tensor_bytes(self) -> int:
        """Size of its tensors."""
        return sum(spec.nbytes for spec in self.specs)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.header) + self.tensor_bytes


def is_shard_name(name: str) -> bool:
    """Tell whether a file of a checkpoint may have this name: in the directory itself, and not hidden."""
    return name.endswith(_SUFFIX) and _SHARD_NAME.fullmatch(name) is not None


def is_numbered(name: str) -> bool:
    """Tell whether a name is that of one shard of several, as ``model-00002-of-00003.safetensors``."""
    return _NUMBERED.fullmatch(name) is not None


def parse_index(data: bytes) -> dict[str, str]:
    """Return which tensor is in which file.

    Args:
        data: The bytes of an index; it comes from strangers.

    Raises:
        MalformedCheckpointError: Not an index within the limits, or one that names files elsewhere.
    """
    if len(data) > INDEX_BYTES_MAX:
        _refuse(f"it has {len(data)} bytes, at most {INDEX_BYTES_MAX} are read")
    if data.count(b",") > 2 * TENSORS_MAX + 1024:
        _refuse(f"it holds more than {TENSORS_MAX} tensors could need")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError:
        _refuse("it is not UTF-8")
    except (ValueError, RecursionError) as error:
        _refuse(f"it is not JSON ({error})")
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict):
        _refuse("it has no weight_map")
    for tensor, file in weight_map.items():
        if not is_name(tensor):
            _refuse(f"{tensor[:64]!a} is not a tensor name")
        if not isinstance(file, str) or not is_shard_name(file):
            _refuse(f"tensor {tensor} is said to be in {str(file)[:64]!a}, which is no file beside the index")
    if not 0 < len(weight_map) <= TENSORS_MAX:
        _refuse(f"it names {len(weight_map)} tensors, 1 to {TENSORS_MAX} are read")
    if len(set(weight_map.values())) > SHARDS_MAX:
        _refuse(f"it names {len(set(weight_map.values()))} files, at most {SHARDS_MAX} are read")
    return weight_map


def check_shards(weight_map: Mapping[str, str], found: Mapping[str, Iterable[str]]) -> None:
    """Check that the files of a checkpoint hold what its index says, and nothing else.

    Args:
        weight_map: As :func:`parse_index` returned it.
        found: File -> the names of the tensors that its header lists.

    Raises:
        MalformedCheckpointError: A tensor is missing, in two files, or in another file than the index says.
    """
    seen: dict[str, str] = {}
    for file, names in found.items():
        for name in names:
            if name in seen:
                raise MalformedCheckpointError(f"tensor {name} is in two files: {seen[name]} and {file}.")
            seen[name] = file
    for name, file in seen.items():
        said = weight_map.get(name)
        if said is None:
            raise MalformedCheckpointError(f"tensor {name} of {file} is not in the index.")
        if said != file:
            raise MalformedCheckpointError(f"tensor {name} is in {file}, the index says {said}.")
    for name, file in weight_map.items():
        if name not in seen:
            raise MalformedCheckpointError(f"{file} does not hold tensor {name}, which the index says.")


def plan_shards(specs: Iterable[TensorSpec], shard_bytes: int) -> tuple[Shard, ...]:
    """Return the files of an output: tensors in byte order of their names, as many a file as fit.

    Args:
        specs: All tensors.
        shard_bytes: Size of tensors in one file; a tensor that is larger has a file for itself.

    Returns:
        A function of the arguments alone. A single shard is named :data:`SINGLE_NAME`.

    Raises:
        MalformedCheckpointError: More than ``SHARDS_MAX`` files would be needed.
    """
    groups: list[list[TensorSpec]] = []
    room = 0
    for spec in sorted(specs, key=lambda spec: spec.name.encode()):
        if not groups or spec.nbytes > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(spec)
        room -= spec.nbytes
    if len(groups) > SHARDS_MAX:
        raise MalformedCheckpointError(
            f"{len(groups)} shards would be needed, at most {SHARDS_MAX} are written.",
            hint="Allow larger shards.",
        )
    groups = groups or [[]]
    names = [SINGLE_NAME]
    if len(groups) > 1:
        names = [f"model-{number:05}-of-{len(groups):05}{_SUFFIX}" for number in range(1, len(groups) + 1)]
    return tuple(
        Shard(name=name, header=layout(group)[0], specs=tuple(group))
        for name, group in zip(names, groups, strict=True)
    )


def index_of(shards: Iterable[Shard]) -> bytes:
    """Return the bytes of the index of several shards, as Hugging Face writes them."""
    known = tuple(shards)
    document = {
        "metadata": {"total_size": sum(shard.tensor_bytes for shard in known)},
        "weight_map": {spec.name: shard.name for shard in known for spec in shard.specs},
    }
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse("a key occurs twice")
    return found


def _refuse(reason: str) -> NoReturn:
    raise MalformedCheckpointError(f"not an acceptable index of a checkpoint: {reason}.")
