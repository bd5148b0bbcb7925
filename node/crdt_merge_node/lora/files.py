"""Adapters as PEFT saves them: a directory with ``adapter_config.json`` and ``adapter_model.safetensors``.

The configuration may give modules a rank and an alpha of their own by patterns, which are read here as PEFT
reads them, once, on the machine of whoever has the file: a pattern of a stranger can take years to match.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from crdt_merge_protocol.adapters import (
    ADAPTER,
    BIASES,
    PREFIX,
    AdapterHeader,
    AdapterLayout,
    canonical_name,
    read_adapter_header,
    read_layout,
)
from crdt_merge_protocol.blobs import Manifest, ManifestEntry, TensorSpec, blob_digest_of
from crdt_merge_protocol.errors import MalformedTensorFileError, ParameterError, ResolveError
from crdt_merge_protocol.limits import ADAPTER_CONFIG_BYTES_MAX
from crdt_merge_protocol.packing import CONFIG_NAME, PackedFile, Packing
from crdt_merge_protocol.tensorfile import LENGTH_BYTES, layout, parse_header

from crdt_merge_node.checkpoints.reading import Checkpoint, CheckpointTensor, read_checkpoint
from crdt_merge_node.checkpoints.writing import ReadChunk
from crdt_merge_node.errors import StorageError
from crdt_merge_node.ports import Fs
from crdt_merge_node.resolve.files import naming
from crdt_merge_node.resolve.job import TensorSource

from .adapter import Adapter
from .supported import refuse_unsupported

CONFIG: Final = CONFIG_NAME
WEIGHTS: Final = "adapter_model.safetensors"
_MAGNITUDE: Final = ".lora_magnitude_vector"


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter in a directory, as far as its configuration and the header of its tensors tell."""

    path: Path
    header: AdapterHeader
    layout: AdapterLayout
    checkpoint: Checkpoint
    """Of its tensors, under the names that the file gives them."""
    config: bytes
    """The configuration as it stands."""
    magnitudes: Mapping[str, CheckpointTensor] = field(default_factory=dict)
    """Of DoRA, by module; empty for all that merge as adapters."""
    is_dora: bool = False
    """Its differences depend on the base (``dora.py``)."""

    @property
    def entries(self) -> dict[str, CheckpointTensor]:
        """The tensors by their names in canonical spelling."""
        return {canonical_name(entry.spec.name): entry for entry in self.checkpoint.entries}

    @property
    def packing(self) -> Packing:
        """How its author has it in files."""
        file = replace(self.checkpoint.packing.files[0], name=WEIGHTS)
        return Packing(files=(file,), config=self.config)

    def manifest(self, blobs: Mapping[str, bytes]) -> Manifest:
        """Return the manifest of the contribution that it is.

        Args:
            blobs: Digest of each tensor by the name that the file gives it.
        """
        entries = [
            ManifestEntry(spec=replace(entry.spec, name=name), blob=blobs[entry.spec.name])
            for name, entry in self.entries.items()
        ]
        return Manifest.of([*entries, header_entry(self.header)])

    def adapter(self, fs: Fs) -> Adapter:
        """Return the adapter, to be read where it is."""
        sources = {
            name: TensorSource(str(entry.path), entry.begin, entry.end - entry.begin)
            for name, entry in self.entries.items()
        }
        return Adapter(origin=str(self.path), header=self.header, layout=self.layout, sources=sources, fs=fs)


def header_entry(header: AdapterHeader) -> ManifestEntry:
    """Return the line of a manifest that is an adapter's header."""
    data = header.encode()
    return ManifestEntry(
        spec=TensorSpec(name=ADAPTER, dtype="U8", shape=(len(data),)), blob=blob_digest_of(data)
    )


def is_adapter_directory(fs: Fs, path: Path) -> bool:
    """Tell whether a path is a directory as PEFT saves adapters."""
    return fs.stat(path / CONFIG) is not None


