"""The published formulas over whole matrices in float64 by ``np.linalg``: what is fast and fixes no bits.

Rivals for what needs products, systems and decompositions, with the artefacts and defaults of ours. A test
holds them to ours, so that both are known to do the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from crdt_merge_protocol.strategies.artefact_fields import row_of

from . import naive

if TYPE_CHECKING:  # A benchmark does without the tests' own path.
    from support.synthetic import Case

Array = npt.NDArray[np.float64]
Merged = dict[str, npt.NDArray[Any]]
"""By tensor."""
_A, _RIDGE = 0.9, 1e-8
"""RegMean: what is kept off the diagonal, and the pull towards the average."""
_ETA = 0.4
"""STAR: the share of the sum of the singular values that is kept."""
_LEAST, _DENSITY = 1e-5, 0.2
"""KnOTS: smaller singular values are none; what TIES keeps."""


def regmean(case: Case) -> Merged:
    """One system per layer, of the sum of all Gram matrices."""
    merged = {}
    for name, models in _models(case):
        systems = []
        for item in case.artefacts:
            half = np.zeros((models[0].shape[1],) * 2)
            half[np.tril_indices(len(half))] = item.tensors[f"{name}.in"]
            whole = _A * (half + half.T)
            np.fill_diagonal(whole, np.diagonal(half))
            systems.append(whole / len(models))
        system = np.sum(systems, axis=0)
        pull = _RIDGE * np.trace(system) / len(system)
        right = pull * np.mean(models, axis=0).T
        for gram, model in zip(systems, models, strict=True):
            right += gram @ model.T
        merged[name] = np.linalg.solve(system + pull * np.eye(len(system)), right).T
    return merged


def dual_projection(case: Case) -> Merged:
    """One Sylvester equation per matrix, in the eigenvectors of both its sides."""
    merged = {}
    for name, deltas in _deltas(case):
        left = np.mean([delta @ delta.T for delta in deltas], axis=0)
        right = np.mean([delta.T @ delta for delta in deltas], axis=0)
        pull = np.mean([2 * delta @ (delta.T @ delta) for delta in deltas], axis=0)
        (a, p), (b, q) = np.linalg.eigh(left), np.linalg.eigh(right)
        merged[name] = case.base[name] + p @ ((p.T @ pull @ q) / (a[:, None] + b)) @ q.T
    return merged


def star(case: Case) -> Merged:
    """One decomposition per model: cut, scale, average."""
    merged = {}
    for name, deltas in _deltas(case):
        total = np.zeros(deltas[0].shape)
        for delta in deltas:
            u, s, vt = np.linalg.svd(delta, full_matrices=False)
            rank = int(np.searchsorted(np.cumsum(s), _ETA * s.sum())) + 1
            total += (u[:, :rank] * (s[:rank] * s.sum() / s[:rank].sum())) @ vt[:rank]
        merged[name] = case.base[name] + total / len(deltas)
    return merged


def adarank(case: Case) -> Merged:
    """One decomposition per model, of which masks keep a part."""
    (item,) = case.artefacts
    rows = item.artefact.header["rows"]
    merged = {}
    for name, deltas in _deltas(case):
        row = row_of(rows, name)
        assert row is not None
        total = np.zeros(deltas[0].shape)
        for i, (delta, share) in enumerate(zip(deltas, row["lambda"], strict=True)):
            u, s, vt = np.linalg.svd(delta, full_matrices=False)
            kept = item.tensors[f"{i}/{name}"].astype(bool)
            total += float(share) * ((u[:, kept] * s[kept]) @ vt[kept])
        merged[name] = case.base[name] + total
    return merged


def svd_knot_tying(case: Case) -> Merged:
    """One decomposition of all models side by side, and naive TIES over the coordinates."""
    directions, parts = {}, {}
    for name, deltas in _deltas(case):
        u, s, vt = np.linalg.svd(np.concatenate(deltas, axis=1), full_matrices=False)
        rank = int(np.count_nonzero(s > _LEAST))
        directions[name] = u[:, :rank]
        parts[name] = np.split(s[:rank, None] * vt[:rank], len(deltas), axis=1)
    flat = [np.concatenate([part[i].reshape(-1) for part in parts.values()]) for i in range(len(case.models))]
    density = (int(_DENSITY * flat[0].size) + 1.5) / flat[0].size  # As the paper's top K are counted by ours.
    rest = naive.ties(flat, np.zeros_like(flat[0]), density)
    merged = {}
    for name, (first, *_) in parts.items():
        tied, rest = rest[: first.size].reshape(first.shape), rest[first.size :]
        merged[name] = case.base[name] + directions[name] @ tied
    return merged


def _models(case: Case) -> Iterator[tuple[str, Sequence[Array]]]:
    for name in case.base:
        yield name, [model[name].astype(np.float64) for model in case.models]


def _deltas(case: Case) -> Iterator[tuple[str, Sequence[Array]]]:
    for name, models in _models(case):
        yield name, [model - case.base[name] for model in models]


FORMULAS: Final[Mapping[str, Callable[[Case], Merged]]] = {
    formula.__name__: formula for formula in (regmean, dual_projection, star, adarank, svd_knot_tying)
}
"""By strategy."""
