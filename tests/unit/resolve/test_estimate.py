"""What a merge is said to cost before it begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node.checkpoints.reading import read_checkpoint
from crdt_merge_node.ports import SystemFs
from crdt_merge_node.resolve.describe import describe_file
from crdt_merge_node.resolve.estimate import estimate_job
from crdt_merge_node.resolve.merge import plan_files
from crdt_merge_node.resolve.offline import job_unread, read_inputs
from crdt_merge_node.resolve.plan import build_job, make_plan
from crdt_merge_protocol.blobs import FLOAT_DTYPES
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.strategies.artefacts import encode_header
from safetensors.numpy import save_file

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


def ones_of(path: Path) -> dict[str, np.ndarray]:
    """Tensors of the shapes that a model has."""
    entries = read_checkpoint(SystemFs(), path).entries
    return {e.spec.name: np.ones(e.spec.shape, np.float32) for e in entries if e.spec.dtype in FLOAT_DTYPES}


def fisher_of(path: Path, of: Path) -> Path:
    """A Fisher diagonal of ones."""
    tensors = ones_of(of)
    header = {"artefact": "fisher_diag/1", "subject": describe_file(of).digest.hex()}
    raw = encode_header(header | {"n_samples": 1, "label_mode": "sampled"})
    save_file({"artefact": np.frombuffer(raw, np.uint8), **tensors}, path)
    return path


def test_a_pass_over_artefacts_alone_reads_no_models(tmp_path: Path):
    files = [model(tmp_path / f"{seed}", seed) for seed in range(2)]
    artefacts = [fisher_of(tmp_path / f"f{path.name}", path) for path in files]
    nbytes = sum(values.nbytes for values in ones_of(files[0]).values())
    options = {"strategy": "fisher_merge", "artefacts": artefacts, "clock": Ticking()}

    one, two = (plan_files(files, **options, params={"normalize": n}) for n in ("none", "model_l2"))

    assert two.passes == one.passes + 1
    assert two.read_bytes - one.read_bytes == 2 * nbytes


def test_a_pass_over_artefacts_alone_asks_for_nothing_else(tmp_path: Path):
    files = [model(tmp_path / f"{seed}", seed) for seed in range(2)]
    artefacts = [fisher_of(tmp_path / f"f{path.name}", path) for path in files]
    inputs = read_inputs(
        SystemFs(), files, strategy="fisher_merge", base=None, params=None, weights=None, dtype="",
        artefacts=artefacts,
    )  # fmt: skip
    plan = make_plan(job_unread(inputs, memory_bytes=512 << 20, workers=0), cores=1)
    [batch] = plan.merge_batches()

    every = {source.path for source, _, _ in plan.reads(batch)}
    some = {source.path for source, _, _ in plan.reads(batch, has_models=False)}

    assert every == {str(path) for path in (*files, *artefacts)}
    assert some == {str(path) for path in artefacts}


def test_a_plan_says_what_may_be_tied_and_an_estimate_what_is(tmp_path: Path):
    """The headers of two files do not say whether a head is a copy of the embedding."""
    table = np.ones((256, 256), np.float32)
    files = []
    for seed in range(2):
        tensors = {"lm_head.weight": table * seed, "model.embed_tokens.weight": table * seed, "w": table}
        save_file(tensors, tmp_path / f"{seed}")
        files.append(tmp_path / f"{seed}")
    used = [describe_file(path) for path in files]
    schema = used[0].manifest.schema
    policy = Policy(strategy="linear", strategy_version=1, schema=schema.id)

    planned = plan_files(files, strategy="linear", clock=Ticking())
    job = build_job(policy, schema, [file.used for file in used], None, group_mode=True)
    known = estimate_job(job, clock=Ticking())

    [may_be], [is_one] = planned.warnings, known.warnings
    assert may_be.startswith("model.embed_tokens.weight is merged as one with lm_head.weight if all files")
    assert is_one.startswith("model.embed_tokens.weight is lm_head.weight in all inputs")
