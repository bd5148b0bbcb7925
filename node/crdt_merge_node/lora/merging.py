"""Merging adapters in the space of the differences they stand for.

Averaging A and B apart would multiply every A with every B: it is no merge of the differences, so it is not
offered. Strategies that are linear sum the differences exactly as longer factors, which are cut to a rank on
request. All others work on elements, so the differences are written out, merged like models over a base of
zeros, and made low-rank again only on request, with the loss stated.

A module that an adapter does not change is a difference of zero there. Tensors that are saved whole are
averaged among the adapters that have them. ``merge_set`` does all of this, for a group and offline alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Final, TypedDict, TypeVar

from crdt_merge_protocol.strategies.linear_algebra import fits_exact
from crdt_merge_protocol.strategies.registry import get

from crdt_merge_node.ports import Fs
from crdt_merge_node.resolve.job import IsCancelled, ReportProgress, ResolveCancelledError

from .adapter import Factors
from .collection import AdapterSet, linear_sums, products
from .dense import DenseRecipe, merge_differences, stored, stored_parts
from .factors import (
    Part,
    Reduced,
    add_up,
    as_matrix,
    matrix_shape,
    needs_singular_values,
    rank_of_sum,
    target_rank,
    truncate,
)
from .sinks import Target, Written, scratch_directory
from .writing import Account, BaseModel, Outcome, write_adapter, write_delta, write_model

_T = TypeVar("_T", tuple[str, Reduced], Part)
LINEAR: Final = frozenset({"weight_average", "linear", "task_arithmetic"})
"""Strategies whose result is a fixed sum of the differences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """What is merged, and how; everything but where the result goes."""

    found: AdapterSet
    dense: DenseRecipe
    """Of a strategy that is linear, only its name and parameters count."""
    output: str
    """``adapter``, ``delta`` or ``model``."""
    rank: str
    """A rank rule; of an adapter only."""
    base_name: str
    """What the adapter that is written calls its base."""
    base: BaseModel | None = None
    """Of a model only."""

    @property
    def is_linear(self) -> bool:
        """Whether the result is a fixed sum of the differences."""
        return get(self.dense.strategy).id in LINEAR

    def target(self, module: str) -> int | Fraction:
        """Return the rank, or the share of the squared norm, that a module of the result shall have."""
        return target_rank(self.rank, self.found.ranks(module))

    def rank_of(self, module: str) -> int | None:
        """Return the rank that a module of the result has; None if only its numbers tell."""
        target = self.target(module)
        if not isinstance(target, int):
            return None
        rows, columns = self.matrix(module)
        if self.is_linear:
            return rank_of_sum(sum(self.found.ranks(module)), rows, columns, target)
        return min(target, rows, columns)

    @property
    def is_bitwise(self) -> bool:
        """Whether no singular values are needed of a matrix beyond the size up to which they are exact."""
        return self.output != "adapter" or all(map(self._is_exact, self.found.modules))

    def _is_exact(self, module: str) -> bool:
        rows, columns = self.matrix(module)
        if not self.is_linear:
            return fits_exact(rows, columns)
        total = sum(self.found.ranks(module))
        if not needs_singular_values(total, self.target(module)):
            return True
        return fits_exact(min(rows, total), min(columns, total))

    def matrix(self, module: str) -> tuple[int, int]:
        """Return the shape of the product that the factors of a module of the result have."""
        found = self.found
        return matrix_shape(found.shape(module), is_transposed=found.is_transposed(module))


