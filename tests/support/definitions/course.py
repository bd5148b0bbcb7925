"""What a definition of a strategy is handed: models in memory, and random numbers by their own derivation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Course:
    """One merge. Models, weights and digests stand in the order of the digests."""

    models: Sequence[Arrays]
    """float64."""
    weights: Sequence[float]
    digests: Sequence[bytes]
    base: Arrays | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    """Texts; every parameter without a fixed place is read with its published default."""
    seed: bytes = b""
    strategy: str = ""
    """Whose random numbers: those of an inner strategy are drawn under its own name."""
    artefacts: Mapping[str, Any] = field(default_factory=dict)
    """By type: one per model in their order, or one for all."""

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in byte order."""
        return sorted(self.models[0], key=str.encode)

    @property
    def is_mergekit(self) -> bool:
        """Follow mergekit."""
        return self.params.get("profile") == "mergekit"

    def text(self, name: str, default: str, mergekit: str | None = None) -> str:
        """Return a parameter."""
        other = default if mergekit is None or not self.is_mergekit else mergekit
        return str(self.params.get(name, other))

    def number(self, name: str, default: str, mergekit: str | None = None) -> float:
        """Return a parameter as a number."""
        return float(self.text(name, default, mergekit))

    def share(self, name: str, default: str, mergekit: str | None = None) -> Fraction:
        """Return a parameter as an exact share."""
        return Fraction(self.text(name, default, mergekit))

    def says(self, name: str, default: str, mergekit: str | None = None) -> bool:
        """Return a parameter that is true or false."""
        return self.text(name, default, mergekit) == "true"

    def deltas(self, name: str) -> list[np.ndarray]:
        """Return the differences from the base of one tensor."""
        return [model[name] - self.base[name] for model in self.models]

    def inner(self, strategy: str, **changes: Any) -> Course:
        """Return the course of an inner strategy: its parameters stand after ``inner.``."""
        own = {k.removeprefix("inner."): v for k, v in self.params.items() if k.startswith("inner.")}
        return replace(self, **{"strategy": strategy, "params": own, **changes})

    def uniform(self, tensor: str, model: int, purpose: str = "mask") -> np.ndarray:
        """Return the random numbers of a tensor of a model, in its shape."""
        shape = self.models[model][tensor].shape
        fields = (
            b"crdt-merge-node/rng/1", self.seed, self.strategy.encode(), tensor.encode(),
            self.digests[model], purpose.encode(),
        )  # fmt: skip
        text = b"".join(len(part).to_bytes(8, "little") + part for part in fields)
        key = np.frombuffer(hashlib.sha256(text).digest()[:16], "<u8")
        raw = np.random.Philox(key=key, counter=[0, 0, 0, 0]).random_raw(math.prod(shape))
        return ((raw >> np.uint64(11)) * 2.0**-53).reshape(shape)


def mean(values: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Return a weighted mean."""
    return sum(w * x for w, x in zip(weights, values, strict=True)) / sum(weights)


def is_matrix(name: str, values: np.ndarray) -> bool:
    """Tell whether a tensor is a layer's matrix: two axes or more, and no embedding by its name."""
    return values.ndim >= 2 and values.size > 0 and "embed" not in name and "lm_head" not in name


def flat(values: np.ndarray) -> np.ndarray:
    """Return a tensor of two axes or more as a matrix [out, everything else]."""
    return values.reshape(values.shape[0], math.prod(values.shape[1:]))


def largest(magnitudes: np.ndarray, count: int) -> np.ndarray:
    """Return which are the ``count`` largest, the earlier of equal ones first: flat, True or False."""
    values = magnitudes.reshape(-1).tolist()
    order = sorted(range(len(values)), key=lambda at: (-values[at], at))
    found = np.zeros(len(values), bool)
    found[order[:count]] = True
    return found
