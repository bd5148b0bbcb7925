"""Strategies that apply what somebody computed on data, as their papers say."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import numpy as np

from . import differences
from .course import Course, flat, is_matrix, mean


def fisher_merge(m: Course):
    """Artefact ``fisher_diag``: per model, tensors of the model's shapes."""
    floor, cap = m.number("floor", "1e-6"), m.text("cap", "none")
    power, rule = m.number("fisher_power", "1"), m.text("normalize", "model_l2")
    fishers = m.artefacts["fisher_diag"]
    size = sum(x.size for x in fishers[0].values())
    out = {}
    for name in m.names:
        factors = []
        for fisher in fishers:
            f = fisher[name].astype(float)
            if rule == "model_l2":
                rms = math.sqrt(sum(float((x.astype(float) ** 2).sum()) for x in fisher.values()) / size)
                f = f / rms if rms else f
            elif rule == "tensor_mean" and f.size and f.mean():
                f = f / f.mean()
            f = f if cap == "none" else np.minimum(f, float(cap))
            factors.append((f**power if power else np.ones_like(f)) + floor)
        up = sum(w * f * x[name] for w, f, x in zip(m.weights, factors, m.models, strict=True))
        out[name] = up / sum(w * f for w, f in zip(m.weights, factors, strict=True))
    return out


def regmean(m: Course):
    """Artefact ``gram``: per model, {tensor: G over its inputs, per token} and ``n_tokens``."""
    a, ridge, rule = m.number("a", "0.9"), m.number("ridge", "1e-8"), m.text("gram_norm", "per_token")
    grams, tokens = m.artefacts["gram"], m.artefacts["n_tokens"]
    out = {}
    for name in m.names:
        values = [x[name] for x in m.models]
        if name not in grams[0]:
            out[name] = mean(values, m.weights)
            continue
        left = right = 0.0
        for w, gram, n, x in zip(m.weights, grams, tokens, values, strict=True):
            g = gram[name].astype(float)
            scale = {"none": n, "per_token": 1.0, "trace": 1 / (np.trace(g) or 1.0)}[rule]
            g = w * scale * (a * g + (1 - a) * np.diag(np.diag(g)))
            left, right = left + g, right + g @ flat(x).T
        pull = ridge * np.trace(left) / len(left)
        eye = pull * np.eye(len(left))
        solved = np.linalg.solve(left + eye, right + pull * flat(mean(values, m.weights)).T).T
        out[name] = solved.reshape(values[0].shape)
    return out


def ada_merging(m: Course):
    """Artefact ``lambda_table``: [(glob, one number per model)], the first that fits."""
    deltas = differences._by_model(m)
    if m.says("plusplus", "false"):
        share = m.share("density", "0.2")
        deltas = [differences.trimmed(d, share, over_model=True, keep_equal=True, least=1) for d in deltas]
        votes = {name: np.sign(sum(d[name] for d in deltas)) for name in m.names}
        whole = np.sign(sum(v.sum() for v in votes.values())) or 1.0
        signs = {name: np.where(v == 0, whole, v) for name, v in votes.items()}
        deltas = [{name: np.where(d[name] * signs[name] > 0, d[name], 0.0) for name in d} for d in deltas]
    out = {}
    for name in m.names:
        numbers = next(row for glob, row in m.artefacts["lambda_table"] if fnmatchcase(name, glob))
        out[name] = m.base[name] + sum(float(c) * d[name] for c, d in zip(numbers, deltas, strict=True))
    return out


def adarank(m: Course):
    """Artefact ``rank_masks``: (origin, numbers per model, {(model, tensor): bits})."""
    origin, numbers, masks = m.artefacts["rank_masks"]
    out = {}
    for name in m.names:
        values = [x[name] for x in m.models]
        start = m.base[name] if origin == "base" else sum(values) / len(values)
        total = np.zeros(start.shape)
        for i, x in enumerate(values):
            change = x - start
            if (i, name) in masks:
                u, s, vt = np.linalg.svd(flat(change), full_matrices=False)
                change = ((u * (s * masks[i, name])) @ vt).reshape(change.shape)
            total = total + float(numbers[i]) * change
        out[name] = start + total
    return out


def dam(m: Course):
    """Artefact ``dam_coeff``: per model, tensors of coefficients, and ``transposed``: names of [in, out]."""
    transposed = m.artefacts.get("transposed", ())
    out = {}
    for name in m.names:
        total = np.zeros(m.models[0][name].shape)
        for model, learnt in zip(m.models, m.artefacts["dam_coeff"], strict=True):
            x, c = model[name], learnt[name].astype(float)
            for place in np.ndindex(x.shape):
                column = place if x.ndim < 2 else place[:1] if name in transposed else place[1:2]
                total[place] += x[place] * (c.reshape(-1)[0] if c.size == 1 else c[column])
        out[name] = total
    return out


def led_merge(m: Course):
    """Artefact ``snip_score``: per model (scores at the base, scores at its own weights), by tensor."""
    share, over_model = m.share("ratio", "0.3"), m.text("scope", "tensor") == "model"
    names = m.names

    def located(scores):
        groups = [names] if over_model else [[name] for name in names]
        found = set()
        for group in groups:
            places = [
                (-float(v), name.encode(), at) for name in group for at, v in enumerate(scores[name].ravel())
            ]
            count = 0 if share == 0 else max(1, int(share * len(places)))
            found |= {(name, at) for v, name, at in sorted(places)[:count] if v < 0}
        return found

    sets = [located(base) & located(own) for base, own in m.artefacts["snip_score"]]
    out = {name: m.base[name].copy() for name in names}
    scale = m.number("lambda", "1")
    for i, mine in enumerate(sets):
        for name, at in mine - set().union(*(s for j, s in enumerate(sets) if j != i)):
            key = name.decode()
            change = m.models[i][key].reshape(-1)[at] - m.base[key].reshape(-1)[at]
            out[key].reshape(-1)[at] += scale * m.weights[i] * change
    return out


def weight_scope_alignment(m: Course):
    """Modes ``average`` (where nobody misfits) and ``posthoc_affine``."""
    if m.text("mode", "average") == "average":
        return {name: mean([x[name] for x in m.models], m.weights) for name in m.names}
    by_row, out = m.text("granularity", "tensor") == "row", {}
    align = m.text("align", "auto")
    w = np.array(m.weights) / sum(m.weights)
    for name in m.names:
        values = [x[name] for x in m.models]
        wanted = align == "always" or (align == "auto" and is_matrix(name, values[0]))
        if not wanted or not values[0].size:
            out[name] = mean(values, m.weights)
            continue
        rows = [x.reshape(-1, x.shape[-1] if x.ndim else 1) if by_row else x.reshape(1, -1) for x in values]
        merged = np.empty(rows[0].shape)
        for j in range(len(merged)):
            means = np.array([r[j].mean() for r in rows])
            stds = np.array([r[j].std() for r in rows])
            mu = (w * means).sum()
            sd = (w * stds).sum()
            if m.text("scope_fusion", "mean_std") == "pooled":
                sd = math.sqrt(max(0.0, (w * (stds**2 + means**2)).sum() - mu**2))
            aligned = [r[j] for r in rows]
            if stds.all():  # Where something is constant nothing can be aligned.
                aligned = [(x - a) / s * sd + mu for x, a, s in zip(aligned, means, stds, strict=True)]
            merged[j] = sum(wi * x for wi, x in zip(w, aligned, strict=True))
        out[name] = merged.reshape(values[0].shape)
    return out
