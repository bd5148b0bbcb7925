"""Adapters that are merged together: one base, canonical order, no duplicates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from crdt_merge_protocol.adapters import ADAPTER, BIASES, AdapterHeader, weight_name
from crdt_merge_protocol.blobs import TensorSpec, contribution_digest
from crdt_merge_protocol.errors import EmptySetError, NonFiniteError, ParameterError, ShapeMismatchError
from crdt_merge_protocol.limits import WEIGHT_ONE
from crdt_merge_protocol.strategies.contract import Block, Float64Array, MergeContext, exact_weights
from crdt_merge_protocol.strategies.registry import get

from crdt_merge_node.ports import Fs
from crdt_merge_node.resolve.describe import describe_file

from .adapter import Adapter
from .factors import Part, delta, row_ranges
from .files import WEIGHTS, AdapterFile, read_adapter_file


class Member(NamedTuple):
    """One adapter of a set."""

    digest: bytes
    """Contribution digest, which its place among the others follows from."""
    weight: int
    """Over 2^32."""
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class AdapterSet:
    """Adapters of one base, in canonical order, without duplicates."""

    adapters: tuple[Adapter, ...]
    digests: tuple[bytes, ...]
    weights: tuple[int, ...]
    modules: tuple[str, ...]
    """All that some adapter changes, in byte order."""

    @classmethod
    def of(cls, members: Iterable[Member]) -> AdapterSet:
        """Return these adapters as a set; the order in which they come does not matter."""
        named = {member.digest: member for member in members}
        ordered = [named[digest] for digest in sorted(named)]
        return cls(
            adapters=tuple(member.adapter for member in ordered),
            digests=tuple(member.digest for member in ordered),
            weights=tuple(member.weight for member in ordered),
            modules=tuple(sorted({m for member in ordered for m in member.adapter.pairs}, key=str.encode)),
        )

    def having(self, module: str) -> list[int]:
        """Return the positions of the adapters that change a module."""
        return [i for i, adapter in enumerate(self.adapters) if module in adapter.pairs]

    def first(self, module: str) -> Adapter:
        """Return the first adapter that changes a module; its kind of layer is that of the result."""
        return self.adapters[self.having(module)[0]]

    def shape(self, module: str) -> tuple[int, ...]:
        """Return the shape of the weight of a module."""
        return self.first(module).shape(module)

    def is_transposed(self, module: str) -> bool:
        """Tell whether the weight of a module is the transpose of the product of the result's factors."""
        return self.first(module).pairs[module].is_transposed(self.header.fan_in_fan_out)

    def ranks(self, module: str) -> list[int]:
        """Return the ranks of the adapters that change a module."""
        return [self.adapters[i].pairs[module].rank for i in self.having(module)]

    @property
    def others(self) -> dict[str, TensorSpec]:
        """The tensors that some adapter saves whole, in byte order, each as the first that has it."""
        found: dict[str, TensorSpec] = {}
        for adapter in self.adapters:
            for name, spec in adapter.others.items():
                found.setdefault(name, spec)
        return dict(sorted(found.items(), key=lambda item: item[0].encode()))

    @property
    def dtypes(self) -> set[str]:
        """The element types of the factors."""
        return {pair.down.dtype for adapter in self.adapters for pair in adapter.pairs.values()}

    @property
    def header(self) -> AdapterHeader:
        """What the result is besides its tensors: its scale is one, the rest that of the first or of all."""
        headers = [adapter.header for adapter in self.adapters]
        return AdapterHeader(
            alpha="1",
            fan_in_fan_out=headers[0].fan_in_fan_out,
            base_model=next((header.base_model for header in headers if header.base_model), ""),
            bias=max((header.bias for header in headers), key=BIASES.index),
            modules_to_save=tuple(sorted({name for header in headers for name in header.modules_to_save})),
            task_type=next((header.task_type for header in headers if header.task_type), ""),
        )


def weights_of(paths: Sequence[Path], weights: Sequence[int] | None) -> list[int]:
    """Return the weight of each adapter over 2^32; without any all have one.

    Raises:
        EmptySetError: There are no adapters.
        ParameterError: There are more or fewer weights.
    """
    if not paths:
        raise EmptySetError("There are no adapters, hence nothing to merge.", hint="Name one at least.")
    given = [WEIGHT_ONE] * len(paths) if weights is None else list(weights)
    if len(given) != len(paths):
        raise ParameterError(f"{len(given)} weights for {len(paths)} adapters.", hint="Give one per adapter.")
    return given


