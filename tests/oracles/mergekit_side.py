"""Runs in the environment of mergekit: reads cases, merges, writes outputs. Knows nothing of this project."""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from mergekit import sparsify
from mergekit.merge_methods import merge_tensors

torch.set_num_threads(1)
DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Answer the cases in argv[1] (npz, with a JSON list under ``cases``) into argv[2]."""
    request = np.load(sys.argv[1])
    outputs = {}
    for case in json.loads(str(request["cases"])):
        name = case["id"]
        tensors = [torch.tensor(request[f"{name}/{i}"]) for i in range(case["tensors"])]
        tensors = [tensor.to(DTYPES[case["dtype"]]) for tensor in tensors]
        uniforms = [torch.tensor(request[f"{name}/u{i}"]) for i in range(case["uniforms"])]
        outputs[name] = merge(case, tensors, uniforms).to(torch.float64).numpy()
    np.savez(sys.argv[2], **outputs)


def merge(case: dict, tensors: list, uniforms: list) -> torch.Tensor:
    """Run one method; its random masks compare with the given uniforms instead of fresh ones."""
    drawn = iter(uniforms)
    bernoulli = torch.bernoulli
    if uniforms:
        sparsify.torch.bernoulli = lambda p: (next(drawn).to(torch.float64) < p.to(torch.float64)).to(p.dtype)
    try:
        return merge_tensors(
            tensors, case["method"], parameters=case["parameters"], base_index=case["base_index"]
        )
    finally:
        sparsify.torch.bernoulli = bernoulli


if __name__ == "__main__":
    main()
