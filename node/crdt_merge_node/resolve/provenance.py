"""The account beside an output: what was merged, how, by whom asked, and what came out. JSON."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from crdt_merge_protocol.limits import WEIGHT_ONE
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.strategies.artefacts import Artefact
from crdt_merge_protocol.strategies.parameters import Value, spell
from crdt_merge_protocol.strategies.registry import get

from crdt_merge_node.version import VERSION

from .job import ResolveJob, ResolveResult
from .modulators import ModulatorsFile
from .steps import Plan

PROVENANCE_SCHEMA: Final = "provenance/1"


def provenance_of(
    job: ResolveJob,
    plan: Plan,
    result: ResolveResult,
    modulators: ModulatorsFile | None = None,
    *,
    tensors: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the account of a finished resolve; ``tensors`` as ``Reuse.account`` yields it."""
    return {
        "schema": PROVENANCE_SCHEMA,
        "resolve_key": result.resolve_key.hex(),
        "used_root": used_root(model.digest for model in job.inputs).hex(),
        "output_digest": result.output_digest.hex(),
        "file": _file(job, plan, result),
        "tensors": list(tensors),
        "reused": {"tensors": result.reused_tensors, "nbytes": result.reused_bytes},
        "modulators": modulators
        and {
            "name": modulators.path.name,
            "sha256": modulators.sha256.hex(),
            "nbytes": modulators.nbytes,
        },
        "recipe": recipe_of(job, plan.context.params),
        "effective_strategy": {
            "strategy": plan.strategy,
            "version": get(plan.strategy).version,
            "reason": plan.stand_in_reason or None,
        },
        "inputs": [
            {
                "digest": model.digest.hex(),
                "content": model.content.hex(),
                "weight": model.weight,
                "role": _role(plan, model.digest),
            }
            for model in job.inputs
        ],
        "weight_one": WEIGHT_ONE,
        "artefacts": [_artefact(artefact) for artefact in plan.context.artefacts],
        "artefacts_not_used": dict(sorted(job.unfit.items())),
        "task": job.task.hex() or None,
        "decisions": dict(result.decisions),
        "numerics": numerics_of(result),
        "run": {
            "duration_s": round(result.duration_s, 3),
            "workers": plan.workers,
            "block_elements": plan.block_elements,
        },
        "facts": dict(job.facts),
    }


def _file(job: ResolveJob, plan: Plan, result: ResolveResult) -> dict[str, Any]:
    return {
        "name": result.output_path.name,
        "sha256": result.file_sha256.hex(),
        "nbytes": result.nbytes,
        "tensors": len(plan.tensors),
        "shard_bytes": job.shard_bytes,
        "files": [
            {"name": file.name, "sha256": file.sha256.hex(), "nbytes": file.nbytes} for file in result.files
        ],
    }


def _artefact(artefact: Artefact) -> dict[str, Any]:
    return {
        "digest": artefact.digest.hex(),
        "type": artefact.type,
        "subject": artefact.subject.hex() or None,
        "set_root": artefact.set_root.hex() or None,
    }


def writable(decisions: Mapping[str, Any]) -> dict[str, Any]:
    """Return decisions as JSON can hold them: numbers that are not finite become their names.

    Huge inputs make such numbers, and what an author contributes must not make the resolve of others fail.
    """
    return {name: _writable(value) for name, value in decisions.items()}


def _writable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return writable(value)
    if isinstance(value, list | tuple):
        return [_writable(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def numerics_of(result: ResolveResult) -> dict[str, Any]:
    """Return how alike an output is everywhere, and what computed it."""
    return {
        "class": result.profile,
        "release": VERSION,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def recipe_of(job: ResolveJob, effective: Mapping[str, Value]) -> dict[str, Any]:
    """Return all that decided an output besides its inputs; ``effective``: parameters, defaults filled in."""
    return {
        "digest": job.recipe_digest.hex(),
        "strategy": job.strategy,
        "strategy_version": get(job.strategy).version,
        "params": dict(sorted(job.params.items())),
        "effective_params": {name: spell(value) for name, value in sorted(effective.items())},
        "schema": job.schema.id.hex(),
        "base": job.base.content.hex() if job.base else None,
        "dtype": job.dtype,
        "seed": job.seed.hex(),
    }


def _role(plan: Plan, digest: bytes) -> str | None:
    """Return the role that an artefact gives a contribution, if one does."""
    return next(
        (a.header.get("role") for a in plan.context.artefacts if a.type == "role" and a.subject == digest),
        None,
    )
