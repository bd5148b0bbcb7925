"""Carrying out a job in this process: bytes, digests, account, cancel, and nothing half-written."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_node.errors import CorruptError, FullError, StorageError
from crdt_merge_node.ports import DiskSpace, SystemFs
from crdt_merge_node.resolve.job import ResolveCancelledError, TensorSource, UsedModel
from crdt_merge_node.resolve.plan import build_job
from crdt_merge_node.resolve.run import run_job
from crdt_merge_protocol.blobs import (
    Manifest,
    ManifestEntry,
    Schema,
    TensorSpec,
    blob_digest_of,
    contribution_digest,
)
from crdt_merge_protocol.canonical import digest, encode
from crdt_merge_protocol.errors import OverflowRefusedError
from crdt_merge_protocol.limits import WEIGHT_ONE
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.resolve_key import used_root

SPECS = (
    TensorSpec(name="b.weight", dtype="F32", shape=(4, 3)),
    TensorSpec(name="a", dtype="F32", shape=(5,)),
    TensorSpec(name="ids", dtype="I32", shape=(2,)),
    TensorSpec(name="one", dtype="F32", shape=()),
    TensorSpec(name="none", dtype="F32", shape=(0, 3)),
)
SCHEMA = Schema.of(SPECS)


def used(values: dict[str, np.ndarray], weight: int = WEIGHT_ONE, schema: Schema = SCHEMA) -> UsedModel:
    data = {name: array.tobytes() for name, array in values.items()}
    manifest = Manifest.of(
        ManifestEntry(spec=spec, blob=blob_digest_of(data[spec.name])) for spec in schema.specs
    )
    sources = {name: TensorSource(None, 0, len(raw), raw) for name, raw in data.items()}
    name = contribution_digest(kind="model", content=manifest.content, weight=weight)
    return UsedModel(name, weight, manifest, sources)


def values(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    floats = {spec.name: rng.standard_normal(spec.shape, np.float32) for spec in SPECS if spec.dtype == "F32"}
    return {name: np.asarray(array) for name, array in floats.items()} | {"ids": np.array([3, 4], "<i4")}


def make_job(models=None, **options):
    policy = Policy(strategy="weight_average", schema=SCHEMA.id, dtype=options.pop("dtype", ""))
    models = [used(values(seed)) for seed in range(3)] if models is None else models
    return build_job(policy, SCHEMA, models, None, **{"group_mode": True, **options})


def names_in(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


def test_the_output_is_read_by_the_safetensors_library(tmp_path: Path):
    run_job(make_job(), tmp_path / "out.safetensors")

    found = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    assert sorted(found) == ["a", "b.weight", "ids", "none", "one"]
    for name in ("a", "b.weight", "one", "none"):
        mean = sum(values(seed)[name].astype(np.float64) for seed in range(3)) / 3
        np.testing.assert_allclose(found[name], mean, rtol=1e-6)
        assert found[name].shape == values(0)[name].shape
    assert found["ids"].tolist() == [3, 4]


def test_digests_are_taken_on_the_way_and_are_right(tmp_path: Path):
    """STRATEGIES 1.11: over sorted (name, dtype, shape, blob digest); and the file's own SHA-256."""
    result = run_job(make_job(), tmp_path / "out.safetensors")

    raw = (tmp_path / "out.safetensors").read_bytes()
    found = safetensors.numpy.load(raw)
    lines = [
        [spec.name, spec.dtype, list(spec.shape), blob_digest_of(found[spec.name].tobytes())]
        for spec in SCHEMA.specs
    ]
    assert result.file_sha256 == hashlib.sha256(raw).digest()
    assert result.nbytes == len(raw)
    assert result.output_digest == digest("crdt-merge/output/1", encode(lines))


def test_the_account_beside_the_output_says_what_was_done(tmp_path: Path):
    job = make_job(facts={"group": "g"})
    result = run_job(job, tmp_path / "out.safetensors")

    account = json.loads(result.manifest_path.read_text())
    assert names_in(tmp_path) == ["out.safetensors", "out.safetensors.provenance.json"]
    assert account["schema"] == "provenance/1"
    assert account["resolve_key"] == job.resolve_key.hex()
    assert account["output_digest"] == result.output_digest.hex()
    assert account["file"]["sha256"] == result.file_sha256.hex()
    assert [item["digest"] for item in account["inputs"]] == [model.digest.hex() for model in job.inputs]
    assert account["used_root"] == used_root(model.digest for model in job.inputs).hex()
    assert account["weight_one"] == 1 << 32
    assert account["recipe"]["strategy"] == "weight_average"
    assert account["recipe"]["strategy_version"] == 1
    assert account["numerics"].keys() == {"class", "release", "numpy", "python", "machine"}
    assert account["recipe"]["seed"] == job.seed.hex()
    assert account["decisions"]["determinism"] == "bitwise"
    assert account["facts"] == {"group": "g"}


