"""Contributions in, one safetensors file out: plan, stream in worker processes, write atomically, account.

Start reading at ``run.run_job``. ``plan.build_job`` turns a policy and the contributions that count into a
job, for the daemon and for offline ``merge`` alike, which is why both write the same bytes.

The names below are loaded when first used: a worker process needs few of them, and ``status`` none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artefact_files import read_artefact_file
    from .describe import DescribedFile, check_against, describe_file
    from .estimate import Estimate, estimate_job
    from .files import read_header
    from .finite import scan_finite
    from .job import (
        KeptTensor,
        ModelInput,
        ResolveCancelledError,
        ResolveJob,
        ResolveResult,
        TensorSource,
        UsedArtefact,
        UsedModel,
    )
    from .merge import merge_files
    from .plan import build_job
    from .remembered import recall, remember
    from .reuse import find_finished
    from .run import run_job

__all__ = [
    "DescribedFile",
    "Estimate",
    "KeptTensor",
    "ModelInput",
    "ResolveCancelledError",
    "ResolveJob",
    "ResolveResult",
    "TensorSource",
    "UsedArtefact",
    "UsedModel",
    "build_job",
    "check_against",
    "describe_file",
    "estimate_job",
    "find_finished",
    "merge_files",
    "read_artefact_file",
    "read_header",
    "recall",
    "remember",
    "run_job",
    "scan_finite",
]

_HOMES = {
    "artefact_files": ("read_artefact_file",),
    "describe": ("DescribedFile", "check_against", "describe_file"),
    "estimate": ("Estimate", "estimate_job"),
    "files": ("read_header",),
    "finite": ("scan_finite",),
    "job": (
        "KeptTensor",
        "ModelInput",
        "ResolveCancelledError",
        "ResolveJob",
        "ResolveResult",
        "TensorSource",
        "UsedArtefact",
        "UsedModel",
    ),
    "merge": ("merge_files",),
    "plan": ("build_job",),
    "remembered": ("recall", "remember"),
    "reuse": ("find_finished",),
    "run": ("run_job",),
}


def __getattr__(name: str) -> Any:
    """Load the module that defines a public name."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
