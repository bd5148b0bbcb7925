"""Ten engines in virtual time: whatever is killed, split and lost, the nodes agree once there is peace."""

import subprocess
import sys

import pytest
from crdt_merge_simulations.scenario import Settings, run


@pytest.mark.parametrize("seed", range(1, 13))
def test_ten_nodes_agree_after_kills_and_partitions(seed: int) -> None:
    verdict = run(Settings(nodes=10, seed=seed))

    assert verdict.violations == []
    assert verdict.converged_after_s is not None
    assert verdict.visible > 0


def test_a_quiet_cluster_sends_little() -> None:
    """Without work and faults only announcements and their repair cross the wire."""
    verdict = run(Settings(nodes=5, seed=3, operations=1, kills=0, partitions=0, duration_s=100.0))

    assert verdict.is_success
    per_node_and_second = verdict.bytes_sent / 5 / 100
    assert per_node_and_second < 200


def test_equal_seeds_give_equal_traces_under_any_hash_seed() -> None:
    """No iteration order of a set reaches a message, a hash or a draw (SCENARIOS 3)."""
    script = (
        "from crdt_merge_simulations.scenario import Settings, run\n"
        "print(run(Settings(nodes=6, seed=42, operations=30, duration_s=8.0)).trace)"
    )
    traces = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2", "777")
    }

    assert len(traces) == 1
