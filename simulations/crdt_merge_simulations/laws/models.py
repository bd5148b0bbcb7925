"""The models that are merged: tensors of a size drawn from a seed, and how far apart two of them are.

Each is the common base plus a change of its own, both standard normal, so that changes are as large as what
they change: a gap says what the operator does, not how small fine-tuning steps are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Final

import numpy as np
import numpy.typing as npt
from crdt_merge_node.errors import ConfigError
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.strategies.dtypes import encode_block
from crdt_merge_protocol.strategies.reference import MergedArrays

Array = npt.NDArray[np.float32]
Model = Mapping[str, Array]

CHECKPOINT: Final = "checkpoint"
SIDE_MAX: Final = 4096
ROUNDING: Final = 1e-6
"""Relative distance up to which two float32 models differ by rounding only: a few units in the last place."""
_VOCABULARY, _HIDDEN, _POSITIONS, _LAYERS, _INNER = 30_522, 128, 512, 2, 512


@dataclass(frozen=True, slots=True)
class Size:
    """Names and shapes of the tensors of a model."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def numel(self) -> int:
        """Number of elements of all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def size_of(text: str) -> Size:
    """Return the size that a text names: ``checkpoint``, or rows and columns of one matrix, ``128x128``.

    Raises:
        ConfigError: It is neither.
    """
    if text == CHECKPOINT:
        return Size(text, _bert_tiny())
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if match is None or max(map(int, match.groups())) > SIDE_MAX:
        raise ConfigError(
            f"There is no size {text!r}.", hint=f"Sizes are {CHECKPOINT}, or 128x128, at most {SIDE_MAX}."
        )
    return Size(text, {"weight": (int(match[1]), int(match[2]))})


def _bert_tiny() -> dict[str, tuple[int, ...]]:
    """Return the tensors of BERT-tiny, 4.4 M parameters (Turc et al., arXiv:1908.08962)."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (_HIDDEN,)

    for kind, rows in (("word", _VOCABULARY), ("position", _POSITIONS), ("token_type", 2)):
        shapes[f"bert.embeddings.{kind}_embeddings.weight"] = (rows, _HIDDEN)
    norm("bert.embeddings.LayerNorm")
    for layer in range(_LAYERS):
        at = f"bert.encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{at}.attention.{part}", _HIDDEN, _HIDDEN)
        norm(f"{at}.attention.output.LayerNorm")
        linear(f"{at}.intermediate.dense", _INNER, _HIDDEN)
        linear(f"{at}.output.dense", _HIDDEN, _INNER)
        norm(f"{at}.output.LayerNorm")
    linear("bert.pooler.dense", _HIDDEN, _HIDDEN)
    return shapes


class Models:
    """The base and the contributions of one size and seed. Drawn when they are first asked for, and kept."""

    def __init__(self, size: Size, seed: int) -> None:
        self.size = size
        self._seed = seed
        self._made: dict[int, Model] = {}

    @cached_property
    def base(self) -> Model:
        """What all of them were changed from."""
        return self._normal(0)

    def __getitem__(self, number: int) -> Model:
        """Return a contribution, float32 by tensor name."""
        if number not in self._made:
            change = self._normal(number + 1)
            self._made[number] = {name: values + change[name] for name, values in self.base.items()}
        return self._made[number]

    def _normal(self, number: int) -> Model:
        rng = np.random.default_rng([self._seed, number])
        return {
            name: rng.standard_normal(shape, dtype=np.float32) for name, shape in self.size.shapes.items()
        }


def specs_of(model: Model) -> tuple[TensorSpec, ...]:
    """Return the specs of float32 tensors in byte order of their names."""
    return tuple(
        TensorSpec(name=name, dtype="F32", shape=model[name].shape) for name in sorted(model, key=str.encode)
    )


def rounded(merged: MergedArrays) -> Model:
    """Return a merge as the float32 that a node would write.

    Raises:
        ResolveError: A value is not finite or too large.
    """
    return {
        name: np.frombuffer(encode_block("F32", values.reshape(-1)), "<f4").reshape(values.shape)
        for name, values in merged.tensors.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """How far apart two models are that should be equal."""

    relative: float
    """L2 distance over the greater of the two L2 norms."""
    max_abs: float
    """Greatest difference of two elements."""
    is_bitwise: bool
    """Whether all bytes are equal. A zero of another sign is another byte at distance zero."""

    @property
    def verdict(self) -> str:
        """``exact``, ``rounding`` or ``broken``."""
        if self.is_bitwise:
            return "exact"
        return "rounding" if self.relative <= ROUNDING else "broken"


def gap(one: Model, other: Model) -> Gap:
    """Return how far apart two models of equal names and shapes are."""
    squares, norms, largest, is_bitwise = 0.0, [0.0, 0.0], 0.0, True
    for name, left in one.items():
        right = other[name]
        is_bitwise = is_bitwise and left.tobytes() == right.tobytes()
        difference = left.astype(np.float64) - right
        squares += float((difference**2).sum())
        norms[0] += float((left.astype(np.float64) ** 2).sum())
        norms[1] += float((right.astype(np.float64) ** 2).sum())
        largest = max(largest, float(np.abs(difference).max(initial=0.0)))
    relative = math.sqrt(squares / max(norms)) if squares else 0.0
    return Gap(relative=relative, max_abs=largest, is_bitwise=is_bitwise)


def widest(models: Sequence[Model]) -> Gap:
    """Return the greatest distances over all pairs."""
    gaps = [gap(one, other) for one, other in combinations(models, 2)]
    return Gap(
        relative=max(found.relative for found in gaps),
        max_abs=max(found.max_abs for found in gaps),
        is_bitwise=all(found.is_bitwise for found in gaps),
    )
