"""No author can make a resolve of a group fail (STRATEGIES 1.12, SCENARIOS S16, B60)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node.ports import SystemFs
from crdt_merge_node.resolve.files import read_header, read_tensor
from crdt_merge_node.resolve.run import run_job
from hypothesis import given
from hypothesis import strategies as st
from support.attacks import NUMPY, Attack, attack
from support.conformance import EVERY
from support.profile import examples

QUIET_NAN = 0x7FF8_0000_0000_0000
"""The one that outputs have: its sign would differ between processors."""


def values_of(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of an output, as float64."""
    fs = SystemFs()
    return {
        entry.spec.name: np.frombuffer(read_tensor(fs, path, entry), NUMPY[entry.spec.dtype]).astype(float)
        for entry in read_header(fs, path).entries
    }


def holds_float64(made: Attack) -> bool:
    """Tell whether squares of what it holds may be beyond float64, in which everything is computed."""
    models = [*made.models, *([made.base] if made.base else [])]
    return any(entry.spec.dtype == "F64" for model in models for entry in model.manifest.entries)


@EVERY
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Overflow in between is the point.
@examples(12)
@given(seed=st.integers(0, 2**32))
def test_no_author_can_make_a_resolve_fail(
    name: str, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = attack(name, seed)

    result = run_job(made.job(), tmp_path_factory.getbasetemp() / "attacked")

    assert json.loads(result.manifest_path.read_text())["decisions"] == dict(result.decisions)
    for values in values_of(result.output_path).values():
        assert not np.isinf(values).any()
        if holds_float64(made):
            assert {int(bits) for bits in values[np.isnan(values)].view(np.uint64)} <= {QUIET_NAN}
        else:
            assert not np.isnan(values).any()


def test_attacks_reach_what_they_are_for() -> None:
    """Otherwise the property above would hold of little."""
    made = [attack(name, seed) for name in ("ties", "fisher_merge", "genetic_merge") for seed in range(60)]
    specs = [spec for each in made for spec in each.schema.specs]
    weights = {model.weight for each in made for model in each.models}

    assert {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "BOOL"} <= {s.dtype for s in specs}
    assert {(), (0,), (0, 3), (3, 2, 1, 2)} <= {spec.shape for spec in specs}
    assert {1, 2, 3} <= {len(each.models) for each in made}
    assert len(weights) > 50
    assert {"", "any", "any:F16", "F32"} <= {each.dtype for each in made}
    assert {"fisher_diag", "genome"} <= {item.artefact.type for each in made for item in each.artefacts}
    assert any("=" in text for each in made for text in each.params.values())
