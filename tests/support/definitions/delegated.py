"""Strategies that merge by another strategy, as their papers say: with what is theirs done by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from .course import Course

Definitions = Mapping[str, Callable[[Course], Any]]


def split_unlearn_merge(m: Course, known: Definitions):
    name = m.text("inner", "ties")
    return known[name](m.inner(name))


def representation_surgery(m: Course, known: Definitions):
    """Only the common model: adapters are handed on."""
    name = m.text("inner", "task_arithmetic")
    inner = m.inner(name)
    default = {"lambda": "0.3"} if name == "task_arithmetic" else {}
    return known[name](replace(inner, params={**default, **inner.params}))


def evolutionary_merge(m: Course, known: Definitions):
    """Artefact ``genome``: (inner, params, [(glob, {name: text, or one per model})]); the first that fits."""
    name, params, groups = m.artefacts["genome"]
    places = {
        t: next((i for i, (glob, _) in enumerate(groups) if fnmatchcase(t, glob)), None) for t in m.names
    }
    out = {}
    for place in set(places.values()):
        names = [t for t, p in places.items() if p == place]
        values = {} if place is None else dict(groups[place][1])
        factors = values.pop("weight", ["1"] * len(m.models))
        weights = [w * float(f) for w, f in zip(m.weights, factors, strict=True)]
        part = replace(
            m, strategy=name, params={**params, **values}, weights=weights,
            models=[{t: x[t] for t in names} for x in m.models],
        )  # fmt: skip
        out |= known[name](part)
    return out


def genetic_merge(m: Course, known: Definitions):
    return evolutionary_merge(m, known)


def split_fused(m: Course, known: Definitions):
    """Parameter ``parts``: rows of ``glob=rule`` and a last rule."""
    *rows, last = m.text("parts", "1").split(";")
    rules = [tuple(row.split("=")) for row in rows] + [("*", last)]

    def cut(model):
        out = {}
        for name, values in model.items():
            rule = next(r for glob, r in rules if fnmatchcase(name, glob))
            parts = _cut(values, rule)
            stem, dot, end = name.rpartition(".")
            for j, part in enumerate(parts):
                out[name if len(parts) == 1 else f"{stem}{dot}{j}.{end}" if dot else f"{name}.{j}"] = part
        return out

    name = m.text("inner", "ties")
    cuts = [cut(x) for x in m.models]
    inner = m.inner(name, models=cuts, base=None if m.base is None else cut(m.base))
    merged = known[name](inner)
    return {t: _join(t, m.models[0][t], rules, merged) for t in m.names}


def _cut(values, rule):
    if rule.startswith("columns/"):
        return np.split(values, int(rule.removeprefix("columns/")), axis=1)
    heads, _, each = rule.rpartition("/")
    shares = [1] * int(each) if "-" not in each else [int(x) for x in each.split("-")]
    if shares == [1]:
        return [values]
    grouped = values.reshape(int(heads or 1), -1, *values.shape[1:])
    borders = np.cumsum(shares)[:-1] * (grouped.shape[1] // sum(shares))
    return [part.reshape(-1, *values.shape[1:]) for part in np.split(grouped, borders, axis=1)]


def _join(name, like, rules, merged):
    rule = next(r for glob, r in rules if fnmatchcase(name, glob))
    parts = _cut(np.arange(float(like.size)).reshape(like.shape), rule)
    if len(parts) == 1:
        return merged[name]
    stem, dot, end = name.rpartition(".")
    out = np.empty(like.size)
    for j, places in enumerate(parts):
        part = merged[f"{stem}{dot}{j}.{end}" if dot else f"{name}.{j}"]
        out[places.ravel().astype(int)] = part.ravel()
    return out.reshape(like.shape)
