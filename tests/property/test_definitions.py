"""Every strategy against its definition, written from the paper by itself (support/definitions)."""

import numpy as np
import pytest
from crdt_merge_protocol.strategies.reference import merge_arrays
from crdt_merge_protocol.strategies.registry import names
from support import defined_cases as cases
from support.definitions import DEFINITIONS, Course

SEED = b"\x07" * 32
FEW = {
    "trimmed_mean": 3,
    "krum": 3,
    "multi_krum": 3,
    "geometric_median": 3,
    "model_stock": 2,
    "safe_merge": 4,
}
"""Least number of models."""
WITHOUT_BASE = {"weight_average", "linear", "passthrough", "fisher_merge", "regmean", "dam",
                "weight_scope_alignment", "coordinate_median", "trimmed_mean", "krum", "multi_krum",
                "geometric_median"}  # fmt: skip
EITHER_WAY = {"slerp", "karcher", "multislerp", "nuslerp"}
CONTINUOUS = {"slerp", "karcher", "nuslerp", "model_stock", "star", "svd_knot_tying", "dual_projection",
              "adarank", "svd_truncated_ta", "arcee_fusion", "geometric_median"}  # fmt: skip
"""On the grid these stand at an edge: opposite directions, equal singular values, equal quantiles."""
SPHERES = {"slerp", "karcher", "multislerp", "nuslerp", "model_stock"}
"""In a scalar, and in rows of two where more models than that point all ways, no mean is the only one."""
TOLERANCES = {"svd_knot_tying": 1e-8, "dual_projection": 1e-7, "regmean": 1e-8, "geometric_median": 1e-6}
LOOSE = {"slerp", "karcher", "nuslerp", "multislerp", "model_stock", "star", "svd_truncated_ta", "adarank"}
ARTEFACTS = {
    "fisher_merge": cases.fishers, "regmean": cases.grams, "ada_merging": cases.lambdas,
    "adarank": cases.masks, "dam": cases.coefficients, "led_merge": cases.scores,
    "weight_scope_alignment": cases.scopes, "representation_surgery": cases.adapters,
    "negative_merge": cases.in_role("forget"), "split_unlearn_merge": cases.in_role("unlearned"),
    "safe_merge": cases.in_role(*cases.ROLES),
    "evolutionary_merge": cases.genome(
        "ties", {"scope": "tensor", "lambda": "0.75", "density": "0.6"},
        [("l.*", lambda k: {"density": "0.4", "weight": ["0.5", "2", "1", "3", "0.25"][:k]})],
    ),
    "genetic_merge": cases.genome("dare_ties", {}, [("l.*", lambda _: {"density": "0.4", "lambda": "0.5"})]),
}  # fmt: skip


def split(text):
    """Return parameters from ``name=value, ...``."""
    return dict(part.split("=", 1) for part in text.split(", ") if part)


MERGEKIT = "profile=mergekit"
RESCALES = ["density=0.37", "density=0", "density=1", "density=0.37, rescale=none", "density=0.4, lambda=-2"]
BOTH = [*RESCALES, *(f"{MERGEKIT}, {text}" for text in RESCALES), "density=0.37, rescale=l1"]
CRUMBS = ["", "density=0.37", "density=0", "density=0.6, gamma=0.4", "density=1, gamma=0", MERGEKIT,
          *(f"{MERGEKIT}, density={text}" for text in ("0.37", "0.9, gamma=0.3", "0"))]  # fmt: skip