def read_members(paths: Sequence[Path], weights: Sequence[int], fs: Fs) -> list[Member]:
    """Return the adapter in each directory.

    Raises:
        NonFiniteError: One holds NaN or infinity.
        StorageError, MalformedTensorFileError: A file cannot be read.
    """
    return [member_of(read_adapter_file(path, fs), w, fs) for path, w in zip(paths, weights, strict=True)]


def set_of(members: Iterable[Member]) -> AdapterSet:
    """Return adapters as a set.

    Raises:
        ParameterError, ShapeMismatchError: They cannot be merged with one another.
    """
    found = AdapterSet.of(members)
    bases = sorted({adapter.base_name for adapter in found.adapters})
    if len(bases) > 1:
        raise ParameterError(
            f"The adapters are of different bases: {', '.join(base or 'unnamed' for base in bases)}.",
            hint="Differences from different models cannot be added.",
        )
    for module in found.modules:
        _require_one_shape(
            f"Module {module}", {found.adapters[i].shape(module) for i in found.having(module)}
        )
    for name in found.others:
        shapes = {adapter.others[name].shape for adapter in found.adapters if name in adapter.others}
        _require_one_shape(f"Tensor {name}", shapes)
    return found


def member_of(file: AdapterFile, weight: int, fs: Fs) -> Member:
    """Return an adapter as one of a set, all of its numbers looked at.

    Raises:
        NonFiniteError: It holds NaN or infinity.
        StorageError, MalformedTensorFileError: Its file cannot be read.
    """
    described = describe_file(file.path / WEIGHTS, fs=fs)
    if not described.is_finite:
        raise NonFiniteError(
            f"{file.path}: tensor {described.not_finite[0]} holds NaN or infinity.",
            hint="An adapter with such values is damaged; a group would quarantine it.",
        )
    blobs = {entry.spec.name: entry.blob for entry in described.manifest.entries}
    digest = contribution_digest(kind=ADAPTER, content=file.manifest(blobs).content, weight=weight)
    return Member(digest, weight, file.adapter(fs))


def _require_one_shape(what: str, shapes: set[tuple[int, ...]]) -> None:
    if len(shapes) > 1:
        raise ShapeMismatchError(f"{what} has shapes {', '.join(map(str, sorted(shapes)))}.")


def linear_sums(
    found: AdapterSet, strategy: str, params: Mapping[str, str], *, is_strict: bool
) -> dict[str, list[tuple[int, float]]]:
    """Return, by module, which adapters a linear strategy adds up and with which coefficients.

    It is asked to merge unit vectors, one per adapter: the result holds the coefficients, tables and all.
    """
    recipe, k = get(strategy), len(found.adapters)
    specs = tuple(TensorSpec(name=weight_name(module), dtype="F64", shape=(k,)) for module in found.modules)
    context = MergeContext(
        strategy=recipe.id,
        params=recipe.validate(params),
        weights=exact_weights(found.weights),
        digests=found.digests,
        has_base=recipe.base != "unused",
        seed=b"",
        specs=specs,
        is_strict=is_strict,
    )
    recipe.check(context)
    units = list(np.eye(k))
    base = np.zeros(k) if recipe.uses_base(context) else None
    sums = {}
    for index, module in enumerate(found.modules):
        block = Block(tensor_index=index, start=0, stop=k, inputs=units, base=base)
        coefficients = recipe.merge(context, None, block)
        sums[module] = [(i, float(coefficients[i])) for i in found.having(module)]
    return sums


def products(found: AdapterSet, sums: Mapping[str, Sequence[tuple[int, float]]]) -> Iterator[Part]:
    """Yield each module's merged difference, some rows at a time."""
    for module, terms in sums.items():
        shape = found.shape(module)
        factors = [(coefficient, found.adapters[i].factors(module)) for i, coefficient in terms]
        for start, stop in row_ranges(shape):
            total = np.zeros((stop - start, *shape[1:]))
            for coefficient, each in factors:
                total += coefficient * delta(each, start, stop)
            yield Part(module, start * math.prod(shape[1:]), total.reshape(-1))


def delta_specs(found: AdapterSet, dtype: str) -> dict[str, TensorSpec]:
    """Return, by module, the tensor that its whole difference is."""
    return {
        module: TensorSpec(name=weight_name(module), dtype=dtype, shape=found.shape(module))
        for module in found.modules
    }


def others(found: AdapterSet) -> Iterator[tuple[str, Float64Array]]:
    """Yield the tensors that are saved whole, averaged among the adapters that have them."""
    for name, spec in found.others.items():
        having = [i for i, adapter in enumerate(found.adapters) if name in adapter.others]
        whole = sum(found.weights[i] for i in having)
        total = np.zeros(spec.shape)
        for i in having:
            total += (found.weights[i] / whole if whole else 1 / len(having)) * found.adapters[i].other(name)
        yield name, total
