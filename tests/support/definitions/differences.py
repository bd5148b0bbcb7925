"""Strategies on differences from a base, element by element, as their papers say."""

from __future__ import annotations

import math

import numpy as np

from .course import Course, flat, largest, mean


def task_arithmetic(m: Course):
    scale = {"auto": 0.3 if len(m.models) >= 4 else 1.0}.get(m.text("lambda", "1"))
    scale = m.number("lambda", "1") if scale is None else scale
    total = sum(m.weights) if m.says("normalize", "false") else 1.0
    return {
        name: m.base[name]
        + scale * sum(w * d for w, d in zip(m.weights, m.deltas(name), strict=True)) / total
        for name in m.names
    }


def trimmed(deltas, density, *, over_model, keep_equal, least):
    """Keep the largest magnitudes of one model's differences, by tensor."""
    if density >= 1:
        return deltas
    groups = [list(deltas)] if over_model else [[name] for name in deltas]
    out = {}
    for names in groups:
        values = np.concatenate([np.abs(deltas[name]).ravel() for name in names])
        count = max(least if density or not keep_equal else 0, int(density * values.size))
        if density == 0:
            count = 0
        kept = largest(values, count)
        if keep_equal and values.size and density:
            # As the authors' code and the golden vectors have it: the threshold is the largest that goes.
            kept = values >= np.sort(values)[values.size - int(density * values.size) - 1]
        start = 0
        for name in names:
            part = kept[start : start + deltas[name].size].reshape(deltas[name].shape)
            out[name], start = np.where(part, deltas[name], 0.0), start + deltas[name].size
    return out


def elected(m: Course, deltas, *, scope, func="mean", normalize=True):
    """Elect signs and merge what agrees; ``deltas`` is one mapping of tensors per model."""
    out, votes, k = {}, {}, len(deltas)
    w = m.weights
    for name in m.names:
        values = [d[name] for d in deltas]
        if m.is_mergekit:
            values = [wi * v for wi, v in zip(w, values, strict=True)]
        if m.text("elect", "sum") == "count":
            values = [np.sign(v) for v in values]
        votes[name] = np.sign(sum(values[1:], values[0]))
    majority = {name: np.sign(v.sum()) or 1.0 for name, v in votes.items()}
    if scope == "model":
        whole = np.sign(sum(v.sum() for v in votes.values())) or 1.0
        majority = dict.fromkeys(votes, whole)
    for name in m.names:
        sign = np.where(votes[name] == 0, 1.0 if m.is_mergekit else majority[name], votes[name])
        agree = [(d[name] * sign > 0) for d in deltas]
        if not m.is_mergekit and func == "max":
            out[name] = sign * np.max(
                [np.where(a, np.abs(d[name]), 0) for a, d in zip(agree, deltas, strict=True)], 0
            )
            continue
        up = sum(np.where(agree[i], w[i] * deltas[i][name], 0.0) for i in range(k))
        down = sum(np.where(agree[i], w[i], 0.0) for i in range(k))
        is_divided = normalize if m.is_mergekit else func == "mean"
        out[name] = up / np.where(down == 0, 1.0, down) if is_divided else up
    return out


def _onto(m: Course, change, default="1.0", mergekit=None):
    scale = m.number("lambda", default, mergekit)
    return {name: m.base[name] + scale * change[name] for name in m.names}


def _by_model(m):
    return [{name: x[name] - m.base[name] for name in m.names} for x in m.models]


def ties(m: Course):
    density, scope = m.share("density", "0.2", "1.0"), m.text("scope", "model", "tensor")
    kept = [
        trimmed(d, density, over_model=scope == "model", keep_equal=not m.is_mergekit, least=1)
        for d in _by_model(m)
    ]
    func, normalize = m.text("merge_func", "mean"), m.says("normalize", "true")
    return _onto(m, elected(m, kept, scope=scope, func=func, normalize=normalize))


def _rescaled(kept, whole, density, rule):
    if rule == "none":
        return kept
    if rule == "inverse":
        return kept / float(density)
    before, after = np.abs(whole).sum(), np.abs(kept).sum()
    return kept if before < 1e-7 or after < 1e-7 else kept * (before / after)


def _dropped(m: Course):
    """Return every model's differences with DARE's share of them dropped."""
    density, rule = m.share("density", "0.5", "1.0"), m.text("rescale", "inverse", "l1")
    found = []
    for i, deltas in enumerate(_by_model(m)):
        found.append({})
        for name in m.names:
            whole = deltas[name]
            if density == 1 or whole.size < int(m.text("min_numel", "0")):
                found[-1][name] = whole
            elif density == 0:
                found[-1][name] = 0.0 * whole
            else:
                kept = np.where(m.uniform(name, i) < float(density), whole, 0.0)
                found[-1][name] = _rescaled(kept, whole, density, rule)
    return found


