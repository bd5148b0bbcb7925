"""Valid artefacts for any strategy and any models, made from the seed alone: for tests of all strategies.

What a strategy needs is read from its declaration. Which roles it wants is found by trying: the first
assignment with which it says that nothing is missing.
"""

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.strategies import registry
from crdt_merge_protocol.strategies.artefact_checks import ROLES
from crdt_merge_protocol.strategies.artefacts import SCOPES, in_order
from crdt_merge_protocol.strategies.contract import MergeContext
from crdt_merge_protocol.strategies.reference import merge_arrays
from support.artefacts import artefact, specs_of

NAMES = tuple(bytes([i + 1]) * 32 for i in range(16))
"""Digests of the models of a test, in canonical order."""
ASSIGNMENTS = (
    *((role,) for role in ROLES),
    ("aligned", "unaligned", "finetuned", "finetuned", "finetuned"),
    ("safety", "finetuned", "finetuned", "finetuned", "finetuned"),
    ("aligned", "unaligned", "safety", "finetuned", "finetuned"),
)
EXTRA_PARAMETERS = {"negative_merge": {"lambda": "1"}, "passthrough": {"origin": NAMES[0].hex()[:8]}}
"""What has no default that fits every set."""


@dataclass(frozen=True)
class Case:
    """A strategy with everything it needs to merge some models."""

    strategy: str
    models: list
    base: dict
    params: dict
    artefacts: list
    context: MergeContext
    """With equal weights."""
    unmet: str | None

    def merge(self, *, order=None, digests=None, models=None, base=None, **options):
        """Return the merge; ``order`` picks inputs by position, repeated ones included."""
        inputs = self.models if models is None else models
        names = NAMES[: len(inputs)] if digests is None else digests
        places = range(len(inputs)) if order is None else order
        weights = options.pop("weights", [1] * len(inputs))
        return merge_arrays(
            self.strategy,
            [inputs[i] for i in places],
            self.base if base is None else base,
            {**self.params, **options.pop("params", {})},
            digests=[names[i] for i in places],
            weights=[weights[i] for i in places],
            artefacts=self.artefacts,
            **{"seed": b"s", **options},
        )


def case_of(strategy, models, base, params=None, *, seed=0, names=NAMES):
    """Return a case, with an unmet need if no artefacts could meet it; ``names`` are sorted digests."""
    texts = {**EXTRA_PARAMETERS.get(strategy, {}), **(params or {})}
    cases = []
    for made in suites(strategy, models, seed, names):
        context = context_of(strategy, models, texts, made, names)
        cases.append(
            Case(strategy, models, base, texts, made, context, registry.get(strategy).unmet(context))
        )
        if cases[-1].unmet is None:
            return cases[-1]
    return cases[0]


def context_of(strategy, models, texts, made, names=NAMES):
    """Return the context of a merge."""
    names = names[: len(models)]
    return MergeContext(
        strategy=strategy,
        params=registry.get(strategy).validate(texts),
        weights=(Fraction(1),) * len(models),
        digests=names,
        has_base=True,
        seed=b"s",
        specs=specs_of(models[0]),
        artefacts=in_order(item.artefact for item in made),
        set_root=used_root(names),
    )


def suites(strategy, models, seed, names=NAMES):
    """Yield artefacts of every type that a strategy works with; several times if there are roles to try."""
    types = [need.type for need in registry.get(strategy).artefacts]
    names = names[: len(models)]
    rng = np.random.default_rng(seed)
    fixed = []
    for type_ in types:
        if type_ == "role":
            continue
        if SCOPES[type_] == "set":
            header, tensors = MAKERS[type_](models[0], len(models), rng)
            fixed.append(artefact(type_, header, tensors, models=names))
            continue
        for name in names:
            header, tensors = MAKERS[type_](models[0], 1, rng)
            fixed.append(artefact(type_, header, tensors, subject=name))
    if "role" not in types:
        yield fixed
        return
    for roles in ASSIGNMENTS:
        given = zip(names, itertools.cycle(roles), strict=False)
        yield [*fixed, *(artefact("role", {"role": role}, subject=name) for name, role in given)]


def fisher(model, _count, rng):
    header = {"n_samples": 8, "label_mode": "expected"}
    return header, {name: positive(rng, x.shape) for name, x in model.items()}


def gram(model, _count, rng):
    inputs, tensors = {}, {}
    for name, x in model.items():
        if x.ndim < 2 or not x.size:
            continue
        side = math.prod(x.shape[1:])
        samples = rng.integers(-4, 5, (side + 3, side)) / 4
        full = samples.T @ samples / len(samples)  # Sums of sixteenths are exact, in whatever order.
        inputs[name] = f"{name}.in"
        tensors[f"{name}.in"] = full[np.tril_indices(side)].astype(np.float32)
    return {"n_tokens": 64, "inputs": inputs}, tensors


def snip(model, _count, rng):
    tensors = {f"{at}/{name}": positive(rng, x.shape) for at in ("base", "self") for name, x in model.items()}
    return {"n_samples": 8}, tensors


def lora(_model, _count, _rng):
    header = {"r": 2, "alpha": "4", "use_rslora": False, "fan_in_fan_out": False, "target_modules": ["a"]}
    return header, {}


def weight_scope(model, _count, rng):
    scopes = {
        name: {"mean": "0.125", "variance": f"{rng.integers(1, 9) / 8}", "count": x.size}
        for name, x in model.items()
        if x.size
    }
    return {"scopes": scopes}, {}


def lambdas(_model, count, rng):
    return {"rows": [{"match": "*", "lambda": [f"{n / 16}" for n in rng.integers(1, 9, count)]}]}, {}


def rank_masks(model, count, rng):
    header, _ = lambdas(model, count, rng)
    tensors = {
        f"{i}/{name}": rng.integers(0, 2, min(x.shape[0], math.prod(x.shape[1:]))).astype(np.float32)
        for i in range(count)
        for name, x in model.items()
        if x.ndim >= 2
    }
    return {"origin": "base", **header}, tensors


def dam(model, count, rng):
    shapes = {name: x.shape[1:2] if x.ndim >= 2 else () for name, x in model.items()}
    tensors = {
        f"{i}/{name}": np.asarray(rng.integers(0, 9, shape) / 8, np.float32)
        for i in range(count)
        for name, shape in shapes.items()
    }
    return {}, tensors


def surgery(_model, count, rng):
    tensors = {}
    for i in range(count):
        tensors[f"{i}/down"] = positive(rng, (2, 6))
        tensors[f"{i}/up"] = positive(rng, (6, 2))
    return {"inner": "task_arithmetic", "params": {"lambda": "0.3"}}, tensors


def genome(_model, _count, _rng):
    return {"inner": "ties", "params": {"density": "0.5"}, "layer_groups": []}, {}


def positive(rng, shape):
    """Return multiples of 1/8, at least that much."""
    return np.asarray(rng.integers(1, 33, shape) / 8, np.float32)


MAKERS = {
    "fisher_diag": fisher,
    "gram": gram,
    "snip_score": snip,
    "lora_meta": lora,
    "weight_scope": weight_scope,
    "lambda_table": lambdas,
    "rank_masks": rank_masks,
    "dam_coeff": dam,
    "surgery_adapter": surgery,
    "genome": genome,
}
