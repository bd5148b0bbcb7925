"""Aggregators that bear liars, as their papers say."""

from __future__ import annotations

import math

import numpy as np

from .course import Course, mean


def _vector(m, model, names):
    return np.concatenate([model[name].ravel() for name in names])


def _groups(m, scope):
    return [m.names] if scope == "model" else [[name] for name in m.names]


def _unpack(m, names, values):
    out, start = {}, 0
    for name in names:
        shape = m.models[0][name].shape
        size = math.prod(shape)
        out[name], start = values[start : start + size].reshape(shape), start + size
    return out


def coordinate_median(m: Course):
    out = {}
    for name in m.names:
        stack = np.array([x[name] for x in m.models])
        result = np.empty(stack.shape[1:])
        for place in np.ndindex(result.shape):
            pairs = sorted(zip(stack[(slice(None), *place)].tolist(), m.weights, strict=True))
            half, below = sum(m.weights) / 2, 0.0
            for at, (value, weight) in enumerate(pairs):
                below += weight
                if below > half:
                    result[place] = value
                    break
                if below == half:
                    after = next(v for v, w in pairs[at + 1 :] if w)
                    result[place] = (value + after) / 2
                    break
        out[name] = result
    return out


def trimmed_mean(m: Course):
    k, text, out = len(m.models), m.text("f", "1"), {}
    f = (k - 1) // 2 if text == "auto" else int(text)
    for name in m.names:
        stack = np.array([x[name] for x in m.models])
        result = np.empty(stack.shape[1:])
        for place in np.ndindex(result.shape):
            pairs = sorted(zip(stack[(slice(None), *place)].tolist(), m.weights, strict=True))[f : k - f]
            result[place] = sum(w * v for v, w in pairs) / sum(w for _, w in pairs)
        out[name] = result
    return out


def krum(m: Course, default_m="1"):
    n, out = len(m.models), {}
    text = m.text("f", "1")
    f = (n - 3) // 2 if text == "auto" else int(text)
    count = m.text("m", default_m)
    count = n - f - 2 if count == "auto" else int(count)
    for names in _groups(m, m.text("scope", "model")):
        points = [_vector(m, x, names) for x in m.models]
        scores = []
        for i, x in enumerate(points):
            distances = sorted(float(((x - y) ** 2).sum()) for j, y in enumerate(points) if j != i)
            scores.append(sum(distances[: n - f - 2]))
        last = sorted(scores)[count - 1]  # Equal scores are chosen together: no digest decides.
        best = [i for i in range(n) if scores[i] <= last]
        chosen = (
            mean([points[i] for i in best], [m.weights[i] for i in best])
            if len(best) > 1
            else points[best[0]]
        )
        out |= _unpack(m, names, chosen)
    return out


def multi_krum(m: Course):
    return krum(m, "auto")


def geometric_median(m: Course):
    """Weiszfeld's iteration on whole vectors, run to the end."""
    out = {}
    for names in _groups(m, m.text("scope", "model")):
        points = np.array([_vector(m, x, names) for x in m.models])
        v = mean(list(points), m.weights)
        for _ in range(5000):
            distances = np.maximum(np.sqrt(((points - v) ** 2).sum(1)), 1e-14)
            weights = np.array(m.weights) / distances
            after = (weights[:, None] * points).sum(0) / weights.sum()
            done = np.abs(after - v).max() < 1e-15 if v.size else True
            v = after
            if done:
                break
        out |= _unpack(m, names, v)
    return out


def norm_clipped_mean(m: Course):
    out = {}
    w = np.array(m.weights) / sum(m.weights)
    for names in _groups(m, m.text("scope", "model")):
        points = [_vector(m, x, names) for x in m.models]
        v = np.concatenate([m.base[name].ravel() for name in names])
        for _ in range(int(m.text("rounds", "1"))):
            lengths = [math.sqrt(((x - v) ** 2).sum()) for x in points]
            text = m.text("max_norm", "auto")
            limit = float(text) if text != "auto" else _median(lengths, m.weights)
            factors = [min(1.0, limit / n) if n else 1.0 for n in lengths]
            v = v + sum(wi * c * (x - v) for wi, c, x in zip(w, factors, points, strict=True))
        out |= _unpack(m, names, v)
    return out


def _median(values, weights):
    pairs, below = sorted(zip(values, weights, strict=True)), 0.0
    for at, (value, weight) in enumerate(pairs):
        below += weight
        if below > sum(weights) / 2:
            return value
        if below == sum(weights) / 2:
            return (value + next(v for v, w in pairs[at + 1 :] if w)) / 2
    raise AssertionError