def _summed(m: Course, deltas, default, mergekit=None):
    total = sum(m.weights) if m.says("normalize", default, mergekit) else 1.0
    return {
        name: sum(w * d[name] for w, d in zip(m.weights, deltas, strict=True)) / total for name in m.names
    }


def dare(m: Course):
    return _onto(m, _summed(m, _dropped(m), "true", "false"))


def dare_ties(m: Course):
    density, scope = m.share("ties_density", "1.0"), m.text("scope", "tensor")
    kept = [
        trimmed(d, density, over_model=scope == "model", keep_equal=not m.is_mergekit, least=1)
        for d in _dropped(m)
    ]
    func, normalize = m.text("merge_func", "mean"), m.says("normalize", "false")
    return _onto(m, elected(m, kept, scope=scope, func=func, normalize=normalize))


def _pruned(m: Course):
    """Return every model's differences after MagPrune."""
    density, window = m.share("density", "0.7", "1.0"), m.share("epsilon", "0.07", "0.15")
    rule = m.text("rescale", "per_element", "l1")
    found = []
    for i, deltas in enumerate(_by_model(m)):
        found.append({})
        for name in m.names:
            whole = deltas[name]
            if density in (0, 1) or not whole.size:
                found[-1][name] = whole * float(density)
                continue
            n = whole.shape[-1] if whole.ndim else 1
            rows = np.abs(whole).reshape(-1, n)
            rank = np.empty(rows.shape)
            for row, ranks in zip(rows.tolist(), rank, strict=True):
                for r, at in enumerate(sorted(range(n), key=lambda j: (row[j], j))):
                    ranks[at] = r
            step = float(2 * window) / (n - 1) if n > 1 else 0.0
            keep = float(density - window) + step * rank if n > 1 else np.full(rank.shape, float(density))
            keep = keep.reshape(whole.shape)
            kept = np.where(m.uniform(name, i) < keep, whole, 0.0)
            found[-1][name] = kept / keep if rule == "per_element" else _rescaled(kept, whole, density, rule)
    return found


def della(m: Course):
    scope, func = m.text("scope", "tensor"), m.text("merge_func", "mean")
    change = elected(m, _pruned(m), scope=scope, func=func, normalize=m.says("normalize", "true"))
    return _onto(m, change)


def della_linear(m: Course):
    return _onto(m, _summed(m, _pruned(m), "true", "false"))


def _crumbs(m: Course):
    """Return every model's differences without the largest and the small."""
    density, gamma = m.share("density", "0.2", "1.0"), m.share("gamma", "0.1", "0.01")
    found = []
    for deltas in _by_model(m):
        found.append({})
        for name, whole in deltas.items():
            magnitudes = np.abs(whole)
            if m.is_mergekit:
                n, kept = whole.size, np.ones(whole.size, bool)
                if density < 1:
                    top, wanted = int(gamma * n), int(density * n)
                    top -= max(0, top + wanted - n)
                    kept = largest(magnitudes, top + wanted) & ~largest(magnitudes, top)
                kept = kept.reshape(whole.shape)
            elif whole.ndim == 0:
                kept = True
            else:
                rows = flat(magnitudes) if whole.ndim >= 2 else magnitudes.reshape(1, -1)
                top, wanted = int(gamma * rows.shape[1]), int(density * rows.shape[1])
                kept = np.array([largest(r, top + wanted) & ~largest(r, top) for r in rows], bool)
                kept = kept.reshape(whole.shape)
            found[-1][name] = np.where(kept, whole, 0.0)
    return found


def model_breadcrumbs(m: Course):
    return _onto(m, _summed(m, _crumbs(m), "false"), "0.4", "1.0")


def breadcrumbs_ties(m: Course):
    scope, func = m.text("scope", "tensor"), m.text("merge_func", "mean")
    return _onto(m, elected(m, _crumbs(m), scope=scope, func=func, normalize=m.says("normalize", "false")))


def emr_merging(m: Course, task=None):
    """Return the common model, or that of one task."""
    unified, masks = {}, [{} for _ in m.models]
    for name in m.names:
        deltas = m.deltas(name)
        sign = np.where(sum(d for w, d in zip(m.weights, deltas, strict=True) if w) > 0, 1.0, -1.0)
        agreeing = [
            np.where(d * sign > 0, np.abs(d), 0.0) for w, d in zip(m.weights, deltas, strict=True) if w
        ]
        unified[name] = sign * np.max(agreeing, 0) if m.models[0][name].size else deltas[0]
        for i, delta in enumerate(deltas):
            masks[i][name] = delta * unified[name] > 0
    if task is None:
        return {name: m.base[name] + unified[name] for name in m.names}
    is_mean = m.text("rescale_scope", "elements") == "tensor_means"

    def total(values):
        return sum(v.mean() if is_mean else v.sum() for v in values if v.size)

    deltas = {name: m.models[task][name] - m.base[name] for name in m.names}
    up = total([np.abs(d) for d in deltas.values()])
    down = total([np.abs(masks[task][name] * unified[name]) for name in m.names])
    gamma = up / down if down else 0.0
    return {name: m.base[name] + gamma * masks[task][name] * unified[name] for name in m.names}


