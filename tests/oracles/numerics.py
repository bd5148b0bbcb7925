"""Decompositions, equations and statistics that scipy knows: the spectral strategies and the robust ones.

The definitions stand in ``numerics_side.py`` once more, written out with library calls.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.strategies.artefacts import Artefact
from crdt_merge_protocol.strategies.reference import ArtefactArrays, merge_arrays

from .asking import ask
from .cases import WEIGHTS, K
from .drawing import DTYPES, Array, rounded
from .fusion import WEIGHT, gram_artefact
from .methods import told

SHAPES = ((6, 8), (20, 20), (40, 24))
MASK = (1, 0, 1, 1, 0)
"""Of singular components, repeated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One merge of one matrix."""

    id: str
    method: str
    dtype: str
    strategy: str
    params: Mapping[str, str] = field(default_factory=dict)
    inputs: Sequence[Array]
    """Models, or differences from a base of zeros."""
    weights: Sequence[str] | None = None
    said: Mapping[str, Any] = field(default_factory=dict)
    """For their side."""
    extra: Sequence[Array] = ()
    has_base: bool = True
    artefacts: Sequence[ArtefactArrays] = ()
    tolerance: float = 1e-10
    """In f64; relative to the greatest element."""


def compare(seed: int) -> tuple[list[str], str]:
    """Return what does not agree, and lines that say how well the rest does."""
    cases = list(all_cases(np.random.default_rng(seed)))
    said, arrays = [], {}
    for case in cases:
        said.append(
            {
                "id": case.id,
                "method": case.method,
                "dtype": case.dtype,
                "k": len(case.inputs),
                "extra": len(case.extra),
                **case.said,
            }
        )
        arrays |= {f"{case.id}/{i}": values for i, values in enumerate(case.inputs)}
        arrays |= {f"{case.id}/e{i}": values for i, values in enumerate(case.extra)}
    theirs = ask("scipy", "numerics_side.py", said, arrays)
    problems = []
    gaps: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        ours = _ours(case)
        gap = float(np.abs(ours - theirs[case.id]).max() / np.abs(ours).max())
        gaps[case.method][case.dtype].append(gap)
        # Singular vectors of close values turn by much more than the rounding of a matrix.
        allowed = max(case.tolerance, 1e-3) if case.dtype == "f32" else case.tolerance
        if not gap <= allowed:
            problems.append(f"scipy {case.id}: {gap:.3g} apart, {allowed:.1g} allowed")
    return problems, told("scipy", gaps)


def all_cases(rng: np.random.Generator) -> Iterator[Case]:
    for dtype in DTYPES:
        for shape in SHAPES:
            for k in K:
                models = [rounded(rng.standard_normal(shape), dtype) for _ in range(k)]
                yield from _spectral(rng, models, dtype)
                yield from _robust(rng, models, dtype)


def _spectral(rng: np.random.Generator, models: list[Array], dtype: str) -> Iterator[Case]:
    k, shape = len(models), models[0].shape
    name = f"{'x'.join(map(str, shape))}-{k}-{dtype}"
    weights = WEIGHTS[:k]
    as_numbers = {"weights": [float(weight) for weight in weights]}
    yield Case(
        id=f"dual-{name}", method="solve_sylvester = dual_projection", dtype=dtype,
        strategy="dual_projection", inputs=models, weights=weights, said=as_numbers, tolerance=1e-8,
    )  # fmt: skip
    yield Case(
        id=f"star-{name}", method="svd = star", dtype=dtype, strategy="star", params={"eta": "55"},
        inputs=models, weights=weights, said={**as_numbers, "eta": 55},
    )  # fmt: skip
    yield Case(
        id=f"truncated-{name}", method="svd = svd_truncated_ta", dtype=dtype, strategy="svd_truncated_ta",
        inputs=models, said={"numerator": 1, "denominator": k},
    )  # fmt: skip
    digests = [bytes([i + 1]) * 32 for i in range(k)]
    masks = [np.resize(np.roll(MASK, i), min(shape)).astype(float) for i in range(k)]
    lambdas = [f"0.{i + 3}" for i in range(k)]
    yield Case(
        id=f"adarank-{name}", method="svd = adarank", dtype=dtype, strategy="adarank", inputs=models,
        extra=masks, said={"lambdas": [float(text) for text in lambdas]},
        artefacts=[_rank_masks(digests, masks, lambdas)],
    )  # fmt: skip
    width = shape[1]
    grams = []
    for _ in models:
        samples = rng.integers(-64, 65, (3 * width, width)) / 64
        grams.append(samples.T @ samples)  # Exact in f32: sums of few multiples of 2^-12.
    yield Case(
        id=f"regmean-{name}", method="solve = regmean", dtype=dtype, strategy="regmean",
        params={"a": "0.75", "gram_norm": "none", "ridge": "0"}, inputs=models, extra=grams,
        said={"a": 0.75}, has_base=False, tolerance=1e-9,
        artefacts=[gram_artefact(d, g, 3 * width) for d, g in zip(digests, grams, strict=True)],
    )  # fmt: skip
    if k == 2:
        yield Case(
            id=f"slerp-{name}", method="geometric_slerp = slerp", dtype=dtype, strategy="slerp",
            inputs=models, weights=("0.7", "0.3"), said={"t": 0.3}, has_base=False,
        )  # fmt: skip


def _robust(rng: np.random.Generator, models: list[Array], dtype: str) -> Iterator[Case]:
    k, name = len(models), f"{'x'.join(map(str, models[0].shape))}-{len(models)}-{dtype}"
    yield Case(
        id=f"median-{name}", method="quantile = coordinate_median", dtype=dtype,
        strategy="coordinate_median", inputs=models, has_base=False,
    )  # fmt: skip
    if k > 2:
        yield Case(
            id=f"geometric-{name}", method="minimize = geometric_median", dtype=dtype,
            strategy="geometric_median", inputs=models, has_base=False, tolerance=1e-5,
        )  # fmt: skip
        yield Case(
            id=f"trimmed-{name}", method="trim_mean = trimmed_mean", dtype=dtype, strategy="trimmed_mean",
            params={"f": "1"}, said={"f": 1}, inputs=models, has_base=False,
        )  # fmt: skip
    if k >= 5:  # Krum bears one liar among five.
        centre = rounded(rng.standard_normal(models[0].shape), dtype)
        lengths = [0.125 * 2.0**i for i in range(k)]  # No two scores are alike.
        spread = [rounded(centre + step * x, dtype) for step, x in zip(lengths, models, strict=True)]
        for strategy, m in (("krum", 1), ("multi_krum", 0)):
            yield Case(
                id=f"{strategy}-{name}", method=f"cdist = {strategy}", dtype=dtype, strategy=strategy,
                params={"f": "1"}, said={"f": 1, "m": m}, inputs=spread, has_base=False,
            )  # fmt: skip


def _rank_masks(digests: list[bytes], masks: list[Array], lambdas: list[str]) -> ArtefactArrays:
    header = {
        "artefact": "rank_masks/1",
        "set_root": used_root(digests).hex(),
        "contributions": [each.hex() for each in digests],
        "rows": [{"match": "*", "lambda": lambdas}],
        "origin": "base",
    }
    tensors = {f"{i}/{WEIGHT}": mask.astype(np.float32) for i, mask in enumerate(masks)}
    specs = tuple(TensorSpec(name=name, dtype="F32", shape=values.shape) for name, values in tensors.items())
    made = Artefact(digest=digest("test/masks"), type="rank_masks", header=header, specs=specs)
    return ArtefactArrays(made, tensors)


def _ours(case: Case) -> Array:
    found = merge_arrays(
        case.strategy,
        [{WEIGHT: values} for values in case.inputs],
        {WEIGHT: np.zeros_like(case.inputs[0])} if case.has_base else None,
        case.params,
        weights=case.weights,
        digests=[bytes([i + 1]) * 32 for i in range(len(case.inputs))],
        artefacts=case.artefacts,
    )
    return found.tensors[WEIGHT]
