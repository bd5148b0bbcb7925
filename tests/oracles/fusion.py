"""Merges that fusion_bench knows: TIES of whole models, EMR, RegMean, Fisher, KnOTS, DOP, and means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.strategies.artefacts import Artefact
from crdt_merge_protocol.strategies.reference import ArtefactArrays, digest_of, merge_arrays

from .asking import ask
from .cases import K, tolerance_in
from .drawing import DRAWS, DTYPES, Array
from .methods import name_of, told

WEIGHT = "layer.weight"
SHAPES = ((6, 8), (30, 20), (40, 64))
SHAPES_IN_BF16 = ((6, 8), (10, 7))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One merge of one matrix."""

    id: str
    method: str
    said: Mapping[str, Any]
    """For their side."""
    strategy: str
    params: Mapping[str, str]
    inputs: Sequence[Array]
    """Differences from a base of zeros, or models."""
    weights: Sequence[str] | None = None
    extra: Sequence[Array] = ()
    dtype: str
    has_base: bool = True
    tolerance: float
    task: int | None = None
    header: Mapping[str, Any] = field(default_factory=dict)
    artefact: str = ""


def compare(seed: int) -> tuple[list[str], str]:
    """Return what does not agree, and lines that say how well the rest does."""
    cases = list(all_cases(np.random.default_rng(seed)))
    said = [
        {"id": case.id, "method": case.method, "k": len(case.inputs), "dtype": case.dtype, **case.said}
        for case in cases
    ]
    arrays = {}
    for case in cases:
        arrays |= {f"{case.id}/{i}": values for i, values in enumerate(case.inputs)}
        arrays |= {f"{case.id}/e{i}": values for i, values in enumerate(case.extra)}
    theirs = ask("fusion_bench", "fusion_side.py", said, arrays)
    problems = []
    gaps: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        ours = _ours(case)
        gap = float(np.abs(ours - theirs[case.id]).max() / np.abs(ours).max())
        gaps[name_of(case.method, case.strategy)][case.dtype].append(gap)
        if not gap <= case.tolerance:
            problems.append(f"fusion_bench {case.id}: {gap:.3g} apart, {case.tolerance:.1g} allowed")
    return problems, told("fusion_bench", gaps)


def all_cases(rng: np.random.Generator) -> Iterator[Case]:
    for dtype in DTYPES:
        for shape in SHAPES_IN_BF16 if dtype == "bf16" else SHAPES:
            for k in K:
                draw = DRAWS["apart" if dtype == "bf16" else "fine"]
                base, models = draw(rng, shape, k)
                taus = [model - base for model in models]
                name = f"{'x'.join(map(str, shape))}-{k}-{dtype}"
                yield from _plain_cases(name, taus, dtype)
                yield from _data_cases(rng, name, taus, dtype)
                if dtype != "bf16":  # torch decomposes and inverts no matrices of bf16.
                    yield from _spectral_cases(rng, name, taus, dtype)
    yield from _dop_cases(rng)


def _plain_cases(name: str, taus: Sequence[Array], dtype: str) -> Iterator[Case]:
    yield Case(
        id=f"mean-{name}", method="simple_average", said={}, strategy="weight_average", params={},
        inputs=taus, has_base=False, dtype=dtype, tolerance=tolerance_in(dtype, 1e-12),
    )  # fmt: skip
    if len(taus) == 2:
        yield Case(
            id=f"slerp-{name}", method="slerp", said={"t": 0.3}, strategy="slerp",
            params={"profile": "mergekit"}, weights=("0.7", "0.3"), inputs=taus, has_base=False,
            dtype=dtype, tolerance=tolerance_in(dtype, 1e-9),
        )  # fmt: skip
    for func in ("mean", "sum", "max"):
        for percent in (20, 60):
            yield Case(
                id=f"ties-{name}-{func}-{percent}",
                method="ties",
                said={"percent": percent, "func": f"dis-{func}"},
                strategy="ties",
                params={"density": f"{percent / 100:g}", "merge_func": func},
                inputs=taus,
                dtype=dtype,
                tolerance=tolerance_in(dtype, 1e-6),  # Their counts are f32.
            )
    for task in range(len(taus)):
        yield Case(
            id=f"emr-{name}-{task}", method="emr", said={"task": task}, strategy="emr_merging",
            params={"rescale_scope": "tensor_means"}, inputs=taus, task=task, dtype=dtype,
            tolerance=tolerance_in(dtype, 1e-6),
        )  # fmt: skip


def _data_cases(rng: np.random.Generator, name: str, models: Sequence[Array], dtype: str) -> Iterator[Case]:
    fishers = [rng.integers(1, 9, model.shape) / 4.0 for model in models]
    for is_normalised in (False, True):
        yield Case(
            id=f"fisher-{name}-{'norm' if is_normalised else 'plain'}",
            method="fisher",
            said={"normalize": is_normalised},
            strategy="fisher_merge",
            params={"normalize": "model_l2" if is_normalised else "none"},
            inputs=models,
            extra=fishers,
            has_base=False,
            dtype=dtype,
            # Normalised, the floor is added before by them and after by us: 1e-6 against a norm of about 10.
            tolerance=tolerance_in(dtype, 1e-4 if is_normalised else 1e-6),
            artefact="fisher_diag",
            header={"n_samples": 1, "label_mode": "sampled"},
        )


