"""Runs where mergekit is: makes small models, merges them by YAML. Knows nothing of this project."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors.numpy import load_file
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
OPTIONS = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)


def main() -> None:
    """Answer the case in argv[1] into argv[2]; the models stay in its place."""
    (case,) = json.loads(str(np.load(sys.argv[1])["cases"]))
    place = Path(case["place"])
    shape = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=5,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=32,
        tie_word_embeddings=False,
    )
    for number, name in enumerate(case["models"]):
        torch.manual_seed(case["seed"] + number)
        model = LlamaForCausalLM(shape)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(place / name, safe_serialization=True)
    found = {}
    for name, text in case["configurations"].items():
        settings = yaml.safe_load(text.replace("PLACE", str(place)))
        run_merge(MergeConfiguration.model_validate(settings), str(place / f"{name}.out"), OPTIONS)
        for file in (place / f"{name}.out").glob("*.safetensors"):
            found |= {f"{name}/{tensor}": values for tensor, values in load_file(file).items()}
    np.savez(sys.argv[2], **found)


if __name__ == "__main__":
    main()
