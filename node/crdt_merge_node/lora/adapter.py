"""Reading an adapter as PEFT saves it: ``adapter_config.json`` and ``adapter_model.safetensors``.

An adapter of rank r gives a module two factors, A ``(r, in)`` and B ``(out, r)``, and stands for the
difference ``s B A`` of the module's weight, where the scale s is ``alpha / r``, or ``alpha / sqrt(r)`` with
rank-stabilised scaling; rank and alpha may differ by module (``rank_pattern``, ``alpha_pattern``). A
convolution has factors ``(r, in, h, w)`` and ``(out, r, 1, 1)``; an embedding has its factors transposed.

What would make the difference depend on the base's weights (DoRA), or is not a pair of factors, is refused.

Source: Hu et al., LoRA, ICLR 2022, arXiv:2106.09685; Kalajdzievski, rsLoRA, 2023, arXiv:2312.03732; the
documented file format of PEFT 0.21.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from crdt_merge_protocol.blobs import FLOAT_DTYPES
from crdt_merge_protocol.errors import MalformedTensorFileError, ParameterError, ShapeMismatchError
from crdt_merge_protocol.strategies.contract import Float64Array
from crdt_merge_protocol.strategies.dtypes import decode_block
from crdt_merge_protocol.tensorfile import TensorEntry

from crdt_merge_node.ports import Fs
from crdt_merge_node.resolve.files import SourceReader, naming, read_header
from crdt_merge_node.resolve.job import TensorSource

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."
_CONFIG_BYTES_MAX: Final = 1 << 20
_FACTOR: Final = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(\.weight)?")
_REFUSED: Final = {
    "use_dora": "its difference depends on the base's weights: merge it into the base first",
    "layer_replication": "it changes the layers of the base",
    "alora_invocation_tokens": "it is not always active",
    "target_parameters": "its factors are not of modules",
    "lora_bias": "it has a bias in its factors",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """Where the two factors of a module are."""

    down: TensorEntry
    """A."""
    up: TensorEntry
    """B."""
    is_embedding: bool

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.down.spec.shape[0]


@dataclass(frozen=True, slots=True)
class Factors:
    """The difference of one module as a product: ``up @ down``, the scale included."""

    down: Float64Array
    """``(r, n)`` float64: A, with the axes behind the first flattened."""
    up: Float64Array
    """``(m, r)`` float64: B times the scale."""
    shape: tuple[int, ...]
    """Of the module's weight."""
    is_transposed: bool
    """The weight is the transpose of the product: embeddings, and layers that are saved input first."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter whose form has been checked; its numbers are read when they are asked for."""

    path: Path
    base_name: str
    config: Mapping[str, Any]
    pairs: Mapping[str, Pair]
    """By module, in byte order."""
    others: Mapping[str, TensorEntry]
    """Tensors that are saved whole (``modules_to_save``, biases), by their name in the base."""
    fs: Fs

    def scale(self, module: str) -> float:
        """Return what the product of a module's factors is multiplied by."""
        rank = self.pairs[module].rank
        alpha = float(_matching(self.config.get("alpha_pattern"), module, self.config["lora_alpha"]))
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def factors(self, module: str) -> Factors:
        """Return the factors of a module.

        Raises:
            StorageError, CorruptError: They cannot be read.
        """
        pair = self.pairs[module]
        down, up = self._read(pair.down), self._read(pair.up)
        outputs, inputs = up.shape[0], down.shape[1:]
        is_transposed = pair.is_embedding or bool(self.config.get("fan_in_fan_out"))
        shape = (*inputs, outputs) if is_transposed else (outputs, *inputs)
        return Factors(
            down=down.reshape(pair.rank, -1),
            up=up.reshape(outputs, -1) * self.scale(module),
            shape=shape,
            is_transposed=is_transposed,
        )

    def other(self, name: str) -> Float64Array:
        """Return a tensor that is saved whole, float64 in its own shape."""
        return self._read(self.others[name])

    def _read(self, entry: TensorEntry) -> Float64Array:
        reader = SourceReader(self.fs)
        try:
            nbytes = entry.end - entry.begin
            raw = reader.read(TensorSource(str(self.path / WEIGHTS), entry.begin, nbytes), 0, nbytes)
            return np.array(decode_block(entry.spec.dtype, raw)).reshape(entry.spec.shape)
        finally:
            reader.close()


def read_adapter(path: Path, fs: Fs) -> Adapter:
    """Return the adapter in a directory.

    Raises:
        ParameterError: Not a LoRA adapter, or one that uses what is not supported; the message says what.
        ShapeMismatchError: Factors that do not fit one another.
        MalformedTensorFileError, StorageError: Its files cannot be read.
    """
    config = _read_config(path, fs)
    entries = {entry.spec.name: entry for entry in read_header(fs, path / WEIGHTS).entries}
    sides: dict[str, dict[str, TensorEntry]] = {}
    embeddings: set[str] = set()
    others: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        if entry.spec.dtype not in FLOAT_DTYPES:
            raise ParameterError(f"{path}: {name} has element type {entry.spec.dtype}.")
        bare = name.removeprefix(PREFIX)
        match = _FACTOR.fullmatch(bare)
        if match is None:
            if ".lora_" in bare:
                raise ParameterError(f"{path}: {name} is no factor that is understood here.")
            others[bare] = entry
            continue
        sides.setdefault(match["module"], {})[match["side"]] = entry
        if match["kind"]:
            embeddings.add(match["module"])
    pairs = {}
    for module in sorted(sides, key=str.encode):
        found = sides[module]
        if len(found) != 2:
            raise ParameterError(f"{path}: module {module} has factor {', '.join(found)} alone.")
        pairs[module] = Pair(found["A"], found["B"], module in embeddings)
        _check_shapes(path, module, pairs[module])
    if not pairs:
        raise ParameterError(f"{path}: there are no factors in {WEIGHTS}.")
    base_name = str(config.get("base_model_name_or_path") or "")
    return Adapter(path, base_name, config, pairs, others, fs)


def _read_config(path: Path, fs: Fs) -> dict[str, Any]:
    with naming(path / CONFIG, "read"), fs.open_read(path / CONFIG, follow=True) as file:
        data = file.read_at(0, _CONFIG_BYTES_MAX)
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedTensorFileError(f"{path / CONFIG} is not JSON: {error}.") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ParameterError(f"{path / CONFIG} is not of a LoRA adapter.", hint="peft_type has to be LORA.")
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise ParameterError(f"{path / CONFIG}: {key} is not supported: {reason}.")
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ParameterError(f"{path / CONFIG}: lora_alpha is no number.")
    return config


def _check_shapes(path: Path, module: str, pair: Pair) -> None:
    down, up = pair.down.spec.shape, pair.up.spec.shape
    if len(down) < 2 or len(up) < 2 or len(down) != len(up) or down[0] != up[1] or not down[0]:
        raise ShapeMismatchError(f"{path}: factors of {module} are {list(down)} and {list(up)}.")
    if any(size != 1 for size in up[2:]):
        raise ShapeMismatchError(f"{path}: factor B of {module} is a convolution of {list(up[2:])}.")


def _matching(pattern: Any, module: str, default: Any) -> Any:
    """Return the value of the first key that is the end of the module's name, read as PEFT reads it."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