VARIANTS = {
    "linear": ["", "normalize=false"],
    "passthrough": [f"origin={'01' * 8}, scale=-2.5", f"origin={'01' * 32}, scale=0"],
    "slerp": ["", MERGEKIT, "magnitude=raw", "norms=linear", "max_iter=3, tol=1e-2"],
    "karcher": ["", "max_iter=1", "tol=1e-15, max_iter=100"],
    "multislerp": ["", "normalize=false"],
    "nuslerp": ["", "flatten=false", "flatten=false, row_wise=true"],
    "model_stock": ["", "filter_wise=true", "clip_t=true"],
    "task_arithmetic": ["", "lambda=auto", "lambda=-3, normalize=true"],
    "ties": ["", "density=0.37", "density=0", "density=1", "density=0.001", "density=0.37, scope=tensor",
             "elect=count", "merge_func=sum, lambda=0.3", "merge_func=max", MERGEKIT,
             f"{MERGEKIT}, density=0.37", f"{MERGEKIT}, density=0.37, scope=model, normalize=false",
             f"{MERGEKIT}, density=0.37, elect=count"],
    "dare": [*BOTH, "density=0.4, normalize=false", "density=0.5, min_numel=30"],
    "dare_ties": [*BOTH, "ties_density=0.4", "ties_density=0.4, scope=model", "scope=model", "elect=count",
                  "merge_func=sum", "merge_func=max", f"{MERGEKIT}, density=0.4, normalize=true"],
    "della": [*(t for t in BOTH if "density=0.4," not in t), "density=0.5, epsilon=0.49", "merge_func=max",
              "scope=model", f"{MERGEKIT}, density=0.5, normalize=false"],
    "della_linear": [*BOTH, "density=0.5, epsilon=0.49", "normalize=false"],
    "model_breadcrumbs": [*CRUMBS, "normalize=true"],
    "breadcrumbs_ties": [*CRUMBS, "merge_func=sum", f"{MERGEKIT}, density=0.5, normalize=true"],
    "negative_merge": ["lambda=1", "lambda=0.3, consensus=0.6", "lambda=3, consensus=0.5", "lambda=0"],
    "sce": ["", MERGEKIT, "select_topk=0", "select_topk=0.5", "select_topk=0.99"],
    "ram": ["", "epsilon=0", "epsilon=0.2"],
    "ramplus_tl": ["", "epsilon=0", "epsilon=0.2", "epsilon=0.2, r=2, alpha=5"],
    "nearswap": ["", "t=0", "t=0.1", "t=1000"],
    "fisher_merge": ["", "normalize=none", "normalize=tensor_mean", "floor=0.1", "cap=2", "fisher_power=0",
                     "fisher_power=0.5", "fisher_power=2"],
    "regmean": ["", "a=0", "a=1, ridge=0", "a=0.1, gram_norm=trace", "gram_norm=none", "ridge=10"],
    "ada_merging": ["", "plusplus=true", "plusplus=true, density=0.5", "plusplus=true, density=0"],
    "led_merge": ["", "ratio=0.1", "ratio=0", "ratio=1", "scope=model",
                  "scope=model, ratio=0.07", "lambda=-2"],
    "weight_scope_alignment": ["", "mode=posthoc_affine", "mode=posthoc_affine, scope_fusion=pooled",
                               "mode=posthoc_affine, granularity=row", "mode=posthoc_affine, align=always"],
    "safe_merge": ["", "threshold=0.99", "threshold=-1",
                   "threshold=1, weight_finetuned=0.3, weight_safety=-1"],
    "star": ["", "eta=0.001", "eta=100", "eta=80, lambda=-2"],
    "svd_truncated_ta": ["", "ratio=0", "ratio=1", "ratio=0.5, origin=cart"],
    "dual_projection": ["", "svd_epsilon=0.5", "svd_epsilon=0.5, rank_rule=official"],
    "svd_knot_tying": ["", "inner.density=0.5", "others=average", "eps_rank=0.3, eps_rule=relative",
                       "inner=dare_ties, inner.density=0.3", "inner.profile=mergekit, inner.density=0.4"],
    "trimmed_mean": ["", "f=auto", "f=0"],
    "krum": ["f=auto", "f=0", "f=0, m=2", "f=0, scope=tensor"],
    "multi_krum": ["f=auto", "f=0"],
    "geometric_median": [f"tol=1e-14, max_iter=10000, smoothing=1e-12, scope={scope}"
                         for scope in ("model", "tensor")],
    "norm_clipped_mean": ["", "rounds=3", "max_norm=0.5", "max_norm=0", "max_norm=1000",
                          "scope=tensor, rounds=5"],
    "split_unlearn_merge": ["", "inner=task_arithmetic, inner.lambda=0.4"],
    "representation_surgery": [""],
    "split_fused": ["parts=l.q.weight=3;l.tall=columns/2;conv.weight=2-1-1;1, inner.scope=tensor",
                    "parts=l.q.weight=2/3;1, inner=nuslerp, inner.flatten=false",
                    "parts=l.q.weight=2/2-1;1, inner=star"],
}  # fmt: skip
ALL = [(name, text) for name in names() for text in VARIANTS.get(name, [""])]