def _spectral_cases(
    rng: np.random.Generator, name: str, models: Sequence[Array], dtype: str
) -> Iterator[Case]:
    width = models[0].shape[1]
    grams = []
    for _ in models:
        inputs = rng.standard_normal((3 * width, width)) + 0.3
        grams.append((inputs.T @ inputs / len(inputs)).astype(np.float32).astype(float))
    grams = [np.tril(gram) + np.tril(gram, -1).T for gram in grams]
    for a in ("1", "0.9", "0.1", "0"):
        # Their 0.9 is f32; in f32 the inverse costs as many digits as the condition has.
        yield Case(
            id=f"regmean-{name}-{a}", method="regmean", said={"a": float(a)}, strategy="regmean",
            params={"a": a, "gram_norm": "none", "ridge": "0"}, inputs=models, extra=grams, has_base=False,
            dtype=dtype, tolerance=1e-3 if dtype == "f32" else 1e-9 if a in "01" else 1e-7,
            artefact="gram", header={"n_tokens": 3 * width, "inputs": {WEIGHT: "g"}},
        )  # fmt: skip
    taus = [rng.standard_normal(model.shape).astype(np.float32).astype(float) for model in models]
    yield Case(
        id=f"knots-{name}", method="knots", said={"percent": 20}, strategy="svd_knot_tying",
        params={"inner": "ties", "inner.density": "0.2", "eps_rank": "0.0001"},
        # They decompose in f64 and elect in f32, where an election may turn: wide enough to see it by eye.
        inputs=taus, dtype=dtype, tolerance=1e-8 if dtype == "f64" else 1e-4,
    )  # fmt: skip


def _dop_cases(rng: np.random.Generator) -> Iterator[Case]:
    """Yield pairs that their optimiser follows to the minimum, which we compute; well-conditioned ones.

    Adam goes on in steps of up to its rate there: one of six pairs ended 2e-4 off. scipy finds the minimum.
    """
    for number in range(2):
        taus = [np.eye(5, 6) + 0.2 * rng.standard_normal((5, 6)) for _ in range(2)]
        taus.sort(key=lambda tau: digest_of({WEIGHT: tau}, Fraction(1)))  # The steps begin with the first.
        yield Case(
            id=f"dop-{number}", method="dop", said={}, strategy="dual_projection",
            params={"rank_rule": "official", "svd_epsilon": "0.9"}, inputs=taus, dtype="f64", tolerance=2e-3,
        )  # fmt: skip
        yield Case(
            id=f"dop-steps-{number}", method="dop_steps", said={}, strategy="dual_projection",
            params={"mode": "adam", "rank_rule": "official", "svd_epsilon": "0.9"}, inputs=taus, dtype="f64",
            tolerance=1e-9,
        )  # fmt: skip


def _ours(case: Case) -> Array:
    inputs = [{WEIGHT: values} for values in case.inputs]
    digests = [digest_of(model, 1) for model in inputs]  # type: ignore[arg-type]  # a whole number is one
    found = merge_arrays(
        case.strategy,
        inputs,
        {WEIGHT: np.zeros_like(case.inputs[0])} if case.has_base else None,
        case.params,
        weights=case.weights,
        digests=digests,
        artefacts=[_artefact(case, d, extra) for d, extra in zip(digests, case.extra, strict=False)],
        task=None if case.task is None else digests[case.task],
    )
    return found.tensors[WEIGHT]


def _artefact(case: Case, subject: bytes, values: Array) -> ArtefactArrays:
    if case.artefact == "gram":
        return gram_artefact(subject, values, case.header["n_tokens"])
    return _made(case.artefact, subject, case.header, WEIGHT, values.astype(np.float32))


def gram_artefact(subject: bytes, gram: Array, tokens: int) -> ArtefactArrays:
    """Return a Gram matrix of the inputs of the one layer as a contribution's artefact."""
    lower = gram[np.tril_indices(len(gram))].astype(np.float32)
    return _made("gram", subject, {"n_tokens": tokens, "inputs": {WEIGHT: "g"}}, "g", lower)


def _made(
    type_: str, subject: bytes, fields: Mapping[str, Any], name: str, values: npt.NDArray[np.float32]
) -> ArtefactArrays:
    header = {"artefact": f"{type_}/1", "subject": subject.hex(), **fields}
    spec = TensorSpec(name=name, dtype="F32", shape=values.shape)
    made = Artefact(digest=digest("test/artefact", subject), type=type_, header=header, specs=(spec,))
    return ArtefactArrays(made, {name: values})
