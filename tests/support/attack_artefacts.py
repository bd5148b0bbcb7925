"""What attackers put into artefacts: fields and tensors of every type, at the ends of every range."""

from __future__ import annotations

import math
import random

import numpy as np
from crdt_merge_protocol.strategies.artefact_checks import ROLES
from crdt_merge_protocol.strategies.registry import plain_names


def _extreme(draw: random.Random, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return non-negative F32 values: nothing, the least, the largest, and what is between."""
    ends = np.array([0, 1e-45, 1e-30, 1, 3.4e38], np.float32)
    kind = draw.randrange(4)
    if kind == 0:
        return np.zeros(shape, np.float32)
    if kind == 1:
        return np.full(shape, draw.choice(ends), np.float32)
    if kind == 2:
        return np.asarray(rng.choice(ends, shape), np.float32)
    return np.asarray(np.abs(rng.normal(size=shape)), np.float32)


def _decimal(draw: random.Random) -> str:
    return draw.choice(("0", "1", "-1", "0.3", "1", "9" * 20, "-" + "9" * 20, "0." + "0" * 38 + "1"))


def _fisher(draw, rng, model, _count):
    header = {"n_samples": draw.choice((1, 10**15)), "label_mode": draw.choice(("expected", "sampled"))}
    return header, {spec.name: _extreme(draw, rng, spec.shape) for spec in model if draw.random() < 0.9}


def _gram(draw, rng, model, _count):
    inputs, tensors = {}, {}
    for spec in model:
        if len(spec.shape) < 2 or draw.random() < 0.1:
            continue
        side = math.prod(spec.shape[1:])
        inputs[spec.name] = f"in/{spec.name}"
        triangle = _extreme(draw, rng, (side * (side + 1) // 2,))
        if draw.random() < 0.5:  # Off the diagonal they may have any sign, whether that is a Gram or not.
            flips = rng.choice(np.array([-1, 1], np.float32), triangle.shape)
            rows = np.arange(side)
            flips[rows * (rows + 3) // 2] = 1
            triangle = triangle * flips
        tensors[f"in/{spec.name}"] = triangle
    return {"n_tokens": draw.choice((1, 10**15)), "inputs": inputs}, tensors


def _snip(draw, rng, model, _count):
    tensors = {}
    for spec in model:
        if draw.random() < 0.9:
            tensors |= {f"{at}/{spec.name}": _extreme(draw, rng, spec.shape) for at in ("base", "self")}
    form = draw.choice((None, "score", "mask"))
    return {"n_samples": 1} | ({"form": form} if form else {}), tensors


def _role(draw, _rng, _model, _count):
    return {"role": draw.choice(ROLES)} | ({"attribute": "x"} if draw.random() < 0.3 else {}), {}


def _lora(draw, _rng, _model, _count):
    flags = {name: draw.random() < 0.5 for name in ("use_rslora", "fan_in_fan_out")}
    return {"r": draw.choice((1, 1 << 20)), "alpha": _decimal(draw), "target_modules": ["a"], **flags}, {}


def _scope(draw, _rng, model, _count):
    scopes = {
        spec.name: {
            "mean": _decimal(draw),
            "variance": _decimal(draw).lstrip("-"),
            "count": draw.choice((1, 10**15)),
        }
        for spec in model
        if draw.random() < 0.9
    }
    return {"scopes": scopes}, {}


def _rows(draw, count):
    return [{"match": "*", "lambda": [_decimal(draw) for _ in range(count)]}]


def _lambdas(draw, _rng, _model, count):
    return {"rows": _rows(draw, count)}, {}


def _masks(draw, rng, model, count):
    tensors = {}
    for spec in model:
        if len(spec.shape) >= 2 and draw.random() < 0.8:
            side = min(spec.shape[0], math.prod(spec.shape[1:]))
            tensors |= {f"{i}/{spec.name}": rng.integers(0, 2, side).astype(np.float32) for i in range(count)}
    return {"origin": draw.choice(("base", "cart")), "rows": _rows(draw, count)}, tensors


def _dam(draw, rng, model, count):
    tensors = {}
    for spec in model:
        shape = draw.choice(((), (1,), spec.shape, spec.shape[1:2] if len(spec.shape) >= 2 else ()))
        tensors |= {f"{i}/{spec.name}": _bounded(draw, rng, shape) for i in range(count)}
    return {}, tensors


def _bounded(draw, rng, shape):
    return np.asarray(rng.choice(np.array([0, 4, -4, 1e-45, 1], np.float32), shape), np.float32)


def _surgery(draw, rng, _model, count):
    tensors = {f"{i}/down": _extreme(draw, rng, (1, 2)) for i in range(count)}
    tensors |= {f"{i}/up": _extreme(draw, rng, (2, 1)) for i in range(count)}
    header = {
        "inner": draw.choice(("task_arithmetic", "ties", "x")),
        "params": draw.choice(({}, {"lambda": "0.3"}, {"x": "y"})),
    }
    return header, tensors


def _genome(draw, _rng, _model, count):
    inner = draw.choice((*plain_names(), "ties", "linear", "genetic_merge", "fisher_merge", "nothing"))
    texts = ("0", "1", "0.5", "-1", "1e9", "x", "9" * 20)
    values = {
        name: draw.choice((draw.choice(texts), [draw.choice(texts) for _ in range(count)]))
        for name in draw.sample(("weight", "density", "lambda", "t"), draw.randint(0, 2))
    }
    groups = [{"match": "*", "values": values}] if values else []
    params = {draw.choice(("lambda", "density", "x")): draw.choice(texts)} if draw.random() < 0.5 else {}
    return {"inner": inner, "params": params, "layer_groups": groups}, {}


MAKERS = {
    "fisher_diag": _fisher,
    "gram": _gram,
    "snip_score": _snip,
    "role": _role,
    "lora_meta": _lora,
    "weight_scope": _scope,
    "lambda_table": _lambdas,
    "rank_masks": _masks,
    "dam_coeff": _dam,
    "surgery_adapter": _surgery,
    "genome": _genome,
}
"""By type: functions of a generator of choices, one of numbers, the model's specs and a number of models that
return the header's fields and the tensors. Whoever calls them draws anew what the checks refuse."""
