"""Runs in the environment of fusion_bench: reads cases, merges, writes. Knows nothing of this project."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from fusion_bench.method.dop import dop as dop_module
from fusion_bench.method.emr_merging.utils import emr_merge
from fusion_bench.method.fisher_merging.fisher_merging import merging_with_fisher_weights
from fusion_bench.method.knots.knots_utils import subspace_alignment
from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
from fusion_bench.method.simple_average import simple_average
from fusion_bench.method.slerp.slerp_utils import slerp
from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging

torch.set_num_threads(1)
DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16}
Tensors = list[torch.Tensor]


def ties(taus: Tensors, _extra: Tensors, case: dict) -> torch.Tensor:
    """Merge whole vectors."""
    flat = torch.stack([tau.reshape(-1) for tau in taus])
    return ties_merging(flat, reset_thresh=case["percent"], merge_func=case["func"]).reshape(taus[0].shape)


def emr(taus: Tensors, _extra: Tensors, case: dict) -> torch.Tensor:
    """Return the model of one task."""
    unified, masks, rescalers = emr_merge([{"w": tau} for tau in taus])
    return rescalers[case["task"]] * masks["w"][case["task"]] * unified["w"]


def regmean(models: Tensors, grams: Tensors, case: dict) -> torch.Tensor:
    """Solve the regression."""
    merged = merging_with_regmean_weights(
        {"l.weight": models}, [{"l": gram} for gram in grams], reduce_non_diagonal_ratio=case["a"]
    )
    return merged["l.weight"]


def fisher(models: Tensors, fishers: Tensors, case: dict) -> torch.Tensor:
    """Weigh by Fisher information."""
    merged = merging_with_fisher_weights(
        {"w": models},
        [{"w": fisher} for fisher in fishers],
        torch.ones(len(models)) / len(models),
        normalize_fisher_weight=case["normalize"],
    )
    return merged["w"]


def knots(taus: Tensors, _extra: Tensors, case: dict) -> torch.Tensor:
    """Align, elect in the shared basis, return."""
    u, s, parts = subspace_alignment(taus, eps=1e-4)
    scaled = torch.stack([(torch.diag(s) @ part).reshape(-1) for part in parts])
    merged = ties_merging(scaled, reset_thresh=case["percent"], merge_func="dis-mean")
    return u @ merged.reshape(len(s), -1)


def average(models: Tensors, _extra: Tensors, _case: dict) -> torch.Tensor:
    """Average."""
    return simple_average(models)


def interpolated(models: Tensors, _extra: Tensors, case: dict) -> torch.Tensor:
    """Interpolate on the sphere."""
    return slerp(case["t"], *models)


def dop(taus: Tensors, _extra: Tensors, _case: dict) -> torch.Tensor:
    """Descend to the minimum of both projections."""
    return _descended(taus, alpha=0.5, mgda=False, num_steps=1500, lr=2e-3)


def dop_steps(taus: Tensors, _extra: Tensors, _case: dict) -> torch.Tensor:
    """Take the steps that are published, with shares that adapt."""
    return _descended(taus, alpha=0.8, mgda=True, ema=True, ema_beta=0.99, num_steps=200, lr=1e-4)


def _descended(taus: Tensors, **chosen: object) -> torch.Tensor:
    dop_module.tqdm = lambda steps, **_: steps
    kind = dop_module.ContinualDOPForCLIP
    method = kind.__new__(kind)
    # At 1.0 the rounding of a sum decides whether the last direction counts.
    for name, value in {**chosen, "svd_epsilon": 0.9, "svd_proj_space": "uv"}.items():
        setattr(method, name, value)
    method._fabric_instance = SimpleNamespace(world_size=1, to_device=lambda x: x, _loggers=[])
    return method._optimize_weight(torch.zeros_like(taus[0]), {"a": taus[0], "b": taus[1]}, "x", 1)


METHODS: dict[str, Callable[[Tensors, Tensors, dict], torch.Tensor]] = {
    "ties": ties,
    "emr": emr,
    "regmean": regmean,
    "fisher": fisher,
    "knots": knots,
    "simple_average": average,
    "slerp": interpolated,
    "dop": dop,
    "dop_steps": dop_steps,
}


def main() -> None:
    """Answer the cases in argv[1] into argv[2]."""
    request = np.load(sys.argv[1])
    outputs = {}
    for case in json.loads(str(request["cases"])):
        name, k = case["id"], case["k"]
        dtype = DTYPES[case["dtype"]]
        models = [torch.tensor(request[f"{name}/{i}"], dtype=dtype) for i in range(k)]
        extra = [
            torch.tensor(request[f"{name}/e{i}"], dtype=dtype) for i in range(k) if f"{name}/e{i}" in request
        ]
        outputs[name] = METHODS[case["method"]](models, extra, case).to(torch.float64).numpy()
    np.savez(sys.argv[2], **outputs)


if __name__ == "__main__":
    main()
