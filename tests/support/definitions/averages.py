"""Means, on a line and on a sphere, as papers or mergekit's documentation say."""

from __future__ import annotations

import math

import numpy as np

from .course import Course, mean


def weight_average(m: Course):
    return {name: mean([x[name] for x in m.models], m.weights) for name in m.names}


def linear(m: Course):
    weights, normalize = list(m.weights), m.says("normalize", "true")
    if "t" in m.params:
        t, origin = m.number("t", "0"), m.params["t_origin"]
        weights = [1 - t if digest.hex().startswith(origin) else t for digest in m.digests]
        normalize = False
    total = sum(weights) if normalize else 1.0
    return {
        name: sum(w * x[name] for w, x in zip(weights, m.models, strict=True)) / total for name in m.names
    }


def passthrough(m: Course):
    origin, scale = m.text("origin", ""), m.number("scale", "1")
    chosen = next(x for x, d in zip(m.models, m.digests, strict=True) if d.hex().startswith(origin))
    return {name: scale * chosen[name] for name in m.names}


def _norm(x):
    return math.sqrt(math.fsum((x * x).ravel().tolist()))


def _dot(x, y):
    return math.fsum((x * y).ravel().tolist())


def frechet(values, weights, max_iter, tol):
    """Return the Karcher mean of the directions times the mean length, by tangent steps on whole vectors."""
    norms = [_norm(x) for x in values]
    there = [(w, x / n) for w, x, n in zip(weights, values, norms, strict=True) if n > 1e-12 and w]
    if not there:
        return np.zeros_like(values[0])
    total = sum(w for w, _ in there)
    there = [(w / total, u) for w, u in there]
    m = sum(w * u for w, u in there)
    m = m / _norm(m)
    for _ in range(max_iter):
        g = np.zeros_like(m)
        for w, u in there:
            d = min(1.0, max(-1.0, _dot(m, u)))
            angle = math.acos(d)
            g = g + w * (angle / math.sin(angle) if angle >= tol else 1.0) * (u - d * m)
        length = _norm(g)
        if length < tol:
            break
        m = math.cos(length) * m + math.sin(length) * g / length
        m = m / _norm(m)
    return sum(w * n for w, n in zip(weights, norms, strict=True)) / sum(weights) * m


def slerp_of_two(x, y, t, threshold, magnitude):
    n, o = _norm(x), _norm(y)
    u, v = x / (n if n > 1e-8 else 1), y / (o if o > 1e-8 else 1)
    c = min(1.0, max(-1.0, _dot(u, v)))
    if abs(c) > threshold or abs(c) == 1 or (magnitude == "interp" and min(n, o) == 0):
        return (1 - t) * x + t * y
    angle = math.acos(c)
    a, b = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return a * x + b * y if magnitude == "raw" else (a * u + b * v) * ((1 - t) * n + t * o)


def _of_differences(m, name, merge):
    """Merge the models or, with a base, their differences from it."""
    if m.base is None:
        return merge([x[name] for x in m.models])
    return m.base[name] + merge(m.deltas(name))


def slerp(m: Course):
    steps, tol = int(m.text("max_iter", "50", "10")), m.number("tol", "1e-13", "1e-5")
    threshold, magnitude = m.number("dot_threshold", "0.9995"), m.text("magnitude", "interp", "raw")

    def merge(values):
        if len(values) == 1:
            return values[0]
        if m.text("norms", "slerp") == "linear" and values[0].ndim <= 1:
            return mean(values, m.weights)
        if len(values) == 2:
            return slerp_of_two(*values, m.weights[1] / sum(m.weights), threshold, magnitude)
        return frechet(values, m.weights, steps, tol)

    return {name: _of_differences(m, name, merge) for name in m.names}


def karcher(m: Course):
    steps, tol = int(m.text("max_iter", "10")), m.number("tol", "1e-5")
    return {
        name: _of_differences(m, name, lambda values: frechet(values, m.weights, steps, tol))
        for name in m.names
    }


def multislerp(m: Course):
    def merge(values):
        norms = [_norm(x) for x in values]
        units = [x / n if n else x for x, n in zip(values, norms, strict=True)]
        middle = sum(w * u for w, u in zip(m.weights, units, strict=True))
        length = _norm(middle)
        if length == 0:
            return mean(values, m.weights)
        total = sum(m.weights) if m.says("normalize", "true") else 1.0
        return middle / length * sum(w * n for w, n in zip(m.weights, norms, strict=True)) / total

    return {name: _of_differences(m, name, merge) for name in m.names}


def nuslerp(m: Course):
    steps, tol = int(m.text("max_iter", "50")), m.number("tol", "1e-13")

    def one(values):
        if len(values) == 1:
            return values[0]
        if len(values) > 2:
            return frechet(values, m.weights, steps, tol)
        x, y = values
        t = m.weights[1] / sum(m.weights)
        n, o = _norm(x), _norm(y)
        c = _dot(x, y) / (n * o) if n * o else 1.0
        if 1 - c * c <= 1e-16:
            return (1 - t) * x + t * y
        angle = math.acos(min(1.0, max(-1.0, c)))
        return (math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)

    def merge(values):
        shape = values[0].shape
        if m.says("flatten", "true") or len(shape) < 2:
            return one(values)
        axis = 0 if m.says("row_wise", "false") else -1
        if not values[0].size:
            return values[0]
        moved = [np.moveaxis(x, axis, -1) for x in values]
        rows = [x.reshape(-1, x.shape[-1]) for x in moved]
        out = np.array([one(list(slices)) for slices in zip(*rows, strict=True)])
        return np.moveaxis(out.reshape(moved[0].shape), -1, axis)

    return {name: _of_differences(m, name, merge) for name in m.names}


def model_stock(m: Course):
    shares = [w / sum(m.weights) for w in m.weights]
    n = 1 / sum(s * s for s in shares)  # The paper knows no weights: for equal ones this is their number.

    def merge(deltas):
        pairs = [(i, j) for i in range(len(deltas)) for j in range(i)]
        cosines = [
            _dot(deltas[i], deltas[j]) / (_norm(deltas[i]) * _norm(deltas[j]))
            if _norm(deltas[i]) * _norm(deltas[j])
            else 0.0
            for i, j in pairs
        ]
        by = [shares[i] * shares[j] for i, j in pairs]
        c = sum(w * x for w, x in zip(by, cosines, strict=True)) / sum(by)
        divisor = 1 + (n - 1) * c
        t = n * c / divisor if abs(divisor) >= 1e-6 else 0.0
        if m.says("clip_t", "false"):
            t = min(1.0, max(0.0, t))
        return t * mean(deltas, m.weights)

    out = {}
    for name in m.names:
        deltas = m.deltas(name)
        if m.says("filter_wise", "false") and deltas[0].ndim >= 2:
            rows = [x.reshape(-1, x.shape[-1]) for x in deltas]
            change = np.array([merge(list(r)) for r in zip(*rows, strict=True)]).reshape(deltas[0].shape)
        else:
            change = merge(deltas)
        out[name] = m.base[name] + change
    return out
