"""Adapters that are merged together: one base, canonical order, no duplicates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.errors import EmptySetError, ParameterError, ShapeMismatchError
from crdt_merge_protocol.limits import WEIGHT_ONE
from crdt_merge_protocol.strategies.contract import Block, Float64Array, MergeContext, exact_weights
from crdt_merge_protocol.strategies.registry import get

from crdt_merge_node.ports import Fs
from crdt_merge_node.resolve import describe_file

from .adapter import WEIGHTS, Adapter, read_adapter
from .factors import delta


@dataclass(frozen=True, slots=True)
class AdapterSet:
    """Adapters of one base, in canonical order, without duplicates."""

    adapters: tuple[Adapter, ...]
    digests: tuple[bytes, ...]
    weights: tuple[int, ...]
    modules: tuple[str, ...]
    """All that some adapter changes, in byte order."""

    def having(self, module: str) -> list[int]:
        """Return the positions of the adapters that change a module."""
        return [i for i, adapter in enumerate(self.adapters) if module in adapter.pairs]


def read_set(paths: Sequence[Path], weights: Sequence[int] | None, fs: Fs) -> AdapterSet:
    """Return the adapters in these directories, with weights over 2^32.

    Raises:
        EmptySetError: There are none.
        ParameterError, ShapeMismatchError: They cannot be merged with one another.
        StorageError, MalformedTensorFileError: A file cannot be read.
    """
    if not paths:
        raise EmptySetError("There are no adapters, hence nothing to merge.", hint="Name one at least.")
    given = [WEIGHT_ONE] * len(paths) if weights is None else list(weights)
    if len(given) != len(paths):
        raise ParameterError(f"{len(given)} weights for {len(paths)} adapters.", hint="Give one per adapter.")
    named: dict[bytes, tuple[Adapter, int]] = {}
    for path, weight in zip(paths, given, strict=True):
        adapter = read_adapter(path, fs)
        content = describe_file(path / WEIGHTS, weight=weight).manifest.content
        scales = json.dumps([adapter.scale(module) for module in adapter.pairs])
        named[digest("crdt-merge/adapter/1", content, scales.encode(), str(weight).encode())] = (
            adapter,
            weight,
        )
    ordered = sorted(named)
    adapters = tuple(named[name][0] for name in ordered)
    bases = sorted({adapter.base_name for adapter in adapters})
    if len(bases) > 1:
        raise ParameterError(
            f"The adapters are of different bases: {', '.join(base or 'unnamed' for base in bases)}.",
            hint="Differences from different models cannot be added.",
        )
    modules = sorted({module for adapter in adapters for module in adapter.pairs}, key=str.encode)
    found = AdapterSet(adapters, tuple(ordered), tuple(named[name][1] for name in ordered), tuple(modules))
    for module in modules:
        shapes = {adapters[i].factors(module).shape for i in found.having(module)}
        if len(shapes) > 1:
            raise ShapeMismatchError(f"Module {module} has shapes {', '.join(map(str, sorted(shapes)))}.")
    return found


def linear_sums(
    found: AdapterSet, strategy: str, params: Mapping[str, str]
) -> dict[str, list[tuple[int, float]]]:
    """Return, by module, which adapters a linear strategy adds up and with which coefficients.

    It is asked to merge unit vectors, one per adapter: the result holds the coefficients, tables and all.
    """
    recipe, k = get(strategy), len(found.adapters)
    specs = tuple(TensorSpec(name=f"{module}.weight", dtype="F64", shape=(k,)) for module in found.modules)
    context = MergeContext(
        strategy=recipe.id,
        params=recipe.validate(params),
        weights=exact_weights(found.weights),
        digests=found.digests,
        has_base=recipe.base != "unused",
        seed=b"",
        specs=specs,
        is_strict=True,
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


def products(
    found: AdapterSet, sums: Mapping[str, Sequence[tuple[int, float]]]
) -> Iterator[tuple[str, Float64Array]]:
    """Yield each module's merged difference in the shape of its weight."""
    for module, parts in sums.items():
        total = np.zeros(found.adapters[parts[0][0]].factors(module).shape)
        for i, coefficient in parts:
            total += coefficient * delta(found.adapters[i].factors(module))
        yield module, total


def delta_specs(found: AdapterSet, dtype: str) -> dict[str, TensorSpec]:
    """Return, by module, the tensor that its whole difference is."""
    specs = {}
    for module in found.modules:
        shape = found.adapters[found.having(module)[0]].factors(module).shape
        specs[module] = TensorSpec(name=f"{module}.weight", dtype=dtype, shape=shape)
    return specs


def others(found: AdapterSet) -> Iterator[tuple[str, Float64Array]]:
    """Yield the tensors that are saved whole, averaged among the adapters that have them.

    Raises:
        ShapeMismatchError: Two adapters have one in different shapes.
    """
    for name in sorted({name for adapter in found.adapters for name in adapter.others}, key=str.encode):
        having = [i for i, adapter in enumerate(found.adapters) if name in adapter.others]
        shapes = {found.adapters[i].others[name].spec.shape for i in having}
        if len(shapes) > 1:
            raise ShapeMismatchError(f"Tensor {name} has shapes {', '.join(map(str, sorted(shapes)))}.")
        whole = sum(found.weights[i] for i in having)
        total = np.zeros(found.adapters[having[0]].others[name].spec.shape)
        for i in having:
            total += (found.weights[i] / whole if whole else 1 / len(having)) * found.adapters[i].other(name)
        yield name, total