def test_progress_counts_bytes_up_to_the_whole(tmp_path: Path):
    seen: list[tuple[int, int, str]] = []
    run_job(make_job(), tmp_path / "out", progress=lambda *step: seen.append(step))

    done = [step[0] for step in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1][1] == 8 + 3 * 4 * (12 + 5 + 1)
    assert [step[2] for step in seen][-2:] == ["merging", "writing to disk"]


def test_a_cancelled_resolve_changes_no_file(tmp_path: Path):
    (tmp_path / "out").write_text("before")

    with pytest.raises(ResolveCancelledError):
        run_job(make_job(), tmp_path / "out", cancelled=lambda: True)

    assert names_in(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "before"


def test_an_existing_output_is_replaced(tmp_path: Path):
    (tmp_path / "out").write_text("before")
    result = run_job(make_job(), tmp_path / "out")

    assert hashlib.sha256((tmp_path / "out").read_bytes()).digest() == result.file_sha256


def test_the_output_has_the_permissions_of_any_new_file(tmp_path: Path):
    (tmp_path / "plain").touch()
    run_job(make_job(), tmp_path / "out")

    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_blob_that_rotted_is_found_and_nothing_is_written(tmp_path: Path):
    """T41: what is read is compared with the digest that names it."""
    model = used(values(0))
    raw = bytearray(model.sources["b.weight"].data or b"")
    raw[5] ^= 1
    rotten = {**model.sources, "b.weight": TensorSource(None, 0, len(raw), bytes(raw))}

    with pytest.raises(CorruptError, match=r"b\.weight is not blob"):
        run_job(make_job([model._replace(sources=rotten)]), tmp_path / "out")

    assert names_in(tmp_path) == []


def test_a_copied_tensor_that_rotted_is_found(tmp_path: Path):
    model = used(values(0))
    rotten = {**model.sources, "ids": TensorSource(None, 0, 8, bytes(8))}

    with pytest.raises(CorruptError, match="ids is not blob"):
        run_job(make_job([model._replace(sources=rotten)]), tmp_path / "out")


def test_a_truncated_file_is_named(tmp_path: Path):
    """B68."""
    path = tmp_path / "blob"
    path.write_bytes(bytes(20))
    model = used(values(0))
    short = {**model.sources, "b.weight": TensorSource(str(path), 0, 48)}

    with pytest.raises(CorruptError, match="blob ended 28 bytes early"):
        run_job(make_job([model._replace(sources=short)]), tmp_path / "out")


@pytest.mark.parametrize("kind", ["nothing", "a directory", "a FIFO"])
def test_what_is_no_file_is_named(tmp_path: Path, kind: str):
    """B68: a FIFO in a blob's place must not hang the merge."""
    path = tmp_path / "blob"
    if kind == "a directory":
        path.mkdir()
    elif kind == "a FIFO":
        import os

        os.mkfifo(path)
    model = used(values(0))
    wrong = {**model.sources, "b.weight": TensorSource(str(path), 0, 48)}

    with pytest.raises(StorageError, match="blob cannot be read"):
        run_job(make_job([model._replace(sources=wrong)]), tmp_path / "out")


def huge() -> list[UsedModel]:
    many = values(1)
    many["a"] = np.full(5, 3e38, np.float32)
    return [used(many)]


def test_overflow_is_saturated_and_said_in_a_group(tmp_path: Path):
    """STRATEGIES 1.12: no author can block the others."""
    result = run_job(make_job(huge(), dtype="F16"), tmp_path / "out")

    found = safetensors.numpy.load_file(tmp_path / "out")
    assert found["a"].tolist() == [65504.0] * 5
    assert any("a: 5 elements did not fit" in warning for warning in result.warnings)
    assert json.loads(result.manifest_path.read_text())["decisions"]["warnings"] == list(result.warnings)


def test_overflow_is_refused_offline(tmp_path: Path):
    with pytest.raises(OverflowRefusedError, match="Tensor a: 5 merged values"):
        run_job(make_job(huge(), dtype="F16", group_mode=False), tmp_path / "out")

    assert names_in(tmp_path) == []


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_every_element_type_comes_out_as_asked(tmp_path: Path, dtype: str):
    import ml_dtypes

    run_job(make_job([used(values(0))], dtype=dtype), tmp_path / "out")

    types = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    found = safetensors.numpy.load_file(tmp_path / "out")
    assert found["a"].dtype == types[dtype]
    np.testing.assert_array_equal(found["a"], values(0)["a"].astype(types[dtype]))


class FaultyFs(SystemFs):
    """The real file system whose n-th changing call fails."""

    def __init__(self, fail_at: int, code: int = errno.EIO) -> None:
        self.calls: list[str] = []
        self._fail_at = fail_at
        self._code = code

    def step(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) - 1 == self._fail_at:
            raise OSError(self._code, "injected")

    def create(self, path, *, mode=0o600):
        self.step("create")
        return _Watched(super().create(path, mode=mode), self)

    def rename(self, source, target):
        self.step("rename")
        super().rename(source, target)

    def sync_dir(self, path):
        self.step("sync_dir")
        super().sync_dir(path)


class _Watched:
    def __init__(self, file, fs: FaultyFs) -> None:
        self._file = file
        self._fs = fs

    def write_at(self, offset, data):
        self._fs.step("write")
        self._file.write_at(offset, data)

    def sync(self):
        self._fs.step("sync")
        self._file.sync()

    def close(self):
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.close()


ORDER = ["create", "write", "write", "sync", "create", "write", "sync", "rename", "rename", "sync_dir"]


def test_bytes_are_durable_before_they_get_their_name(tmp_path: Path):
    fs = FaultyFs(fail_at=99)
    run_job(make_job(), tmp_path / "out", fs=fs)

    assert fs.calls == ORDER


@pytest.mark.parametrize("fail_at", range(len(ORDER)))
def test_an_error_at_any_call_leaves_the_old_output_or_the_whole_new_one(tmp_path: Path, fail_at: int):
    """T43, T44: never a half-written file, never a temporary one left."""
    whole = run_job(make_job(), tmp_path / "whole").file_sha256
    (tmp_path / "out").write_text("before")

    with pytest.raises(StorageError, match="injected"):
        run_job(make_job(), tmp_path / "out", fs=FaultyFs(fail_at))

    content = (tmp_path / "out").read_bytes()
    assert content == b"before" or hashlib.sha256(content).digest() == whole
    assert not [name for name in names_in(tmp_path) if name.startswith(".")]


def test_a_full_disk_has_its_own_error(tmp_path: Path):
    with pytest.raises(FullError, match="injected"):
        run_job(make_job(), tmp_path / "out", fs=FaultyFs(1, errno.ENOSPC))


def test_too_little_room_is_known_before_anything_is_written(tmp_path: Path):
    class SmallFs(FaultyFs):
        def disk_space(self, path):
            return DiskSpace(free_bytes=100, total_bytes=100)

    fs = SmallFs(fail_at=99)
    with pytest.raises(FullError, match="100 are free"):
        run_job(make_job(), tmp_path / "out", fs=fs)

    assert fs.calls == []


def test_an_output_directory_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(StorageError, match="nowhere/out cannot be written"):
        run_job(make_job(), tmp_path / "nowhere" / "out")


def test_the_answer_is_the_same_whatever_the_block_size_of_a_tensor_that_is_smaller(tmp_path: Path):
    small, large = make_job(memory_bytes=64 << 20), make_job(memory_bytes=4 << 30)

    assert (
        run_job(small, tmp_path / "a").file_sha256
        == run_job(replace(large, facts={"other": 1}), tmp_path / "b").file_sha256
    )


def test_what_a_killed_process_left_of_the_same_output_is_swept(tmp_path: Path):
    import os

    running = f".out.{os.getpid()}-00ff.part"
    others = [running, ".other.4194305-00ff.part", ".out.part", "out.4194305-00ff.part"]
    dead = [".out.4194305-00ff.part", ".out.provenance.json.4194305-00ff.part"]  # Beyond any process id.
    for name in (*others, *dead):
        (tmp_path / name).touch()

    run_job(make_job(), tmp_path / "out")

    assert names_in(tmp_path) == sorted([*others, "out", "out.provenance.json"])


@pytest.mark.parametrize(
    "strategy", ["weight_average", "linear", "slerp", "task_arithmetic", "ties", "dare", "dare_ties"]
)
@pytest.mark.parametrize("shape", [None, (0, 3), ()])
def test_models_of_hardly_anything_are_merged(tmp_path: Path, strategy: str, shape):
    """No mergeable tensor at all, an empty one, a single number."""
    specs = [TensorSpec(name="ids", dtype="U8", shape=(3,))]
    arrays = {"ids": np.array([1, 2, 3], np.uint8)}
    if shape is not None:
        specs.append(TensorSpec(name="x", dtype="F32", shape=shape))
        arrays["x"] = np.full(shape, 2.0, np.float32)
    schema = Schema.of(specs)
    model = used(arrays, schema=schema)
    policy = Policy(strategy=strategy, schema=schema.id, base=model.manifest.content)

    run_job(build_job(policy, schema, [model], model, group_mode=True), tmp_path / "out")

    found = safetensors.numpy.load_file(tmp_path / "out")
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in arrays.items()
    }


def test_a_strategy_cannot_change_what_it_is_given():
    """S9: buffers are used again for the next block, so a write would reach another one."""
    from crdt_merge_node.resolve.plan import make_plan
    from crdt_merge_node.resolve.steps import Span
    from crdt_merge_node.resolve.tasks import Load, Worker

    worker = Worker(SystemFs())
    plan = make_plan(make_job(), cores=1)
    Load(plan).run(worker, memoryview(b""))
    number = next(number for number, tensor in enumerate(plan.tensors) if tensor.spec.name == "a")
    block = next(worker.blocks(Span(number, 0, 5), None))

    assert len(block.inputs) == 3
    for array in block.inputs:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