def merge_set(
    merge: Merge,
    target: Target,
    *,
    progress: ReportProgress,
    cancelled: IsCancelled,
    account: Account,
    directory_file: str = "",
) -> tuple[Written, Outcome]:
    """Merge adapters and write the result, whole or not at all.

    Args:
        merge: What, and how.
        target: Where the result goes.
        progress: Told modules done, modules in all, and the step in words; or bytes of whole differences.
        cancelled: Asked before every module.
        account: Returns what is written with the tensors.
        directory_file: Of whole differences: the target is a directory, the file in it is called so.

    Returns:
        What was written, and what came of the modules.

    Raises:
        ResolveError, StorageError: As of ``run_job``.
    """
    found, recipe = merge.found, merge.dense
    output = _Output(merge, target, progress, cancelled, account, directory_file)
    if merge.is_linear:
        sums = linear_sums(found, recipe.strategy, recipe.params, is_strict=not recipe.group_mode)
        return output.write(_summed(merge, sums), products(found, sums)), output.outcome
    with scratch_directory(target) as place:
        merged = merge_differences(
            found, recipe, place, progress=progress, cancelled=cancelled, fs=target.fs, rng=target.rng
        )
        output.outcome.engine = merged
        output.outcome.warnings += merged.warnings
        differences = stored_parts(merged.output_path, found, target.fs)
        written = output.write(_truncated(merge, merged.output_path, target.fs), differences)
    return written, output.outcome


@dataclass(frozen=True, slots=True)
class _Output:
    """Writes what was merged as whatever is wanted; of two forms that it is given only one is computed."""

    merge: Merge
    target: Target
    progress: ReportProgress
    cancelled: IsCancelled
    account: Account
    directory_file: str
    outcome: Outcome = field(default_factory=Outcome)

    def write(self, factors: Iterator[tuple[str, Reduced]], differences: Iterator[Part]) -> Written:
        """Write the result, by its factors or by its whole differences."""
        merge, target, found = self.merge, self.target, self.merge.found
        options: _Options = {"outcome": self.outcome, "account": self.account}
        if merge.output == "model":
            assert merge.base is not None, "whoever asks for a model has a base"
            return write_model(target, merge.base, found, self._steps(differences), **options)
        if merge.output == "delta":
            steps = self._steps(differences)
            return write_delta(target, found, steps, directory_file=self.directory_file, **options)
        reduced: Iterable[tuple[str, Reduced]] = self._steps(factors)
        ranks = {module: merge.rank_of(module) for module in found.modules}
        known = {module: rank for module, rank in ranks.items() if rank is not None}
        if len(known) < len(ranks):
            # A share of the norm: only the numbers tell the ranks, which the file begins with.
            reduced = list(reduced)
            known = {module: each.up.shape[1] for module, each in reduced}
        return write_adapter(target, found, known, reduced, base_name=merge.base_name, **options)

    def _steps(self, parts: Iterator[_T]) -> Iterator[_T]:
        """Report what is done of the modules, and end when nobody wants the result."""
        modules = {module: number for number, module in enumerate(self.merge.found.modules)}
        for part in parts:
            if self.cancelled():
                raise ResolveCancelledError("The resolve was cancelled. No file has changed.")
            self.progress(modules[part[0]], len(modules), "merging modules")
            yield part


class _Options(TypedDict):
    """What every writer is told."""

    outcome: Outcome
    account: Account


def _summed(merge: Merge, sums: Mapping[str, Sequence[tuple[int, float]]]) -> Iterator[tuple[str, Reduced]]:
    """Yield the factors of a weighted sum of adapters by module, at the rank that the rule gives."""
    found = merge.found
    for module, parts in sums.items():
        total = sum(found.ranks(module))
        yield module, add_up(_turned(found, module, parts), total, merge.matrix(module), merge.target(module))


def _turned(
    found: AdapterSet, module: str, parts: Iterable[tuple[int, float]]
) -> Iterator[tuple[float, Factors]]:
    """Yield the parts of a sum as factors whose products all have the layout of the result."""
    is_transposed = found.is_transposed(module)
    for i, coefficient in parts:
        yield coefficient, found.adapters[i].factors(module).turned(is_transposed)


def _truncated(merge: Merge, merged: Path, fs: Fs) -> Iterator[tuple[str, Reduced]]:
    """Yield factors of the whole differences in a file by module, cut to the rank that the rule gives."""
    found = merge.found
    for module, difference in stored(merged, found, fs):
        matrix = as_matrix(difference, is_transposed=found.is_transposed(module))
        yield module, truncate(matrix, merge.target(module))
