"""DoRA: an adapter with the length of every output besides its factors, made into a model of its base.

``W' = m (W + s B A) / |W + s B A|``, lengths taken over everything but the outputs (Liu et al., DoRA: Weight-
Decomposed Low-Rank Adaptation, ICML 2024, arXiv:2402.09353). What it changes depends on the base, so it is no
contribution of a group of adapters; the model that it makes is one of a group of models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from crdt_merge_protocol.adapters import weight_name
from crdt_merge_protocol.errors import ParameterError, ShapeMismatchError
from crdt_merge_protocol.strategies.contract import Float64Array

from crdt_merge_node.resolve.job import TensorSource

from .adapter import Adapter, read_array
from .factors import Part, delta
from .files import AdapterFile
from .writing import BaseModel


def differences(file: AdapterFile, adapter: Adapter, base: BaseModel) -> Iterator[Part]:
    """Yield what each module's weight changes by, in the order of the modules: all of it, for its lengths.

    Args:
        file: Of the adapter, with its magnitudes.
        adapter: Its factors.
        base: Has all modules, in their shapes.

    Raises:
        ParameterError: A module has no magnitudes, magnitudes have no module, or an output has no length, so
            no direction.
        ShapeMismatchError: A module has more or fewer magnitudes than outputs.
        StorageError: Something cannot be read.
    """
    if unpaired := sorted(file.magnitudes.keys() ^ adapter.pairs.keys()):
        raise ParameterError(
            f"{file.path}: {unpaired[0]} has either factors or magnitudes; DoRA needs both.",
            hint="Save it again with save_pretrained.",
        )
    for module in adapter.pairs:
        name = weight_name(module)
        weight = read_array(base.fs, base.sources[name], base.specs[name], base.origin)
        changed = weight + delta(adapter.factors(module))
        # The outputs are what B counts: the last axis of what is stored input first.
        axis = changed.ndim - 1 if adapter.is_transposed(module) else 0
        others = tuple(i for i in range(changed.ndim) if i != axis)
        lengths = np.sqrt(np.sum(changed * changed, axis=others, keepdims=True))
        if not lengths.all():
            raise ParameterError(f"{file.path}: an output of {module} is zero, so it has no direction.")
        changed *= _magnitudes(file, adapter, module, lengths.shape) / lengths
        yield Part(module, 0, (changed - weight).reshape(-1))


def _magnitudes(file: AdapterFile, adapter: Adapter, module: str, shape: tuple[int, ...]) -> Float64Array:
    entry = file.magnitudes[module]
    if math.prod(entry.spec.shape) != math.prod(shape):
        raise ShapeMismatchError(
            f"{file.path}: {entry.spec.name} has {math.prod(entry.spec.shape)} elements for "
            f"{math.prod(shape)} outputs."
        )
    source = TensorSource(str(entry.path), entry.begin, entry.end - entry.begin)
    return read_array(adapter.fs, source, entry.spec, str(file.path)).reshape(shape)
