"""Every strategy through the driver: the bits of the reference, whatever does the work; tasks, stand-ins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_node.resolve.describe import describe_file
from crdt_merge_node.resolve.job import ResolveResult
from crdt_merge_node.resolve.merge import merge_files, plan_files
from crdt_merge_protocol.errors import (
    ArtefactInvalidError,
    ArtefactMissingError,
    ArtefactStaleError,
    ParameterError,
    ResolveError,
    RoleMissingError,
    UnsupportedCountError,
)
from crdt_merge_protocol.resolve_key import seed_of, used_root
from crdt_merge_protocol.strategies import registry
from crdt_merge_protocol.strategies.artefacts import encode_header
from crdt_merge_protocol.strategies.dtypes import encode_block
from crdt_merge_protocol.strategies.reference import merge_arrays

SHAPES = {"a.weight": (48, 40), "b.bias": (40,), "c.scale": (), "d.none": (0, 3)}
K = 5


def save(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    safetensors.numpy.save_file(tensors, path)
    return path


def random_model(seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    room = tmp_path_factory.mktemp("models")
    base = save(room / "base", random_model(0))
    return base, [save(room / f"model-{seed}", random_model(seed)) for seed in range(1, K + 1)]


def reference(strategy: str, base: Path | None, models: list[Path], **options: Any):
    described = [describe_file(path) for path in models]
    digests = [file.digest for file in described]
    return merge_arrays(
        strategy,
        [safetensors.numpy.load_file(path) for path in models],
        safetensors.numpy.load_file(base) if base else None,
        seed=seed_of(digests),
        digests=digests,
        is_strict=True,
        base_content=describe_file(base).manifest.content if base else b"",
        **options,
    )


def check_equal(result: ResolveResult, expected: Any) -> None:
    found = safetensors.numpy.load_file(result.output_path)
    for name, values in expected.tensors.items():
        assert found[name].tobytes() == encode_block("F32", values.reshape(-1)), name


@pytest.mark.parametrize("strategy", registry.plain_names())
def test_files_are_merged_as_the_reference_merges_arrays(files, tmp_path: Path, strategy: str):
    base, models = files
    chosen = registry.get(strategy)
    models = models[: chosen.k_max]
    if strategy == "passthrough":
        models = models[:1]
    used_base = None if chosen.base == "unused" else base
    try:
        expected = reference(strategy, used_base, models)
    except ArtefactMissingError as error:
        with pytest.raises(ResolveError, match=error.message[:20].replace("(", ".").replace(")", ".")):
            merge_files(models, tmp_path / "out", strategy=strategy, base=used_base)
        return

    check_equal(merge_files(models, tmp_path / "out", strategy=strategy, base=used_base), expected)


LARGE = {"a.weight": (700, 2001), "b.flat": (1_200_001,)}
ROWS = ("della", "model_breadcrumbs", "emr_merging")


@pytest.mark.parametrize("strategy", ROWS)
def test_large_rows_and_tensors_come_out_the_same_from_worker_processes(tmp_path: Path, strategy: str):
    base = save(tmp_path / "base", random_model(0, LARGE))
    models = [save(tmp_path / f"m{seed}", random_model(seed, LARGE)) for seed in (1, 2)]

    one = merge_files(models, tmp_path / "one", strategy=strategy, base=base, workers=0)
    two = merge_files(models[::-1], tmp_path / "two", strategy=strategy, base=base, workers=2)

    assert one.output_digest == two.output_digest
    assert one.file_sha256 == two.file_sha256
    check_equal(one, reference(strategy, base, models))


def test_a_common_model_comes_with_what_makes_the_model_of_each_task(files, tmp_path: Path):
    base, models = files
    common = merge_files(models[:3], tmp_path / "out", strategy="emr_merging", base=base)
    digests = [describe_file(path).digest for path in models[:3]]
    assert common.modulators_path == tmp_path / "out.modulators.safetensors"
    modulators = safetensors.numpy.load_file(common.modulators_path)
    header = json.loads(modulators["modulators"].tobytes())
    account = json.loads(common.manifest_path.read_text())

    assert header["resolve_key"] == common.resolve_key.hex() == account["resolve_key"]
    assert header["decisions"]["gamma"].keys() == {digest.hex() for digest in digests}
    assert account["modulators"]["nbytes"] == common.modulators_path.stat().st_size
    for path, digest in zip(models[:3], digests, strict=True):
        task = merge_files(models[:3], tmp_path / "task", strategy="emr_merging", base=base, task=str(path))
        check_equal(task, reference("emr_merging", base, models[:3], task=digest))
        assert task.modulators_path is None
        assert task.resolve_key != common.resolve_key
        found = safetensors.numpy.load_file(tmp_path / "task")
        for name, values in safetensors.numpy.load_file(base).items():
            if values.size:
                mask = np.packbits((found[name] != values).reshape(-1))
                assert modulators[f"{digest.hex()}/{name}"].tobytes() == mask.tobytes()


def test_a_task_is_refused_where_there_is_no_such_thing(files, tmp_path: Path):
    base, models = files
    with pytest.raises(ParameterError, match="one model, not one for each task"):
        merge_files(models, tmp_path / "out", strategy="ties", base=base, task=str(models[0]))
    with pytest.raises(ParameterError, match="none of the files"):
        merge_files(models, tmp_path / "out", strategy="emr_merging", base=base, task="nobody")


def fisher(path: Path, model: Path, value: float = 1.0) -> Path:
    header = {
        "artefact": "fisher_diag/1",
        "subject": describe_file(model).digest.hex(),
        "n_samples": 3,
        "label_mode": "expected",
    }
    tensors = {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}
    return save(path, tensors | {"artefact": np.frombuffer(encode_header(header), np.uint8)})


def lambda_table(path: Path, models: list[Path]) -> Path:
    digests = sorted(describe_file(model).digest for model in models)
    header = {
        "artefact": "lambda_table/1",
        "set_root": used_root(digests).hex(),
        "contributions": [digest.hex() for digest in digests],
        "rows": [{"match": "*", "lambda": ["0.5"] * len(digests)}],
    }
    return save(path, {"artefact": np.frombuffer(encode_header(header), np.uint8)})


def test_what_is_missing_is_an_error_and_a_stand_in_only_on_request(files, tmp_path: Path):
    base, models = files
    one = fisher(tmp_path / "one", models[0])
    options: dict[str, Any] = {"strategy": "fisher_merge", "base": base, "artefacts": [one]}
    lacking = describe_file(models[1]).digest.hex()[:12]

    with pytest.raises(ArtefactMissingError, match=f"no fisher_diag for contribution {lacking}"):
        merge_files(models[:2], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    stood_in = merge_files(
        models[:2], tmp_path / "out", **options, params={"fallback": "ties", "fallback.density": "0.50"}
    )
    account = json.loads(stood_in.manifest_path.read_text())

    check_equal(stood_in, reference("ties", base, models[:2], params={"density": "0.5"}))
    assert stood_in.effective_strategy == "ties"
    assert account["effective_strategy"]["strategy"] == "ties"
    assert lacking in account["effective_strategy"]["reason"]
    assert account["recipe"]["strategy"] == "fisher_merge"
    assert account["recipe"]["params"] == {"fallback": "ties", "fallback.density": "0.5"}
    assert any("ties stood in for fisher_merge" in warning for warning in stood_in.warnings)


def test_what_was_made_for_another_set_is_stale(files, tmp_path: Path):
    base, models = files
    table = lambda_table(tmp_path / "table", models[:2])
    options: dict[str, Any] = {"strategy": "ada_merging", "base": base, "artefacts": [table]}

    fresh = merge_files(models[:2], tmp_path / "fresh", **options)
    with pytest.raises(ArtefactStaleError, match="made for another set"):
        merge_files(models[:3], tmp_path / "out", **options)

    assert fresh.effective_strategy == "ada_merging"
    check_equal(fresh, reference("task_arithmetic", base, models[:2], params={"lambda": "0.5"}))


@pytest.mark.parametrize(
    ("strategy", "count", "error"),
    [
        ("krum", 2, UnsupportedCountError),
        ("negative_merge", 2, RoleMissingError),
        ("regmean", 2, ArtefactMissingError),
        ("ada_merging", 2, ArtefactMissingError),
    ],
)
def test_each_want_has_its_own_error(
    files, tmp_path: Path, strategy: str, count: int, error: type[Exception]
):
    base, models = files
    with pytest.raises(error, match=strategy):
        merge_files(models[:count], tmp_path / "out", strategy=strategy, base=base)


def test_two_artefacts_for_one_purpose_and_wrong_values_are_refused(files, tmp_path: Path):
    _, models = files
    one, two = fisher(tmp_path / "1", models[0]), fisher(tmp_path / "2", models[0], 2.0)
    with pytest.raises(ParameterError, match="of the same"):
        merge_files(models[:1], tmp_path / "out", strategy="fisher_merge", artefacts=[one, two])
    with pytest.raises(ArtefactInvalidError, match="no fisher_diag holds"):
        merge_files(
            models[:1],
            tmp_path / "out",
            strategy="fisher_merge",
            artefacts=[fisher(tmp_path / "3", models[0], -1.0)],
        )


def test_an_artefact_that_was_given_in_vain_is_said(files, tmp_path: Path):
    _, models = files
    foreign = fisher(tmp_path / "foreign", models[3])
    for strategy, reason in (("linear", "linear does not work with"), ("fisher_merge", "which it is of")):
        found = merge_files(
            models[:2],
            tmp_path / "out",
            strategy=strategy,
            params={"fallback": "linear"} if strategy == "fisher_merge" else {},
            artefacts=[foreign],
        )
        assert [reason in warning for warning in found.warnings if "was not used" in warning] == [True]


def test_artefacts_that_were_chosen_are_part_of_the_key(files, tmp_path: Path):
    _, models = files
    keys = {
        merge_files(
            models[:1],
            tmp_path / "out",
            strategy="fisher_merge",
            artefacts=[fisher(tmp_path / "f", models[0], v)],
        ).resolve_key
        for v in (1.0, 2.0)
    }

    assert len(keys) == 2


def test_a_plan_is_made_of_headers_alone(files, tmp_path: Path):
    base, models = files
    one, two = (fisher(tmp_path / f"f{i}", models[i]) for i in range(2))
    found = plan_files(
        models[:2], strategy="fisher_merge", artefacts=[one, two], params={"normalize": "none"}
    )
    numel = sum(int(np.prod(shape)) for shape in SHAPES.values())

    assert (found.tensors, found.merged_tensors, found.passes, found.workers) == (4, 4, 2, 0)
    headers = 2 * len(safetensors.numpy.load_file(one)["artefact"])
    assert found.read_bytes == 2 * 4 * numel * 4 + headers
    assert found.determinism == "bitwise"
    assert found.seconds >= 0
    assert not list(tmp_path.glob("out*"))
    with pytest.raises(ArtefactMissingError):
        plan_files(models[:2], strategy="fisher_merge", artefacts=[one])
    assert plan_files(models, strategy="ties", base=base).passes >= 2
