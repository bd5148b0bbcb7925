"""Runs where PEFT is installed: sums of adapters, merges of tensors. Knows nothing of this project."""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import merge_utils

torch.set_num_threads(1)
DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16}
MERGES = ("ties", "dare_linear", "dare_ties")


class Model(torch.nn.Module):
    """One linear layer."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.up = torch.nn.Linear(columns, rows, bias=False, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x)


def main() -> None:
    """Answer the cases in argv[1] into argv[2]."""
    request = np.load(sys.argv[1])
    outputs = {}
    for case in json.loads(str(request["cases"])):
        name, dtype = case["id"], DTYPES[case["dtype"]]
        if case["kind"] in MERGES:
            taus = [torch.tensor(request[f"{name}/{i}"], dtype=dtype) for i in range(case["tensors"])]
            uniforms = [torch.tensor(request[f"{name}/u{i}"]) for i in range(case["uniforms"])]
            outputs[name] = merge_tensors(case, taus, uniforms).to(torch.float64).numpy()
            continue
        downs = [request[f"{name}/down{i}"] for i in range(case["adapters"])]
        ups = [request[f"{name}/up{i}"] for i in range(case["adapters"])]
        outputs[name] = merge(case, downs, ups)
    np.savez(sys.argv[2], **outputs)


def merge_tensors(case: dict, taus: list, uniforms: list) -> torch.Tensor:
    """Run one merge of tensors; its random masks compare with the given uniforms instead of fresh ones."""
    drawn = iter(uniforms)
    bernoulli = torch.bernoulli
    torch.bernoulli = lambda p: (next(drawn).to(torch.float64) < p.to(torch.float64)).to(p.dtype)
    try:
        weights = torch.tensor(case["weights"], dtype=taus[0].dtype)
        return getattr(merge_utils, case["kind"])(taus, weights, density=case["density"])
    finally:
        torch.bernoulli = bernoulli


def merge(case: dict, downs: list[np.ndarray], ups: list[np.ndarray]) -> np.ndarray:
    """Return the weight difference of the combined adapter."""
    names = [f"a{i}" for i in range(len(downs))]
    model = None
    for name, down, alpha in zip(names, downs, case["alphas"], strict=True):
        config = LoraConfig(r=down.shape[0], lora_alpha=alpha, target_modules=["up"])
        if model is None:
            model = get_peft_model(Model(ups[0].shape[0], down.shape[1]), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    layer = model.base_model.model.up
    for name, down, up in zip(names, downs, ups, strict=True):
        layer.lora_A[name].weight.data = torch.tensor(down, dtype=DTYPES[case["dtype"]])
        layer.lora_B[name].weight.data = torch.tensor(up, dtype=DTYPES[case["dtype"]])
    options = {"svd_rank": case["rank"]} if case["kind"] == "svd" else {}
    model.add_weighted_adapter(names, case["weights"], "m", combination_type=case["kind"], **options)
    layer.to(torch.float64)
    return layer.get_delta_weight("m").detach().to(torch.float64).numpy()


if __name__ == "__main__":
    main()
