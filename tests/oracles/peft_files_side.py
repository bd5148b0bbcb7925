"""Runs where PEFT is installed: saves adapters, loads what became of them. Knows nothing of this project."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

torch.set_num_threads(1)
CONFIGS = (
    {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q", "k", "embed"],
        "rank_pattern": {"layers.1.q": 2},
        "alpha_pattern": {"layers.0.q": 3},
        "modules_to_save": ["score"],
        "bias": "all",
    },
    {"r": 3, "lora_alpha": 5, "target_modules": ["q", "conv"], "use_rslora": True},
    {"r": 2, "lora_alpha": 2, "target_modules": "all-linear", "exclude_modules": ["score"]},
)
DORA = {"r": 3, "lora_alpha": 5, "target_modules": ["q", "embed", "conv"], "use_dora": True}


class Block(torch.nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.q = torch.nn.Linear(16, 24)
        self.k = torch.nn.Linear(16, 16)


class Model(torch.nn.Module):
    """One layer of every kind that has adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(30, 16)
        self.layers = torch.nn.ModuleList([Block(), Block()])
        self.conv = torch.nn.Conv2d(3, 5, 3)
        self.score = torch.nn.Linear(16, 2)


def main() -> None:
    """Answer the case in argv[1] into argv[2]."""
    (case,) = json.loads(str(np.load(sys.argv[1])["cases"]))
    place = Path(case["place"])
    torch.manual_seed(case["seed"])
    base = Model()
    if case["load"]:
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(place / case["load"]))
        np.savez(sys.argv[2], **weights(loaded.merge_and_unload()))
        return
    found = {f"base/{name}": values for name, values in weights(base).items()}
    save_file(base.state_dict(), place / "base.safetensors")
    for number, config in [*enumerate(CONFIGS), ("dora", DORA)]:
        model = get_peft_model(copy.deepcopy(base), LoraConfig(**config))
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                torch.nn.init.normal_(parameter)
            if "magnitude" in name:
                torch.nn.init.uniform_(parameter, 0.5, 2.0)
        saved = str(place / f"a{number}")
        model.save_pretrained(saved)
        alone = PeftModel.from_pretrained(copy.deepcopy(base), saved).merge_and_unload()
        found |= {f"{number}/{name}": values for name, values in weights(alone).items()}
    np.savez(sys.argv[2], **found)


def weights(model: torch.nn.Module) -> dict:
    """Return all parameters."""
    return {name: values.detach().double().numpy() for name, values in model.state_dict().items()}


if __name__ == "__main__":
    main()
