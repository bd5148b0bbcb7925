"""Scratch virtual environments, made once and kept under ``.nightly/oracles``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PLACE: Final = ROOT / ".nightly" / "oracles"
REQUIREMENTS: Final = {
    "crdt_merge": ("crdt-merge==0.11.0", "numpy==2.4.6"),
    "mergekit": ("mergekit==0.1.5", "torch==2.13.0", "peft==0.21.2"),
    "scipy": ("scipy==1.17.1", "numpy==2.4.6"),
    "fusion_bench": (
        "transformers==4.57.3", "datasets==3.6.0", "huggingface_hub<1", "tokenizers<0.23", "peft==0.17.1",
        "requests", "pytest", "torch==2.13.0", "omegaconf", "hydra-core", "lightning", "lightning-utilities",
        "rich", "scipy", "torchvision", "torchmetrics", "bidict", "matplotlib", "scikit-learn", "numpy",
    ),
}  # fmt: skip
WITHOUT_DEPENDENCIES: Final = {"fusion_bench": ("fusion-bench==0.2.33",)}


def python_of(name: str) -> Path:
    """Return the interpreter of an environment; make it first if it is not there or not whole.

    Raises:
        subprocess.CalledProcessError: It cannot be made; pip has said why.
    """
    place = PLACE / name
    python, done = place / "bin" / "python", place / ".done"
    if done.exists():
        return python
    shutil.rmtree(place, ignore_errors=True)
    PLACE.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    _install(python, REQUIREMENTS[name])
    if name in WITHOUT_DEPENDENCIES:
        _install(python, ("--no-deps", *WITHOUT_DEPENDENCIES[name]))
    done.touch()
    return python


def _install(python: Path, arguments: tuple[str, ...]) -> None:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv:
        command = [uv, "pip", "install", "--quiet", "--python", str(python), *arguments]
    else:
        command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
    subprocess.run(command, check=True)
