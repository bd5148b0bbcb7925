"""Tensors that are one under two names are merged once and stay one (STRATEGIES 1.5)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_node.resolve.describe import describe_file
from crdt_merge_node.resolve.merge import merge_files, plan_files
from crdt_merge_node.resolve.plan import build_job, make_plan
from crdt_merge_node.resolve.run import run_job
from crdt_merge_node.resolve.tied import ELEMENTS_MIN, find_tied
from crdt_merge_protocol.policy import Policy

EMBEDDING, HEAD, OTHER = "model.embed_tokens.weight", "lm_head.weight", "model.layer.weight"
SHAPE = (300, 257)


def tensors_of(seed: int, *, shape: tuple[int, ...] = SHAPE) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal(shape).astype(np.float32)
    other = rng.standard_normal(SHAPE).astype(np.float32)
    return {EMBEDDING: shared, HEAD: shared, OTHER: other, "norm.weight": np.ones(70_000, np.float32)}


def save(path: Path, seed: int, *, shape: tuple[int, ...] = SHAPE, **changes: np.ndarray) -> Path:
    tensors = {**tensors_of(seed, shape=shape), **changes}
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, list[Path]]:
    """(base, two fine-tuned models) with tied embeddings."""
    return save(tmp_path / "base", 0), [save(tmp_path / f"in{seed}", seed) for seed in (1, 2)]


def account(output: Path) -> dict:
    return json.loads(output.with_name(output.name + ".provenance.json").read_text())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("strategy", ["dare", "dare_ties", "della", "linear", "ties", "emr_merging", "star"])
def test_what_was_tied_stays_tied(models, tmp_path: Path, strategy: str, workers: int):
    """Masks depend on names, so a merge of the two apart would untie them."""
    base, files = models
    merge_files(files, tmp_path / "out", strategy=strategy, base=base, workers=workers)

    found = safetensors.numpy.load_file(tmp_path / "out")
    np.testing.assert_array_equal(found[EMBEDDING], found[HEAD])
    assert not np.array_equal(found[EMBEDDING], safetensors.numpy.load_file(base)[EMBEDDING])
    assert account(tmp_path / "out")["decisions"]["tied"] == {EMBEDDING: HEAD}


def test_a_tensor_that_differs_in_one_input_is_merged_apart(models, tmp_path: Path):
    base, files = models
    changed = tensors_of(2)[HEAD].copy()
    changed[-1, -1] += 1
    files = [files[0], save(tmp_path / "in2", 2, **{HEAD: changed})]

    merge_files(files, tmp_path / "out", strategy="dare", base=base)

    found = safetensors.numpy.load_file(tmp_path / "out")
    assert (found[EMBEDDING] != found[HEAD]).sum() > 1_000
    assert "tied" not in account(tmp_path / "out")["decisions"]


def test_they_count_once_in_what_is_found_of_the_whole_model(models, tmp_path: Path):
    """A model without the copies is trimmed to the same largest changes."""
    base, files = models
    options = {"strategy": "ties", "params": {"scope": "model"}}
    single = []
    for path in (base, *files):
        tensors = safetensors.numpy.load_file(path)
        del tensors[EMBEDDING]
        safetensors.numpy.save_file(tensors, tmp_path / f"{path.name}-single")
        single.append(tmp_path / f"{path.name}-single")

    merge_files(files, tmp_path / "out", base=base, **options)
    merge_files(single[1:], tmp_path / "single", base=single[0], **options)

    found, alone = (safetensors.numpy.load_file(tmp_path / name) for name in ("out", "single"))
    assert found.keys() - alone.keys() == {EMBEDDING}
    for name, values in alone.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("shape", [(255, 257), (ELEMENTS_MIN,), (64, 32, 64)])
def test_small_ones_and_what_is_no_matrix_may_be_equal_by_coincidence(tmp_path: Path, shape):
    base = save(tmp_path / "base", 0, shape=shape)
    files = [save(tmp_path / f"in{seed}", seed, shape=shape) for seed in (1, 2)]

    merge_files(files, tmp_path / "out", strategy="dare", base=base)

    found = safetensors.numpy.load_file(tmp_path / "out")
    assert not np.array_equal(found[EMBEDDING], found[HEAD])


def test_what_a_parameter_tells_apart_is_merged_apart_and_said(models, tmp_path: Path):
    base, files = models
    params = {"weight": f"{HEAD}=0.5;1"}

    result = merge_files(files, tmp_path / "out", strategy="task_arithmetic", base=base, params=params)

    found = safetensors.numpy.load_file(tmp_path / "out")
    assert not np.array_equal(found[EMBEDDING], found[HEAD])
    assert [text for text in result.warnings if "merged apart: a parameter tells them apart" in text]
    assert "tied" not in result.decisions


def test_a_parameter_that_treats_both_alike_keeps_them_tied(models, tmp_path: Path):
    base, files = models
    params = {"weight": f"{HEAD}=0.5;{EMBEDDING}=0.5;1"}

    result = merge_files(files, tmp_path / "out", strategy="dare", base=base, params=params)

    found = safetensors.numpy.load_file(tmp_path / "out")
    np.testing.assert_array_equal(found[EMBEDDING], found[HEAD])
    assert result.warnings == ()


def test_an_embedding_leads_whatever_its_name(tmp_path: Path):
    """Matrix methods leave embeddings alone: a head that is tied to one is one."""
    for seed in range(3):
        tensors = tensors_of(seed)
        tensors["head.weight"] = tensors.pop(HEAD)
        safetensors.numpy.save_file(tensors, tmp_path / f"in{seed}")

    result = merge_files([tmp_path / "in1", tmp_path / "in2"], tmp_path / "out", strategy="linear")

    assert result.decisions["tied"] == {"head.weight": EMBEDDING}


def test_what_is_taken_over_from_an_earlier_output_is_tied_as_it_was(models, tmp_path: Path):
    base, files = models
    options = {"strategy": "dare", "base": base, "reuses": True, "params": {"seed_scope": "contribution"}}
    first = merge_files(files, tmp_path / "out", **options)
    again = merge_files(files, tmp_path / "out", **options)
    plain = merge_files(files, tmp_path / "plain", **options | {"reuses": False})

    assert again.reused_tensors == 4
    assert {first.file_sha256, again.file_sha256} == {plain.file_sha256}
    assert again.decisions == plain.decisions

    untied = tensors_of(2)[EMBEDDING] * np.float32(1.5)
    files = [files[0], save(tmp_path / "in2", 2, **{EMBEDDING: untied})]
    third = merge_files(files, tmp_path / "out", **options)
    fresh = merge_files(files, tmp_path / "fresh", **options | {"reuses": False})
    assert third.file_sha256 == fresh.file_sha256


def test_passes_see_tied_elements_once(models):
    base, files = models
    plan = make_plan(job_of(files, base, "dare_ties"), cores=1)
    plan = replace(plan, alone=frozenset())  # Else those that are not tied are measured by themselves.
    batches = plan.observe_batches([True] * len(plan.context.specs), lambda _index, span: [span])

    seen = {plan.tensors[span.tensor].spec.name for batch in batches for span in batch}
    assert plan.tied == {EMBEDDING: HEAD}
    assert seen == {HEAD, OTHER, "norm.weight"}
    assert [spec.name for spec in plan.context.specs] == [HEAD, OTHER, "norm.weight"]


def job_of(files: list[Path], base: Path | None, strategy: str):
    described = [describe_file(path) for path in files]
    of = describe_file(base) if base else None
    schema = described[0].manifest.schema
    policy = Policy(strategy=strategy, schema=schema.id, base=of.manifest.content if of else None)
    return build_job(
        policy, schema, [file.used for file in described], of.used if of else None, group_mode=True
    )


def test_a_group_ties_what_merge_does(models, tmp_path: Path):
    base, files = models
    offline = merge_files(files, tmp_path / "offline", strategy="dare", base=base)
    group = run_job(job_of(files, base, "dare"), tmp_path / "group")

    assert group.file_sha256 == offline.file_sha256
    assert group.decisions["tied"] == {EMBEDDING: HEAD}


def test_a_base_that_is_not_read_and_may_not_be_here_decides_nothing(models, tmp_path: Path):
    base, files = models
    apart = save(tmp_path / "apart", 0, **{HEAD: tensors_of(5)[HEAD]})

    for each in (base, apart):
        job = job_of(files, each, "linear")
        assert job.base is not None
        absent = replace(job, base=replace(job.base, tensors={}))
        assert find_tied(absent, {}).leaders == {EMBEDDING: HEAD}
    assert find_tied(job_of(files, apart, "ties"), {}).leaders == {}


def test_with_artefacts_other_than_roles_all_is_merged_apart_and_said(models):
    base, files = models
    job = job_of(files, base, "ties")
    by_type = {
        kind: find_tied(replace(job, artefacts=(SimpleNamespace(artefact=SimpleNamespace(type=kind)),)), {})
        for kind in ("role", "fisher_diag")
    }

    assert by_type["role"].leaders == {EMBEDDING: HEAD}
    assert by_type["fisher_diag"].leaders == {}
    assert "artefacts speak of tensors" in by_type["fisher_diag"].warnings[0]


def test_an_estimate_from_headers_takes_nothing_for_equal(models):
    base, files = models

    [told] = plan_files(files, strategy="dare", base=base).warnings
    assert "if all files hold the same in both; here each counts" in told