def read_adapter(path: Path, fs: Fs) -> Adapter:
    """Return the adapter in a directory.

    Raises:
        ParameterError: Not a LoRA adapter, or one that uses what is not supported; the message says what.
        ShapeMismatchError, DTypeMismatchError: Factors that do not fit one another, or are no real numbers.
        MalformedTensorFileError, StorageError: Its files cannot be read.
    """
    return read_adapter_file(path, fs).adapter(fs)


def read_adapter_file(path: Path, fs: Fs, *, takes_dora: bool = False) -> AdapterFile:
    """Return what the files of an adapter say, its numbers aside; raises as :func:`read_adapter`.

    Args:
        path: Its directory.
        fs: Where that is.
        takes_dora: Read one with magnitudes too; those are in ``magnitudes`` and in nothing else.
    """
    data = _read_config(path, fs)
    config = _checked(path, data, takes_dora=takes_dora)
    if fs.stat(path / WEIGHTS) is None and fs.stat(path / "adapter_model.bin") is not None:
        raise ParameterError(
            f"{path} has its tensors in adapter_model.bin, which is not read: it can hold programs.",
            hint="Save it again with save_pretrained(..., safe_serialization=True).",
        )
    checkpoint = read_checkpoint(fs, path / WEIGHTS)
    magnitudes: dict[str, CheckpointTensor] = {}
    is_dora = bool(config.get("use_dora"))  # Refused already unless it is taken.
    if is_dora:
        checkpoint, magnitudes = _without_magnitudes(checkpoint)
    names = [canonical_name(entry.spec.name) for entry in checkpoint.entries]
    try:
        if twice := sorted({name for name in names if names.count(name) > 1}) if _repeats(names) else []:
            raise ParameterError(f"tensor {twice[0]} is there under two names.")
        layout = read_layout(
            replace(entry.spec, name=name) for entry, name in zip(checkpoint.entries, names, strict=True)
        )
        header = read_adapter_header(_header(config, layout).encode())
    except ResolveError as error:
        raise type(error)(f"{path}: {error.message}", hint=error.hint) from None
    return AdapterFile(path, header, layout, checkpoint, data, magnitudes, is_dora)


def _without_magnitudes(checkpoint: Checkpoint) -> tuple[Checkpoint, dict[str, CheckpointTensor]]:
    """Return the tensors but DoRA's magnitudes, and these by module."""
    rest: list[CheckpointTensor] = []
    found: dict[str, CheckpointTensor] = {}
    for entry in checkpoint.entries:
        bare = entry.spec.name.removeprefix(PREFIX).removesuffix(".weight")
        if bare.endswith(_MAGNITUDE):
            found[bare.removesuffix(_MAGNITUDE)] = entry
        else:
            rest.append(entry)
    return replace(checkpoint, entries=tuple(rest)), found


def _repeats(names: list[str]) -> bool:
    return len(set(names)) < len(names)


def _read_config(path: Path, fs: Fs) -> bytes:
    with naming(path / CONFIG, "read"), fs.open_read(path / CONFIG, follow=True) as file:
        data = file.read_at(0, ADAPTER_CONFIG_BYTES_MAX + 1)
    if len(data) > ADAPTER_CONFIG_BYTES_MAX:
        raise StorageError(f"{path / CONFIG} has more than {ADAPTER_CONFIG_BYTES_MAX} bytes.")
    return data


def _checked(path: Path, data: bytes, *, takes_dora: bool) -> dict[str, Any]:
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedTensorFileError(f"{path / CONFIG} is not JSON: {error}.") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ParameterError(f"{path / CONFIG} is not of a LoRA adapter.", hint="peft_type has to be LORA.")
    refuse_unsupported(config, str(path / CONFIG), takes_dora=takes_dora)
    return config


