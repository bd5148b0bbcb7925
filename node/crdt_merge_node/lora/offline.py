"""Adapters without a daemon: ``lora merge`` and ``lora expand``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from crdt_merge_protocol.limits import WEIGHT_ONE
from crdt_merge_protocol.strategies.registry import get

from crdt_merge_node.checkpoints.reading import read_checkpoint
from crdt_merge_node.ports import Fs, SystemFs, SystemRng
from crdt_merge_node.resolve.job import DEFAULT_MEMORY_BYTES, ReportProgress, TensorSource
from crdt_merge_node.resolve.row_names import InputNames
from crdt_merge_node.resolve.run import say_nothing

from . import dora
from .collection import AdapterSet, member_of, products, read_members, set_of, weights_of
from .dense import DenseRecipe
from .files import read_adapter_file
from .merging import Merge, merge_set
from .sinks import Target, Written
from .supported import quantised_base
from .writing import BaseModel, Outcome, require_modules, write_delta, write_model

DELTA: Final = "delta.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterResult:
    """What was written."""

    paths: tuple[Path, ...]
    modules: int
    ranks: Mapping[str, int]
    """By module; empty if whole differences were written."""
    dropped: Mapping[str, float]
    """By module: the share of the squared norm that its rank could not keep."""
    warnings: tuple[str, ...] = ()


def merge_adapters(
    paths: Sequence[Path],
    output: Path,
    *,
    strategy: str = "weight_average",
    params: Mapping[str, str] | None = None,
    weights: Sequence[int] | None = None,
    rank: str = "auto",
    dtype: str = "",
    base: Path | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    progress: ReportProgress | None = None,
    fs: Fs | None = None,
) -> AdapterResult:
    """Merge adapters of one base model.

    Args:
        paths: Directories in PEFT's format. Their order does not matter.
        output: A directory for an adapter or for whole differences; with ``base`` the file of a whole model.
        strategy: Of models; it is applied to the differences.
        params: Of the strategy. Rows of tables may name adapters where those of a group name digests.
        weights: One per adapter, over 2^32; None: all one.
        rank: A rule of ``adapter_rules.RANK_RULES``. ``auto`` keeps the exact sum up to a rank of 256, then
            the largest rank; with strategies that are not linear it writes the whole differences.
        dtype: Of the tensors written; empty: as in the adapters, or in the base.
        base: Write this model, a file or a directory of shards, plus the merged differences.
        memory_bytes: Budget of the merge of whole differences.
        progress: As of a resolve.
        fs: Where everything is.

    Raises:
        ParameterError, ShapeMismatchError: The adapters cannot be merged; the message says why.
        ResolveError, StorageError: As of a resolve of whole models.
    """
    target = Target(output, dtype, fs or SystemFs(), SystemRng())
    recipe = get(strategy)
    given = weights_of(paths, weights)
    names = InputNames(paths, given)
    texts = recipe.normalise(names.stood_for(params or {}))
    members = read_members(paths, given, target.fs)
    texts = recipe.normalise(names.resolved(texts, [member.digest for member in members]))
    found = set_of(members)
    merge = Merge(
        found=found,
        dense=DenseRecipe(strategy=recipe.id, params=texts, group_mode=False, memory_bytes=memory_bytes),
        output="model" if base is not None else "adapter",
        rank=rank,
        base_name=found.adapters[0].base_name,
        base=None if base is None else read_base(base, target.fs),
    )
    merge.target(found.modules[0])  # A rule that is none is refused before anything is written.
    is_whole = base is None and rank == "auto" and not merge.is_linear
    if is_whole:
        merge = replace(merge, output="delta")
    written, outcome = merge_set(
        merge,
        target,
        progress=progress or say_nothing,
        cancelled=lambda: False,
        account=_no_account,
        directory_file=DELTA if is_whole else "",
    )
    if is_whole:
        outcome.warnings.append(
            "The differences are no longer of low rank, so they were written whole; --rank cuts them."
        )
    outcome.warnings += _doubts(found)
    return _result(merge, output, written, outcome)


def expand_adapter(
    path: Path, output: Path, *, base: Path | None = None, dtype: str = "", fs: Fs | None = None
) -> AdapterResult:
    """Write the differences that an adapter stands for, or with ``base`` the model that it makes of it.

    With a base the adapter may be of DoRA, whose differences depend on it.

    Raises:
        ParameterError, ShapeMismatchError, StorageError: As :func:`merge_adapters`.
    """
    target = Target(output, dtype, fs or SystemFs(), SystemRng())
    file = read_adapter_file(path, target.fs, takes_dora=base is not None)
    found = set_of([member_of(file, WEIGHT_ONE, target.fs)])
    differences = products(found, {module: [(0, 1.0)] for module in found.modules})
    outcome = Outcome()
    if base is not None:
        read = read_base(base, target.fs)
        require_modules(found, read)
        if file.is_dora:
            differences = dora.differences(file, found.adapters[0], read)
        write_model(target, read, found, differences, outcome=outcome, account=_no_account)
    else:
        write_delta(target, found, differences, outcome=outcome, account=_no_account)
    outcome.warnings += _doubts(found)
    return AdapterResult(
        paths=(output,), modules=len(found.modules), ranks={}, dropped={}, warnings=tuple(outcome.warnings)
    )


def read_base(path: Path, fs: Fs) -> BaseModel:
    """Return the model in a file or a directory of shards.

    Raises:
        MalformedTensorFileError, StorageError: It cannot be read.
    """
    checkpoint = read_checkpoint(fs, path)
    return BaseModel(
        origin=str(path),
        specs={entry.spec.name: entry.spec for entry in checkpoint.entries},
        sources={
            entry.spec.name: TensorSource(str(entry.path), entry.begin, entry.end - entry.begin)
            for entry in checkpoint.entries
        },
        fs=fs,
    )


def _doubts(found: AdapterSet) -> list[str]:
    """Return what may be wrong with adapters although nothing in them is."""
    name = found.adapters[0].base_name
    if not quantised_base(name):
        return []
    return [f"The adapters were trained on {name}, which is quantised; they fit another base only nearly."]


def _no_account(_written: Written, _outcome: Outcome) -> None:
    """Write no account: who merges offline knows what it was told."""


def _result(merge: Merge, output: Path, written: Written, outcome: Outcome) -> AdapterResult:
    names = [file.name for file in written.files]
    return AdapterResult(
        paths=(output,) if merge.base is not None else tuple(output / name for name in names),
        modules=len(merge.found.modules),
        ranks=outcome.ranks,
        dropped=outcome.dropped,
        warnings=tuple(outcome.warnings),
    )
