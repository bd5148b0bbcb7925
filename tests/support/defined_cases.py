"""What the definitions are asked: models that are hard, artefacts, and parameters of every strategy."""

from fractions import Fraction

import numpy as np

from .artefacts import artefact

DIGESTS = [bytes([i]) * 32 for i in (1, 2, 3, 4, 5)]
SHAPES = {
    "conv.weight": (4, 3, 2, 2), "embed_tokens.weight": (5, 6), "l.bias": (7,), "l.q.weight": (6, 8),
    "l.tall": (9, 4), "s": (), "void": (0, 3),
}  # fmt: skip
MATRICES = ("conv.weight", "l.q.weight", "l.tall")
WEIGHTS = [Fraction(1), Fraction(2), Fraction(1, 2), Fraction(3), Fraction(1, 4)]
ROLES = ("aligned", "unaligned", "safety", "finetuned", "finetuned")
KINDS = ("f64", "f32", "bf16", "grid")
"""``grid``: multiples of few numbers, where magnitudes tie, signs cancel and tensors repeat."""


def rounded(values, kind):
    """Return values as arrays of a type hold them."""
    if kind == "f64":
        return np.array(values, np.float64)
    single = np.array(values, np.float32)
    if kind != "bf16":
        return single
    bits = single.view(np.uint32)
    return np.array((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16, np.uint32).view(np.float32)


def drawn(kind, k, seed):
    """Return a base and k models near it."""
    rng = np.random.default_rng([seed, k])

    def one(scale):
        draw = (lambda s: rng.integers(-3, 4, s) / 4) if kind == "grid" else (lambda s: rng.normal(size=s))
        return {name: np.array(draw(shape) * scale) for name, shape in SHAPES.items()}

    base = one(1.0)
    models = [{name: base[name] + x for name, x in one(0.25).items()} for _ in range(k)]
    base, *models = ({name: rounded(x, kind) for name, x in each.items()} for each in (base, *models))
    return base, models


def _of_a_set(type_, header, tensors, models):
    return [artefact(type_, header, tensors, models=DIGESTS[: len(models)])]


def fishers(models, rng):
    """Return artefacts and what the definition reads: scales six decades apart, a fifth of zeros."""
    found = [
        {
            name: np.array(rng.normal(size=x.shape) ** 2 * 1e-6**i * (rng.random(x.shape) < 0.8), np.float32)
            for name, x in model.items()
        }
        for i, model in enumerate(models)
    ]
    header = {"n_samples": 8, "label_mode": "sampled"}
    made = [artefact("fisher_diag", header, f, subject=d) for f, d in zip(found, DIGESTS, strict=False)]
    return made, {"fisher_diag": found}


def grams(models, rng):
    """Return artefacts of layers whose inputs are counted differently."""
    made, found, tokens = [], [], [10 * (i + 1) for i in range(len(models))]
    for i, model in enumerate(models):
        full = {}
        for name in MATRICES:
            side = int(np.prod(model[name].shape[1:]))
            inputs = rng.normal(size=(side + 5, side))
            lower = np.tril((inputs.T @ inputs / (side + 5)).astype(np.float32))
            full[name] = lower + np.tril(lower, -1).T
        packed = {f"in/{name}": g[np.tril_indices(len(g))] for name, g in full.items()}
        header = {"n_tokens": tokens[i], "inputs": {name: f"in/{name}" for name in full}}
        made.append(artefact("gram", header, packed, subject=DIGESTS[i]))
        found.append(full)
    return made, {"gram": found, "n_tokens": tokens}


def lambdas(models, rng):
    """Return a table with two rows."""
    rows = [
        ("l.*", [f"0.{i + 2}" for i in range(len(models))]),
        ("*", [str(i % 2) for i in range(len(models))]),
    ]
    header = {"rows": [{"match": glob, "lambda": numbers} for glob, numbers in rows]}
    return _of_a_set("lambda_table", header, {}, models), {"lambda_table": rows}


def masks(models, rng, origin="base"):
    """Return random masks over singular values."""
    bits = {
        (i, name): (rng.random(min(len(x[name]), x[name].size // len(x[name]))) < 0.5).astype(np.float32)
        for i, x in enumerate(models)
        for name in MATRICES
    }
    numbers = [f"0.{i + 3}" for i in range(len(models))]
    header = {"rows": [{"match": "*", "lambda": numbers}], "origin": origin}
    tensors = {f"{i}/{name}": values for (i, name), values in bits.items()}
    return _of_a_set("rank_masks", header, tensors, models), {"rank_masks": (origin, numbers, bits)}


def coefficients(models, rng):
    """Return DAM's: one matrix is stored [in, out], a bias has one number, a gain as many as itself."""
    sizes = {
        name: shape[:1] if name == "l.tall" else shape[1:2] if len(shape) > 1 else shape
        for name, shape in SHAPES.items()
    }
    found = [
        {
            name: np.clip(rng.normal(size=(1,) if name == "l.bias" else size), -4, 4)
            for name, size in sizes.items()
        }
        for _ in models
    ]
    tensors = {f"{i}/{name}": values for i, one in enumerate(found) for name, values in one.items()}
    made = _of_a_set("dam_coeff", {"transposed": ["l.tall"]}, tensors, models)
    return made, {"dam_coeff": found, "transposed": ["l.tall"]}


def scores(models, rng):
    """Return SNIP scores with many equal ones and zeros among them."""
    made, found = [], []
    for i, model in enumerate(models):
        pair = [{name: np.array(rng.integers(0, 12, x.shape) / 8) for name, x in model.items()} for _ in "bs"]
        tensors = {
            f"{at}/{n}": v for at, part in zip(("base", "self"), pair, strict=True) for n, v in part.items()
        }
        made.append(artefact("snip_score", {"n_samples": 8}, tensors, subject=DIGESTS[i]))
        found.append(tuple(pair))
    return made, {"snip_score": found}


def scopes(models, rng):
    """Return declared scopes that everybody keeps to."""
    made = []
    for i, model in enumerate(models):
        x = model["l.q.weight"].astype(float)
        scope = {"mean": f"{x.mean():.9f}", "variance": f"{x.var():.9f}", "count": x.size}
        made.append(artefact("weight_scope", {"scopes": {"l.q.weight": scope}}, subject=DIGESTS[i]))
    return made, {}


def in_role(*names):
    """Return what gives models these roles, the last one to the rest."""

    def make(models, rng):
        all_names = [names[min(i, len(names) - 1)] for i in range(len(models))]
        made = [artefact("role", {"role": r}, subject=d) for r, d in zip(all_names, DIGESTS, strict=False)]
        return made, {"role": all_names}

    return make


def adapters(models, rng):
    """Return surgery adapters, which the common model does not depend on."""
    tensors = {
        f"{i}/{w}": np.ones(s) for i in range(len(models)) for w, s in (("down", (2, 8)), ("up", (8, 2)))
    }
    header = {"inner": "task_arithmetic", "params": {"lambda": "0.3"}}
    return _of_a_set("surgery_adapter", header, tensors, models), {}


def genome(inner, params, groups):
    """Return what makes a genome; ``groups`` maps the number of models to rows."""

    def make(models, rng):
        rows = [(glob, values(len(models))) for glob, values in groups]
        header = {
            "inner": inner, "params": params,
            "layer_groups": [{"match": glob, "values": values} for glob, values in rows],
        }  # fmt: skip
        return _of_a_set("genome", header, {}, models), {"genome": (inner, params, rows)}

    return make
