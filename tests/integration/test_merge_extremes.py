"""Numbers at the ends of their type, which any author may contribute: no resolve of a group fails on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_node.resolve.describe import describe_file
from crdt_merge_node.resolve.plan import build_job
from crdt_merge_node.resolve.run import run_job
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.strategies.registry import get, plain_names

SHAPES = {"a.weight": (8, 10), "b.bias": (7,), "c.scale": ()}
K = 3
QUIET_NAN = "0x7ff8000000000000"
"""The one that outputs have: its sign would differ between processors."""


@pytest.fixture(scope="module", params=[1023, -1060], ids=["huge", "tiny"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and fine-tuned files with this exponent."""
    room = tmp_path_factory.mktemp("models")
    found = []
    for seed in range(K + 1):
        rng = np.random.default_rng(seed)
        tensors = {
            name: np.asarray(np.ldexp(rng.uniform(-1.9, 1.9, shape), request.param))
            for name, shape in SHAPES.items()
        }
        found.append(room / f"{seed}.safetensors")
        safetensors.numpy.save_file(tensors, found[-1])
    return found


@pytest.mark.parametrize("strategy", plain_names())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Overflow in between is the point.
def test_a_group_gets_a_result_of_one_kind_of_nan_and_an_account_from_any_numbers(
    models: list[Path], tmp_path: Path, strategy: str
) -> None:
    base, *used = (describe_file(path) for path in models)
    used = used[:1] if strategy == "passthrough" else used[: get(strategy).k_max]
    needs_base = get(strategy).base != "unused"
    schema = base.manifest.schema
    policy = Policy(
        strategy=strategy,
        strategy_version=get(strategy).version,
        schema=schema.id,
        base=base.manifest.content if needs_base else None,
    )
    job = build_job(
        policy, schema, [file.used for file in used], base.used if needs_base else None, group_mode=True
    )

    result = run_job(job, tmp_path / "out")

    for values in safetensors.numpy.load_file(result.output_path).values():
        assert not np.isinf(values).any()
        assert {hex(bits) for bits in values[np.isnan(values)].view(np.uint64)} <= {QUIET_NAN}
    assert json.loads(result.manifest_path.read_text())["decisions"] == dict(result.decisions)
