"""The account beside a merge of adapters: the JSON as beside one of whole models, and what is special."""

from __future__ import annotations

import dataclasses
from typing import Any

from crdt_merge_protocol.limits import WEIGHT_ONE
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.strategies.registry import get

from crdt_merge_node.resolve.job import OutputFile, ResolveJob, ResolveResult
from crdt_merge_node.resolve.provenance import PROVENANCE_SCHEMA, numerics_of, recipe_of

from .sinks import Written
from .writing import Outcome


def account_of(job: ResolveJob, result: ResolveResult, written: Written, outcome: Outcome) -> dict[str, Any]:
    """Return the account of a finished merge of adapters, ``provenance/1``."""
    assert job.adapters is not None, "of whole models the account is made elsewhere"
    effective = result.effective_strategy
    return {
        "schema": PROVENANCE_SCHEMA,
        "resolve_key": result.resolve_key.hex(),
        "used_root": used_root(adapter.digest for adapter in job.inputs).hex(),
        "output_digest": result.output_digest.hex(),
        "file": {
            "name": result.output_path.name,
            "sha256": result.file_sha256.hex(),
            "nbytes": result.nbytes,
            "tensors": written.tensors,
            "shard_bytes": job.shard_bytes,
            "files": [_file(file) for file in result.files],
        },
        "modulators": None,
        "recipe": recipe_of(job, get(job.strategy).validate(job.params)),
        "effective_strategy": {
            "strategy": effective,
            "version": get(effective).version,
            "reason": None if effective == job.strategy else "see the decisions",
        },
        "inputs": [
            {"digest": each.digest.hex(), "content": each.content.hex(), "weight": each.weight, "role": None}
            for each in job.inputs
        ],
        "weight_one": WEIGHT_ONE,
        "artefacts": [],
        "artefacts_not_used": {},
        "task": None,
        "adapters": {
            **dataclasses.asdict(job.adapters.rules),
            "base_name": job.adapters.merge.base_name,
            "modules": len(job.adapters.merge.found.modules),
            "ranks": outcome.ranks,
            "dropped": outcome.dropped,
        },
        "decisions": dict(result.decisions),
        "numerics": numerics_of(result),
        "run": {"duration_s": round(result.duration_s, 3), "workers": 0, "block_elements": 0},
        "facts": dict(job.facts),
    }


def _file(file: OutputFile) -> dict[str, Any]:
    return {"name": file.name, "sha256": file.sha256.hex(), "nbytes": file.nbytes}
