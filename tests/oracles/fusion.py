"""Merges that fusion_bench knows and mergekit does not: TIES of whole models, EMR, RegMean, Fisher, KnOTS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.strategies.artefacts import Artefact
from crdt_merge_protocol.strategies.reference import ArtefactArrays, digest_of, merge_arrays

from .asking import ask

Array = npt.NDArray[np.float64]
WEIGHT = "layer.weight"


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
    extra: Sequence[Array] = ()
    has_base: bool = True
    tolerance: float
    task: int | None = None
    header: Mapping[str, Any] = field(default_factory=dict)
    artefact: str = ""


def compare(seed: int) -> tuple[list[str], str]:
    """Return what does not agree, and lines that say how well the rest does."""
    cases = list(_cases(np.random.default_rng(seed)))
    said = [{"id": case.id, "method": case.method, "k": len(case.inputs), **case.said} for case in cases]
    arrays = {}
    for case in cases:
        arrays |= {f"{case.id}/{i}": values for i, values in enumerate(case.inputs)}
        arrays |= {f"{case.id}/e{i}": values for i, values in enumerate(case.extra)}
    theirs = ask("fusion_bench", "fusion_side.py", said, arrays)
    problems = []
    worst: dict[str, list[float]] = {}
    for case in cases:
        ours = _ours(case)
        gap = float(np.abs(ours - theirs[case.id]).max() / np.abs(ours).max())
        worst.setdefault(case.method, []).append(gap)
        if not gap <= case.tolerance:
            problems.append(f"fusion_bench {case.id}: {gap:.3g} apart, {case.tolerance:.1g} allowed")
    lines = [
        f"  fusion   {m:18} {len(gaps):4} cases asked, the worst {max(gaps):.2g} apart"
        for m, gaps in worst.items()
    ]
    return problems, "\n".join(lines)


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape in ((6, 8), (30, 20), (40, 64)):
        for k in (2, 3, 5):
            name = f"{'x'.join(map(str, shape))}-{k}"
            taus = _differences(rng, shape, k)
            yield from _ties_cases(name, taus)
            for task in range(k):
                yield Case(
                    id=f"emr-{name}-{task}", method="emr", said={"task": task}, strategy="emr_merging",
                    params={"rescale_scope": "tensor_means"}, inputs=taus, tolerance=1e-6, task=task,
                )  # fmt: skip
            yield from _data_cases(rng, name, taus)
            yield Case(
                id=f"knots-{name}", method="knots", said={"percent": 20}, strategy="svd_knot_tying",
                params={"inner": "ties", "inner.density": "0.2", "eps_rank": "0.0001"},
                inputs=[rng.standard_normal(shape) for _ in range(k)], tolerance=1e-8,
            )  # fmt: skip


def _ties_cases(name: str, taus: Sequence[Array]) -> Iterator[Case]:
    for func in ("mean", "sum", "max"):
        for percent in (20, 60):
            yield Case(
                id=f"ties-{name}-{func}-{percent}",
                method="ties",
                said={"percent": percent, "func": f"dis-{func}"},
                strategy="ties",
                params={"density": f"{percent / 100:g}", "merge_func": func},
                inputs=taus,
                tolerance=1e-6,  # Their counts are f32.
            )


def _data_cases(rng: np.random.Generator, name: str, models: Sequence[Array]) -> Iterator[Case]:
    width = models[0].shape[1]
    grams = []
    for _ in models:
        inputs = rng.standard_normal((3 * width, width)) + 0.3
        grams.append((inputs.T @ inputs / len(inputs)).astype(np.float32).astype(float))
    grams = [np.tril(gram) + np.tril(gram, -1).T for gram in grams]
    for a in ("1", "0.9", "0.1", "0"):
        yield Case(
            id=f"regmean-{name}-{a}",
            method="regmean",
            said={"a": float(a)},
            strategy="regmean",
            params={"a": a, "gram_norm": "none", "ridge": "0"},
            inputs=models,
            extra=grams,
            has_base=False,
            tolerance=1e-9 if a in "01" else 1e-7,  # Their 0.9 is f32.
            artefact="gram",
            header={"n_tokens": 3 * width, "inputs": {WEIGHT: "g"}},
        )
    fishers = [rng.uniform(0, 2, model.shape).astype(np.float32).astype(float) for model in models]
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
            # Normalised, the floor is added before by them and after by us: 1e-6 against a norm of about 10.
            tolerance=1e-4 if is_normalised else 1e-6,
            artefact="fisher_diag",
            header={"n_samples": 1, "label_mode": "sampled"},
        )


def _differences(rng: np.random.Generator, shape: tuple[int, ...], k: int) -> list[Array]:
    size = int(np.prod(shape))
    return [
        (rng.choice([-1, 1], size) * (rng.permutation(4 * size)[:size] + 1) / 4096).reshape(shape)
        for _ in range(k)
    ]


def _ours(case: Case) -> Array:
    inputs = [{WEIGHT: values} for values in case.inputs]
    digests = [digest_of(model, 1) for model in inputs]  # type: ignore[arg-type]  # a whole number is one
    found = merge_arrays(
        case.strategy,
        inputs,
        {WEIGHT: np.zeros_like(case.inputs[0])} if case.has_base else None,
        case.params,
        digests=digests,
        artefacts=[_artefact(case, d, extra) for d, extra in zip(digests, case.extra, strict=False)],
        task=None if case.task is None else digests[case.task],
    )
    return found.tensors[WEIGHT]


def _artefact(case: Case, subject: bytes, values: Array) -> ArtefactArrays:
    if case.artefact == "gram":
        name, array = "g", values[np.tril_indices(len(values))].astype(np.float32)
    else:
        name, array = WEIGHT, values.astype(np.float32)
    header = {"artefact": f"{case.artefact}/1", "subject": subject.hex(), **case.header}
    spec = TensorSpec(name=name, dtype="F32", shape=array.shape)
    made = Artefact(digest=digest("test/artefact", subject), type=case.artefact, header=header, specs=(spec,))
    return ArtefactArrays(made, {name: array})