def merges(name, params):
    """Yield kind of model, number of models and whether there is a base: few, but all of each."""
    least = 2 if name == "split_fused" else FEW.get(name, 1)
    is_edge = bool({name, params.get("inner")} & CONTINUOUS)
    kinds = [kind for kind in cases.KINDS if not (kind == "grid" and is_edge)]
    for k in range(least, 6):
        yield kinds[k % len(kinds)], k, name not in WITHOUT_BASE and not (name in EITHER_WAY and k % 2)
    if "grid" in kinds:
        yield "grid", least, name not in WITHOUT_BASE


def merged_twice(name, params, kind, k, has_base):
    """Return what the strategy and its definition make of the same models."""
    base, models = cases.drawn(kind, k, len(name))
    if {name, params.get("inner")} & SPHERES:
        left_out = {"s", "conv.weight"}
        base, *models = ({n: x for n, x in each.items() if n not in left_out} for each in (base, *models))
    make = ARTEFACTS.get(name)
    made, read = make(models, np.random.default_rng(k)) if make else ((), {})
    digests = cases.DIGESTS[:k]
    weights = [1] * k if kind == "bf16" else cases.WEIGHTS[:k]
    found = merge_arrays(
        name, models[::-1], base if has_base else None, params, weights=weights[::-1], seed=SEED,
        digests=digests[::-1], artefacts=made,
    )  # fmt: skip
    exact = [{n: x.astype(np.float64) for n, x in each.items()} for each in (base, *models)]
    course = Course(
        models=exact[1:], weights=[float(w) for w in weights], digests=digests,
        base=exact[0] if has_base else None, params=params, seed=SEED, strategy=name, artefacts=read,
    )  # fmt: skip
    return found.tensors, DEFINITIONS[name](course)


def test_every_strategy_has_a_definition():
    assert set(DEFINITIONS) == set(names())


@pytest.mark.parametrize(("name", "text"), ALL, ids=[f"{name}[{text}]" for name, text in ALL])
def test_a_strategy_does_what_its_paper_defines(name, text):
    params = split(text)
    tolerance = TOLERANCES.get(name, 1e-9 if {name, params.get("inner")} & LOOSE else 1e-12)
    for kind, k, has_base in merges(name, params):
        found, expected = merged_twice(name, params, kind, k, has_base)
        for tensor, values in expected.items():
            scale = max(1.0, np.abs(values).max(initial=0.0))
            np.testing.assert_allclose(
                found[tensor], values, rtol=0, atol=tolerance * scale, err_msg=f"{kind}, k = {k}: {tensor}"
            )


@pytest.mark.parametrize("scope", ["elements", "tensor_means"])
@pytest.mark.parametrize("kind", cases.KINDS)
def test_the_models_of_tasks_are_what_emr_defines(kind, scope):
    base, models = cases.drawn(kind, 3, 1)
    exact = [{n: x.astype(np.float64) for n, x in each.items()} for each in (base, *models)]
    params, digests = {"rescale_scope": scope}, cases.DIGESTS[:3]
    course = Course(models=exact[1:], weights=[1.0] * 3, digests=digests, base=exact[0], params=params)
    for task, digest in enumerate(digests):
        found = merge_arrays("emr_merging", models, base, params, digests=digests, task=digest).tensors
        for tensor, values in DEFINITIONS["emr_merging"](course, task=task).items():
            np.testing.assert_allclose(found[tensor], values, rtol=0, atol=1e-12 * 4)
