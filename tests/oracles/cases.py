"""Merges whose answer mergekit knows as well: said in its words and in ours.

Elements are multiples of 2^-12 with distinct magnitudes within a tensor, so that no selection hangs on how
equal ones are ordered (theirs: not at all). Ties are tested elsewhere, against loops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
SHAPES = ((6, 8), (8,), (4, 3, 3, 3), (60, 50))
SEED = b"\x01" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One merge of one tensor."""

    id: str
    method: str
    """Of mergekit."""
    parameters: Mapping[str, Any]
    strategy: str
    params: Mapping[str, str]
    inputs: Sequence[Array]
    base: Array | None
    base_is_input: bool = False
    """slerp: what they call the base is the end at t = 0."""
    weights: Sequence[str] | None = None
    is_random: bool = False
    is_bf16: bool = False
    tolerance: float = 1e-9
    """Greatest relative difference, of the greatest element."""


@dataclass(frozen=True, slots=True)
class _Method:
    """One method with the words of both sides."""

    theirs: str
    ours: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    k: Sequence[int] = (2, 3, 5)
    has_base: bool = True
    has_weights: bool = True
    is_random: bool = False
    tolerance: float = 1e-9


_MERGEKIT = {"profile": "mergekit"}
METHODS = (
    _Method("linear", "linear", {"normalize": True}, has_base=False),
    _Method("linear", "linear", {"normalize": False}, {"normalize": "false"}, has_base=False),
    _Method("task_arithmetic", "task_arithmetic", {"normalize": False, "lambda": 0.5}, {"lambda": "0.5"}),
    _Method("task_arithmetic", "task_arithmetic", {"normalize": True}, {"normalize": "true"}),
    _Method("ties", "ties", {"density": 0.4, "normalize": True}, {"density": "0.4", **_MERGEKIT}),
    _Method(
        "ties", "ties", {"density": 0.75, "normalize": False},
        {"density": "0.75", "normalize": "false", **_MERGEKIT},
    ),
    _Method(
        "dare_linear", "dare", {"density": 0.6, "rescale": True, "normalize": False},
        {"density": "0.6", **_MERGEKIT}, is_random=True, tolerance=1e-6,
    ),
    _Method(
        "dare_linear", "dare", {"density": 0.6, "rescale": False, "normalize": True},
        {"density": "0.6", "rescale": "none", "normalize": "true", **_MERGEKIT},
        is_random=True, tolerance=1e-6,
    ),
    _Method(
        "dare_ties", "dare_ties", {"density": 0.6, "rescale": True, "normalize": False},
        {"density": "0.6", **_MERGEKIT}, is_random=True, tolerance=1e-6,
    ),
    _Method(
        "della", "della", {"density": 0.6, "epsilon": 0.15, "normalize": True},
        {"density": "0.6", "epsilon": "0.15", **_MERGEKIT}, is_random=True, tolerance=1e-6,
    ),
    _Method(
        "della_linear", "della_linear", {"density": 0.6, "epsilon": 0.15, "normalize": False},
        {"density": "0.6", "epsilon": "0.15", **_MERGEKIT}, is_random=True, tolerance=1e-6,
    ),
    _Method(
        "breadcrumbs", "model_breadcrumbs", {"density": 0.5, "gamma": 0.125, "normalize": False},
        {"density": "0.5", "gamma": "0.125", **_MERGEKIT},
    ),
    _Method(
        "breadcrumbs_ties", "breadcrumbs_ties", {"density": 0.5, "gamma": 0.125, "normalize": False},
        {"density": "0.5", "gamma": "0.125", **_MERGEKIT},
    ),
    _Method("model_stock", "model_stock", k=(2, 3, 5), has_weights=False),
    _Method("sce", "sce", {"select_topk": 0.5}, {"select_topk": "0.5", **_MERGEKIT}, has_weights=False),
    _Method("karcher", "karcher", k=(2, 3, 5), has_base=False, has_weights=False, tolerance=1e-4),
    _Method("multislerp", "multislerp", has_base=False, tolerance=1e-6),
    _Method("nuslerp", "nuslerp", k=(2,), has_base=False, tolerance=1e-8),
    _Method("nearswap", "nearswap", {"t": 0.5}, {"t": "0.5"}, k=(1,), has_weights=False),
    _Method("arcee_fusion", "arcee_fusion", k=(1,), has_weights=False),
    _Method("ram", "ram", has_weights=False),
)  # fmt: skip
WEIGHTS = ("0.5", "1.25", "0.75", "1", "2")


def all_cases(seed: int) -> Iterator[Case]:
    """Yield every case, with elements drawn from ``seed``."""
    rng = np.random.default_rng(seed)
    for shape in SHAPES:
        for number, method in enumerate(METHODS):
            for k in method.k:
                for is_bf16 in (False, True):
                    yield _make(rng, method, number, shape=shape, k=k, is_bf16=is_bf16)
        for t in ("0.3", "0.5"):
            yield _slerp(rng, shape, t)


def _make(
    rng: np.random.Generator, method: _Method, number: int, *, shape: tuple[int, ...], k: int, is_bf16: bool
) -> Case:
    base, inputs = _tensors(rng, shape, k, is_bf16)
    parameters = dict(method.parameters)
    weights = WEIGHTS[:k] if method.has_weights else None
    if weights is not None:
        parameters["weight"] = [float(weight) for weight in weights]
    return Case(
        id=f"{number}-{method.theirs}-{'x'.join(map(str, shape))}-{k}{'-bf16' if is_bf16 else ''}",
        method=method.theirs,
        parameters=parameters,
        strategy=method.ours,
        params=method.params,
        inputs=inputs,
        base=base if method.has_base else None,
        weights=weights,
        is_random=method.is_random,
        is_bf16=is_bf16,
        # They round intermediate results to bf16 (8 bits); ours are rounded once.
        tolerance=4 * 2.0**-8 if is_bf16 else method.tolerance,
    )


def _slerp(rng: np.random.Generator, shape: tuple[int, ...], t: str) -> Case:
    _, inputs = _tensors(rng, shape, 2, is_bf16=False)
    return Case(
        id=f"slerp-{'x'.join(map(str, shape))}-{t}",
        method="slerp",
        parameters={"t": float(t)},
        strategy="slerp",
        params={"profile": "mergekit"},
        inputs=inputs,
        base=None,
        base_is_input=True,
        weights=(f"{1 - float(t):g}", t),
    )


def _tensors(
    rng: np.random.Generator, shape: tuple[int, ...], k: int, is_bf16: bool
) -> tuple[Array, list[Array]]:
    """Return a base and k models; differences from the base have distinct magnitudes."""
    size = int(np.prod(shape))
    if is_bf16:  # Values and differences that bf16 holds exactly: few bits, so magnitudes repeat.
        base = rng.integers(-8, 9, size) / 8
        return base.reshape(shape), [
            (base + rng.choice([-1, 1], size) * rng.integers(1, 9, size) / 16).reshape(shape)
            for _ in range(k)
        ]
    base = rng.integers(-4096, 4097, size) / 4096
    inputs = []
    for _ in range(k):
        magnitudes = (rng.permutation(4 * size)[:size] + 1) / 4096
        inputs.append((base + rng.choice([-1, 1], size) * magnitudes).reshape(shape))
    return base.reshape(shape), inputs
