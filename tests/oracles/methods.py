"""Every method that mergekit has, in f64, f32 and bf16; where it draws a mask, from our uniforms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.strategies.artefacts import Artefact
from crdt_merge_protocol.strategies.reference import ArtefactArrays, digest_of, merge_arrays

from .asking import ask
from .cases import SEED, TENSOR, Array, Case, all_cases, uniforms_of
from .drawing import DTYPES


def compare(seed: int) -> tuple[list[str], str]:
    """Return what does not agree, and lines that say how well the rest does."""
    cases = list(all_cases(seed))
    theirs = _ask(cases)
    problems: list[str] = []
    gaps: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        ours = merged_by_us(case)
        gap = _gap(case, ours, theirs[case.id].reshape(ours.shape))
        gaps[case.method, case.strategy][case.dtype].append(gap)
        if not gap <= case.tolerance:
            problems.append(f"mergekit {case.id}: {gap:.3g} apart, {case.tolerance:.1g} allowed")
    return problems, told("mergekit", {name_of(*names): found for names, found in sorted(gaps.items())})


def told(whom: str, gaps: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Return a line per method: how many cases were asked, and the worst in every element type."""
    lines = []
    for name, found in gaps.items():
        worst = ", ".join(f"{max(found[dtype]):.1e} in {dtype}" for dtype in DTYPES if dtype in found)
        lines.append(f"  {whom:12} {name:32} {sum(map(len, found.values())):4} cases, the worst {worst}")
    return "\n".join(lines)


def name_of(theirs: str, ours: str) -> str:
    """Return the name of a method, and ours if it is another."""
    return theirs if theirs == ours else f"{theirs} = {ours}"


def _gap(case: Case, ours: Array, theirs: Array) -> float:
    """Return how far apart two outputs are, relative to the greatest element or to each."""
    if not case.is_elementwise:
        return float(np.abs(ours - theirs).max()) / max(float(np.abs(ours).max()), 1e-300)
    return float((np.abs(ours - theirs) / np.maximum(np.abs(ours), 1e-300)).max())


def merged_by_us(case: Case) -> Array:
    """Return our merge."""
    found = merge_arrays(
        case.strategy,
        [{TENSOR: values} for values in case.inputs],
        None if case.base is None else {TENSOR: case.base},
        case.params,
        weights=case.weights,
        seed=SEED,
        is_strict=True,
        artefacts=_artefacts(case),
    )
    return found.tensors[TENSOR]


def _artefacts(case: Case) -> Iterable[ArtefactArrays]:
    """Return the coefficients of a case as a table of AdaMerging, if it has any."""
    if not case.lambdas:
        return ()
    names = [digest_of({TENSOR: values}, Fraction(1)) for values in case.inputs]
    order = sorted(range(len(names)), key=lambda i: names[i])
    header = {
        "artefact": "lambda_table/1",
        "set_root": used_root(names).hex(),
        "contributions": [names[i].hex() for i in order],
        "rows": [{"match": "*", "lambda": [case.lambdas[i] for i in order]}],
    }
    made = Artefact(digest=digest("test/lambdas"), type="lambda_table", header=header, specs=())
    return [ArtefactArrays(made, {})]


def _ask(cases: list[Case]) -> dict[str, Array]:
    request: dict[str, Array] = {}
    said = []
    for case in cases:
        base = [] if case.base is None else [case.base]
        for number, values in enumerate([*base, *case.inputs]):
            request[f"{case.id}/{number}"] = values
        uniforms = uniforms_of(case)
        for number, values in enumerate(uniforms):
            request[f"{case.id}/u{number}"] = values
        said.append(
            {
                "id": case.id,
                "method": case.method,
                "parameters": dict(case.parameters),
                "base_index": 0 if base or case.base_is_input else None,
                "tensors": len(base) + len(case.inputs),
                "uniforms": len(uniforms),
                "dtype": case.dtype,
            }
        )
    return ask("mergekit", "mergekit_side.py", said, request)
