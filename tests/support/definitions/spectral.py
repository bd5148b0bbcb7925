"""Strategies that decompose matrices, as their papers say; numpy.linalg decides, so only nearly equal."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from . import differences
from .course import Course, flat, is_matrix, mean


def star(m: Course):
    eta, scale, out = m.number("eta", "40") / 100, m.number("lambda", "1"), {}
    for name in m.names:
        deltas = m.deltas(name)
        if is_matrix(name, deltas[0]):
            cut = []
            for delta in deltas:
                u, s, vt = np.linalg.svd(flat(delta), full_matrices=False)
                total = s.sum()
                if total == 0:
                    cut.append(delta)
                    continue
                r = min(len(s), int(np.searchsorted(np.cumsum(s), eta * total)) + 1)
                cut.append(((u[:, :r] * (s[:r] * total / s[:r].sum())) @ vt[:r]).reshape(delta.shape))
            deltas = cut
        out[name] = m.base[name] + scale * mean(deltas, m.weights)
    return out


def svd_knot_tying(m: Course):
    tied, bases = [{} for _ in m.models], {}
    eps, out = m.number("eps_rank", "1e-5"), {}
    for name in m.names:
        deltas = m.deltas(name)
        if not is_matrix(name, deltas[0]):
            change = mean(deltas, m.weights) if m.text("others", "base") == "average" else 0.0
            out[name] = m.base[name] + change
            continue
        side_by_side = np.concatenate([flat(d) for d in deltas], axis=1)
        u, s, vt = np.linalg.svd(side_by_side, full_matrices=False)
        kept = s > (eps * s[0] if m.text("eps_rule", "absolute") == "relative" else eps)
        bases[name] = u[:, kept]
        for i, part in enumerate(np.split(vt[kept] * s[kept, None], len(deltas), axis=1)):
            tied[i][name] = part
    strategy = m.text("inner", "ties")
    zero = {name: np.zeros_like(x) for name, x in tied[0].items()}
    if not zero:
        return out
    inner = m.inner(strategy, models=tied, base=zero)
    merged = differences.ties(inner) if strategy == "ties" else differences.dare_ties(inner)
    for name, u in bases.items():
        change = (u @ merged[name]).reshape(m.base[name].shape)
        out[name] = m.base[name] + m.number("lambda", "1") * change
    return out


def dual_projection(m: Course):
    """The minimum of the loss, by least squares on the whole system; the shortest way from the mean."""
    share, out = m.number("svd_epsilon", "1"), {}
    weights = np.array(m.weights) / sum(m.weights)
    for name in m.names:
        values = [x[name] for x in m.models]
        start = mean(values, m.weights)
        if not is_matrix(name, start):
            out[name] = start
            continue
        rows, columns = flat(start).shape
        left, right = np.zeros((rows, rows)), np.zeros((columns, columns))
        wanted = np.zeros((rows, columns))
        for w, x in zip(weights, values, strict=True):
            u, s, vt = np.linalg.svd(flat(x - m.base[name]), full_matrices=False)
            ratio = np.cumsum(s) / s.sum() if s.sum() else np.ones(len(s))
            r = int(np.searchsorted(ratio, share)) + (m.text("rank_rule", "full") == "full")
            r = len(s) if share == 1 and m.text("rank_rule", "full") == "full" else r
            a = w * (u[:, :r] * s[:r] ** 2) @ u[:, :r].T
            b = w * (vt[:r].T * s[:r] ** 2) @ vt[:r]
            left, right = left + a, right + b
            wanted += a @ flat(x) + flat(x) @ b
        system = np.kron(left, np.eye(columns)) + np.kron(np.eye(rows), right)
        missing = wanted - left @ flat(start) - flat(start) @ right
        step = np.linalg.lstsq(system, missing.ravel(), rcond=1e-10)[0]
        out[name] = start + step.reshape(start.shape)
    return out


def svd_truncated_ta(m: Course):
    text, out = m.text("ratio", "auto"), {}
    share = Fraction(1, len(m.models)) if text == "auto" else Fraction(text)
    for name in m.names:
        values = [x[name] for x in m.models]
        origin = m.base[name] if m.text("origin", "base") == "base" else mean(values, m.weights)
        total = np.zeros(origin.shape)
        for w, x in zip(m.weights, values, strict=True):
            delta = x - origin
            if is_matrix(name, delta):
                u, s, vt = np.linalg.svd(flat(delta), full_matrices=False)
                r = max(1, math.floor(share * len(s))) if share else 0
                delta = ((u[:, :r] * s[:r]) @ vt[:r]).reshape(delta.shape)
            total = total + w * delta
        out[name] = origin + m.number("lambda", "1") * total
    return out


def safe_merge(m: Course):
    """Artefact ``role``: one per model."""
    roles = m.artefacts["role"]

    def of(role, name):
        mine = [(w, x[name]) for w, x, r in zip(m.weights, m.models, roles, strict=True) if r == role]
        return mean([x for _, x in mine], [w for w, _ in mine])

    out = {}
    for name in m.names:
        base, tuned = m.base[name], of("finetuned", name)
        out[name] = tuned
        if not is_matrix(name, base):
            continue
        span = flat(of("aligned", name) - of("unaligned", name))
        change = flat(tuned - base)
        image = span @ (span.T @ change)
        length = math.sqrt((image**2).sum()) * math.sqrt((change**2).sum())
        cosine = round((image * change).sum() / length, 5) if length else 1.0
        if cosine < m.number("threshold", "0.35"):
            safety = of("safety", name) - base
            out[name] = base + (
                m.number("weight_finetuned", "0.8") * (tuned - base)
                + m.number("weight_safety", "0.2") * safety
            )
    return out