def _header(config: Mapping[str, Any], layout: AdapterLayout) -> AdapterHeader:
    """Return what a configuration says of the modules that are there."""
    alpha = _decimal(config.get("lora_alpha"))
    own = {module: _decimal(_alpha_of(config, module)) for module in layout.pairs}
    bias = config.get("bias") or BIASES[0]
    if bias not in BIASES:
        raise ParameterError(f"{CONFIG}: bias is one of {', '.join(BIASES)}.")
    return AdapterHeader(
        alpha=alpha,
        alpha_pattern={module: text for module, text in own.items() if text != alpha},
        use_rslora=bool(config.get("use_rslora")),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        base_model=_text(config.get("base_model_name_or_path")),
        bias=bias,
        modules_to_save=tuple(sorted({str(name) for name in config.get("modules_to_save") or ()})),
        task_type=_text(config.get("task_type")),
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _alpha_of(config: Mapping[str, Any], module: str) -> Any:
    """Return the value of the first key that is the end of the module's name, read as PEFT reads it."""
    for key, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return config.get("lora_alpha")


def _decimal(alpha: Any) -> str:
    """Return a number as the text that a header has."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ParameterError(f"{CONFIG}: lora_alpha is no number.")
    text = f"{Decimal(repr(alpha)):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def synthetic_config(
    header: AdapterHeader, ranks: Mapping[str, int], alphas: Mapping[str, float], base_name: str
) -> bytes:
    """Return a configuration that PEFT reads as these ranks and alphas, the same bytes everywhere.

    Args:
        header: What else it says.
        ranks: By module.
        alphas: By module.
        base_name: Of the base.
    """
    rank, alpha = _usual(ranks.values()), _usual(alphas.values())
    config = {
        "alpha_pattern": {module: _number(each) for module, each in alphas.items() if each != alpha},
        "base_model_name_or_path": base_name or None,
        "bias": header.bias,
        "fan_in_fan_out": header.fan_in_fan_out,
        "inference_mode": True,
        "lora_alpha": _number(alpha),
        "lora_dropout": 0.0,
        "modules_to_save": list(header.modules_to_save) or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {module: each for module, each in ranks.items() if each != rank},
        "target_modules": list(ranks),
        "task_type": header.task_type or None,
        "use_rslora": header.use_rslora,
    }
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def config_of(header: AdapterHeader, layout: AdapterLayout) -> bytes:
    """Return a configuration of an adapter whose own one is not known any more."""
    ranks = {module: pair.rank for module, pair in layout.pairs.items()}
    alphas = {module: float(header.alpha_pattern.get(module, header.alpha)) for module in ranks}
    return synthetic_config(header, ranks, alphas, header.base_model)


def as_files(manifest: Manifest, packing: Packing | None, read: ReadChunk) -> tuple[Manifest, Packing]:
    """Return an adapter's tensors as its author named them, and the files that hold them.

    Args:
        manifest: Of the contribution.
        packing: How its author had it; None: files are made up that mean the same.
        read: Returns a chunk of a blob.

    Raises:
        RemoteProtocolError, ParameterError: The contribution is no adapter.
        StorageError, CorruptError: Its header cannot be read.
    """
    entries = {entry.spec.name: entry for entry in manifest.entries if entry.spec.name != ADAPTER}
    if packing is not None:
        names = [
            entry.spec.name
            for file in packing.files
            for entry in parse_header(file.header, file.nbytes).entries
        ]
        named = [
            replace(entry, spec=replace(entry.spec, name=name))
            for name in names
            if (entry := entries.get(canonical_name(name))) is not None
        ]
        # One that leaves tensors out, or has one twice, is found not to be of these.
        return Manifest.of(named if len(named) == len(entries) else entries.values()), packing
    bare = Manifest.of(entries.values())
    header = next((entry for entry in manifest.entries if entry.spec.name == ADAPTER), None)
    data = read(header.blob, 0) if header is not None else None
    if data is None:
        raise StorageError("the header of the adapter is not here.", hint="It is fetched again.")
    config = config_of(read_adapter_header(data), read_layout(entry.spec for entry in bare.entries))
    start = layout(entry.spec for entry in bare.entries)[0]
    file = PackedFile(name=WEIGHTS, nbytes=len(start) + bare.nbytes, header=start[LENGTH_BYTES:])
    return bare, Packing(files=(file,), config=config)


def _usual(values: Iterable[Any]) -> Any:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value
