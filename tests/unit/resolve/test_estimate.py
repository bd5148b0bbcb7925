"""What a merge is said to cost before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from crdt_merge_node.ports import SystemFs
from crdt_merge_node.resolve.estimate import estimate_job
from crdt_merge_node.resolve.merge import plan_files
from crdt_merge_node.resolve.offline import job_unread, read_inputs

from .test_starting import model

PROBED_BYTES = 4 << 20


class Ticking:
    """A clock on which whatever is measured takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


def test_the_reading_that_names_the_files_counts(tmp_path: Path):
    files = [model(tmp_path / f"{seed}", seed) for seed in range(2)]
    inputs = read_inputs(
        SystemFs(), files, strategy="linear", base=None, params=None, weights=None, dtype="", artefacts=[]
    )

    said = plan_files(files, strategy="linear", workers=0, clock=Ticking())
    of_the_rest = estimate_job(job_unread(inputs, memory_bytes=512 << 20, workers=0), clock=Ticking())

    assert said.seconds - of_the_rest.seconds == pytest.approx(inputs.nbytes / PROBED_BYTES)
    assert said.read_bytes - of_the_rest.read_bytes == inputs.nbytes
