"""Merges whose answer mergekit knows as well: said in its words and in ours, in three element types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

import numpy as np
from crdt_merge_protocol.strategies.randomness import stream_key, uniform
from crdt_merge_protocol.strategies.reference import digest_of

from .drawing import DRAWS, DTYPES, Array

SHAPES: Final = ((6, 8), (8,), (4, 3, 3, 3), (60, 50))
SHAPES_IN_BF16: Final = ((6, 9), (9,), (4, 3, 3, 3))
"""So few elements that eight bits give each a magnitude of its own; rows of 9 have ranks that bf16 holds."""
K: Final = (2, 3, 4, 5)
TENSOR: Final = "tensor"
SEED: Final = b"\x01" * 32
WEIGHTS: Final = ("0.5", "1.25", "0.75", "1", "2")
_CLEAR: Final[Mapping[str, float]] = {"f64": 1e-9, "f32": 1e-4, "bf16": 0.04}
"""Least relative gap at a threshold that is computed from several models."""
_STRETCH_MAX: Final = 3
"""By how much rescaling may lengthen a model of bf16."""


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
    lambdas: Sequence[str] = ()
    """Coefficients for an artefact of ours, where theirs are weights."""
    is_random: bool = False
    dtype: str
    tolerance: float
    """Greatest difference, relative to the greatest element, or to each if ``is_elementwise``."""
    is_elementwise: bool = False


@dataclass(frozen=True, slots=True)
class _Method:
    """One method with the words of both sides."""

    theirs: str
    ours: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    k: Sequence[int] = K
    has_base: bool = True
    has_weights: bool = True
    is_random: bool = False
    tolerance: float = 1e-9
    """In f64."""
    bf16: str = "coarse"
    """How inputs of eight bits are drawn; none: no two implementations agree on any."""
    in_bf16: Mapping[str, str] = field(default_factory=dict)
    """Parameters that bf16 holds."""


_MERGEKIT = {"profile": "mergekit"}
_HALF = {"density": "0.5"}
_WINDOW = {"density": "0.5", "epsilon": "0.125"}
METHODS: Final = (
    _Method("linear", "linear", {"normalize": True}, has_base=False),
    _Method("linear", "weight_average", {"normalize": True}, has_base=False),
    _Method("linear", "linear", {"normalize": False}, {"normalize": "false"}, has_base=False),
    _Method("task_arithmetic", "task_arithmetic", {"normalize": False, "lambda": 0.5}, {"lambda": "0.5"}),
    _Method("task_arithmetic", "task_arithmetic", {"normalize": True}, {"normalize": "true"}),
    _Method("task_arithmetic", "ada_merging", {"normalize": False}, {"lambda_max": "2"}),
    _Method(
        "ties", "ties", {"density": 0.4, "normalize": True}, {"density": "0.4", **_MERGEKIT}, bf16="apart"
    ),
    _Method(
        "ties", "ties", {"density": 0.75, "normalize": False},
        {"density": "0.75", "normalize": "false", **_MERGEKIT}, bf16="apart",
    ),
    _Method(
        "dare_linear", "dare", {"density": 0.6, "rescale": True, "normalize": False},
        {"density": "0.6", **_MERGEKIT}, is_random=True, tolerance=1e-6, bf16="apart", in_bf16=_HALF,
    ),
    _Method(
        "dare_linear", "dare", {"density": 0.6, "rescale": False, "normalize": True},
        {"density": "0.6", "rescale": "none", "normalize": "true", **_MERGEKIT},
        is_random=True, tolerance=1e-6, bf16="apart", in_bf16=_HALF,
    ),
    _Method(
        "dare_ties", "dare_ties", {"density": 0.6, "rescale": True, "normalize": False},
        {"density": "0.6", **_MERGEKIT}, is_random=True, tolerance=1e-6, bf16="apart", in_bf16=_HALF,
    ),
    _Method(
        "della", "della", {"density": 0.6, "epsilon": 0.15, "normalize": True},
        {"density": "0.6", "epsilon": "0.15", **_MERGEKIT},
        is_random=True, tolerance=1e-6, bf16="apart", in_bf16=_WINDOW,
    ),
    _Method(
        "della_linear", "della_linear", {"density": 0.6, "epsilon": 0.15, "normalize": False},
        {"density": "0.6", "epsilon": "0.15", **_MERGEKIT},
        is_random=True, tolerance=1e-6, bf16="apart", in_bf16=_WINDOW,
    ),
    _Method(
        "breadcrumbs", "model_breadcrumbs", {"density": 0.5, "gamma": 0.125, "normalize": False},
        {"density": "0.5", "gamma": "0.125", **_MERGEKIT}, bf16="apart",
    ),
    _Method(
        "breadcrumbs_ties", "breadcrumbs_ties", {"density": 0.5, "gamma": 0.125, "normalize": False},
        {"density": "0.5", "gamma": "0.125", **_MERGEKIT}, bf16="apart",
    ),
    _Method("model_stock", "model_stock", has_weights=False, bf16="near"),
    _Method(
        "sce", "sce", {"select_topk": 0.5}, {"select_topk": "0.5", **_MERGEKIT},
        has_weights=False, bf16="apart",
    ),
    _Method("karcher", "karcher", has_base=False, has_weights=False, tolerance=1e-4, bf16="near"),
    _Method("karcher", "slerp", k=K[1:], has_base=False, has_weights=False, tolerance=1e-4, bf16="near"),
    _Method("multislerp", "multislerp", has_base=False, tolerance=1e-6),
    _Method("nuslerp", "nuslerp", k=(2,), has_base=False, tolerance=1e-8, bf16="near"),
    _Method("nearswap", "nearswap", {"t": 0.5}, {"t": "0.5"}, k=(1,), has_weights=False),
    _Method("arcee_fusion", "arcee_fusion", k=(1,), has_weights=False, bf16=""),
    _Method("ram", "ram", has_weights=False),
    _Method("ramplus_tl", "ramplus_tl", {"r": 0.5}, {"r": "0.5"}, has_weights=False),
)  # fmt: skip
"""``k`` counts our inputs: one where theirs are a base and a model. nuslerp takes no more than two."""


def all_cases(seed: int) -> Iterator[Case]:
    """Yield every case, with elements drawn from ``seed``."""
    rng = np.random.default_rng(seed)
    for dtype in DTYPES:
        for shape in SHAPES_IN_BF16 if dtype == "bf16" else SHAPES:
            for number, method in enumerate(METHODS):
                # They rank along the second axis, whatever the shape; we rank rows, along the last.
                if (dtype == "bf16" and not method.bf16) or ("della" in method.ours and len(shape) > 2):
                    continue
                for k in method.k:
                    case = _make(rng, method, number, shape=shape, k=k, dtype=dtype)
                    while not _is_clear(case):
                        case = _make(rng, method, number, shape=shape, k=k, dtype=dtype)
                    yield case
            for t in ("0.3", "0.5"):
                yield _slerp(rng, shape, t, dtype)


def _make(
    rng: np.random.Generator, method: _Method, number: int, *, shape: tuple[int, ...], k: int, dtype: str
) -> Case:
    draw = method.bf16 if dtype == "bf16" else "fine"
    base, inputs = DRAWS[draw](rng, shape, k)
    parameters, params = dict(method.parameters), dict(method.params)
    if dtype == "bf16":
        parameters |= {name: float(text) for name, text in method.in_bf16.items()}
        params |= method.in_bf16
    weights = WEIGHTS[:k] if method.has_weights else None
    if weights is not None:
        parameters["weight"] = [float(weight) for weight in weights]
    is_learnt = method.ours == "ada_merging"
    return Case(
        id=f"{number}-{method.theirs}-{'x'.join(map(str, shape))}-{k}-{dtype}",
        method=method.theirs,
        parameters=parameters,
        strategy=method.ours,
        params=params,
        inputs=inputs,
        base=base if method.has_base else None,
        weights=None if is_learnt else weights,
        lambdas=weights or () if is_learnt else (),
        is_random=method.is_random,
        dtype=dtype,
        tolerance=tolerance_in(dtype, method.tolerance) * (2 if draw == "apart" else 1),
        is_elementwise=draw == "apart",
    )


def tolerance_in(dtype: str, in_f64: float) -> float:
    """Return how far apart two merges may be of which one rounds every step to an element type."""
    return {"f64": in_f64, "f32": max(in_f64, 64 * 2.0**-24), "bf16": 4 * 2.0**-8}[dtype]


def _is_clear(case: Case) -> bool:
    """Tell whether no decision of a merge is a close one: SCE's threshold, and elections in bf16.

    Rescaling to the former sum of magnitudes may make one model much larger than it was drawn.
    """
    if case.strategy == "sce":
        variances = np.sort(np.var([model - case.base for model in case.inputs], axis=0).reshape(-1))
        first = variances.size - np.count_nonzero(variances) // 2
        return bool(variances[first] - variances[first - 1] > _CLEAR[case.dtype] * variances[first])
    if case.dtype != "bf16":
        return True
    surely = float(_WINDOW["density"]) - float(_WINDOW["epsilon"])
    magnitudes = [np.abs(model) for model in case.inputs]
    return all(
        sizes[uniforms < surely].sum() > sizes.sum() / _STRETCH_MAX
        for sizes, uniforms in zip(magnitudes, uniforms_of(case), strict=False)
    )


def _slerp(rng: np.random.Generator, shape: tuple[int, ...], t: str, dtype: str) -> Case:
    _, inputs = DRAWS["near" if dtype == "bf16" else "fine"](rng, shape, 2)
    return Case(
        id=f"slerp-{'x'.join(map(str, shape))}-{t}-{dtype}",
        method="slerp",
        parameters={"t": float(t)},
        strategy="slerp",
        params={"profile": "mergekit"},
        inputs=inputs,
        base=None,
        base_is_input=True,
        weights=(f"{1 - float(t):g}", t),
        dtype=dtype,
        tolerance=tolerance_in(dtype, 1e-9),
    )


def uniforms_of(case: Case) -> list[Array]:
    """Return what our masks compare with, one array per input in the order given; none without masks."""
    if not case.is_random:
        return []
    weights = [Fraction(w) for w in case.weights or ["1"] * len(case.inputs)]
    drawn = []
    for values, weight in zip(case.inputs, weights, strict=True):
        name = digest_of({TENSOR: values}, weight)
        key = stream_key(SEED, case.strategy, TENSOR, name, "mask")
        drawn.append(uniform(key, 0, values.size).reshape(values.shape))
    return drawn