def negative_merge(m: Course):
    need = math.ceil(m.share("consensus", "1") * len(m.models))
    out = {}
    for name in m.names:
        deltas = m.deltas(name)
        change = np.zeros(deltas[0].shape)
        for place in np.ndindex(change.shape):
            column = [float(d[place]) for d in deltas]
            for side in (1, -1):
                agreeing = [i for i, x in enumerate(column) if x * side > 0]
                others = [i for i, x in enumerate(column) if x * side < 0]
                if len(agreeing) >= need and len(agreeing) > len(others):
                    up = math.fsum(m.weights[i] * column[i] for i in agreeing)
                    change[place] = up / math.fsum(m.weights[i] for i in agreeing)
        out[name] = m.base[name] - m.number("lambda", "") * change
    return out


def sce(m: Course):
    topk, out = m.share("select_topk", "0.1", "1.0"), {}
    for name in m.names:
        deltas = np.array(m.deltas(name))
        if topk < 1:
            variance = deltas.var(0)
            kept = largest(variance, int(topk * int((variance > 0).sum()))).reshape(variance.shape)
            deltas = np.where(kept & (variance > 0), deltas, 0.0)
        weights = (deltas**2).reshape(len(deltas), -1).mean(1) if deltas[0].size else np.ones(len(deltas))
        weights = weights / weights.sum() if weights.sum() >= 1e-6 else np.full(len(deltas), 1 / len(deltas))
        weights = weights * m.weights
        sign = np.where(deltas.sum(0) >= 0, 1.0, -1.0)
        agree = np.where(np.sign(deltas) == sign, 1.0, 0.0) * weights.reshape(-1, *([1] * (deltas.ndim - 1)))
        down = agree.sum(0)
        out[name] = m.base[name] + (agree * deltas).sum(0) / np.maximum(down, 1e-6)
    return out


def ram(m: Course):
    return _ram(m, None)


def ramplus_tl(m: Course):
    return _ram(m, (m.number("r", "0.1"), m.number("alpha", "0.2")))


def _ram(m: Course, plus):
    epsilon, out = m.number("epsilon", "1e-5"), {}
    for name in m.names:
        deltas = m.deltas(name)
        changed = [np.abs(d) > epsilon for d in deltas]
        count = sum(c.astype(float) for c in changed)
        up, down = np.zeros(deltas[0].shape), np.zeros(deltas[0].shape)
        for w, d, c in zip(m.weights, deltas, changed, strict=True):
            alone, shared = c & (count == 1), c & (count > 1)
            factor = 1.0
            if plus is not None:
                r, alpha = plus
                ratio = shared.sum() / alone.sum() if alone.sum() else 0.0
                factor = 1 + r * min(max(ratio, 0.0), alpha)
            up += w * np.where(shared, d, 0.0) + w * factor * np.where(alone, d, 0.0)
            down += np.where(c, w, 0.0)
        out[name] = m.base[name] + up / np.where(down == 0, 1.0, down)
    return out


def nearswap(m: Course):
    t, out = m.number("t", "1e-4"), {}
    for name in m.names:
        moves = [np.clip(t / np.maximum(np.abs(d), 1e-6), 0, 1) * d for d in m.deltas(name)]
        out[name] = m.base[name] + mean(moves, m.weights)
    return out


def arcee_fusion(m: Course):
    out = {}
    for name in m.names:
        base = m.base[name]
        moves = []
        for model in m.models:
            x, b = model[name], base
            if not x.size:
                moves.append(x)
                continue

            def softmax(v):
                rows = v.reshape(-1, v.shape[-1] if v.ndim else 1)
                e = np.exp(rows - rows.max(1, keepdims=True))
                return e / e.sum(1, keepdims=True) + 1e-8

            p, q = softmax(x), softmax(b)
            divergence = (p * np.log(p / q)).sum(1, keepdims=True)
            importance = (np.abs(x - b).reshape(p.shape) * divergence).ravel()
            ordered = np.sort(importance)

            def quantile(q):
                return ordered[math.floor(q * (len(ordered) - 1))]  # noqa: B023 - used at once

            threshold = quantile(0.5) + 1.5 * (quantile(0.75) - quantile(0.25))
            moves.append(np.where((importance >= threshold).reshape(x.shape), x - b, 0.0))
        out[name] = base + mean(moves, m.weights)
    return out
