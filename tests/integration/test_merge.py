"""``merge_files`` on real files: same bytes from any order, block size and worker; nothing half-written."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_node.errors import StorageError
from crdt_merge_node.ports import SystemFs, SystemRng
from crdt_merge_node.resolve.describe import describe_file
from crdt_merge_node.resolve.job import ResolveCancelledError, TensorSource, UsedModel
from crdt_merge_node.resolve.memory import with_blocks
from crdt_merge_node.resolve.merge import merge_files
from crdt_merge_node.resolve.output import open_output
from crdt_merge_node.resolve.plan import build_job, make_plan
from crdt_merge_node.resolve.run import Run, open_pool, run_job, say_nothing, ticker
from crdt_merge_node.resolve.single import ONE_THREAD
from crdt_merge_protocol.blobs import Manifest, Schema, contribution_digest
from crdt_merge_protocol.errors import (
    BaseMissingError,
    DTypeMismatchError,
    EmptySetError,
    IntegerTensorDiffersError,
    MalformedTensorFileError,
    NonFiniteError,
    ParameterError,
    ResolveError,
    ShapeMismatchError,
    TensorMissingError,
)
from crdt_merge_protocol.limits import WEIGHT_ONE
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.strategies.registry import get

STRATEGIES = ("weight_average", "linear", "slerp", "task_arithmetic", "ties", "dare", "dare_ties")
NEEDS_BASE = {"task_arithmetic", "ties", "dare", "dare_ties"}
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
SHAPES = {"a.weight": (530, 1000), "b.weight": (300, 7), "c.bias": (17,), "d.scale": (), "e.none": (0, 3)}
K = 3


def save(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    return path


def random_model(seed: int, dtype: str, base: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {"ids": np.arange(9)}
    for name, shape in SHAPES.items():
        noise = np.asarray(rng.standard_normal(shape))
        around = noise if base is None else base[name].astype(np.float64) + 0.01 * noise
        found[name] = np.asarray(around).astype(DTYPES[dtype])
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Path]]]:
    """(base, fine-tuned files) by element type."""
    room = tmp_path_factory.mktemp("models")
    found = {}
    for dtype in DTYPES:
        base = random_model(0, dtype)
        files = [
            save(room / f"{dtype}-{i}.safetensors", random_model(i, dtype, base)) for i in range(1, K + 1)
        ]
        found[dtype] = (save(room / f"{dtype}-base.safetensors", base), files)
    return found


def base_for(strategy: str, base: Path) -> Path | None:
    return base if strategy in NEEDS_BASE else None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_order_blocks_and_workers_change_no_bit(models, tmp_path: Path, strategy: str):
    """TARGETS B10, DESIGN 3.3: one digest whatever does the work."""
    base, files = models["F32"]
    options = {"strategy": strategy, "base": base_for(strategy, base)}
    inline = merge_files(files, tmp_path / "a", **options, workers=0)
    others = [
        merge_files(files[::-1], tmp_path / "b", **options, workers=2),
        *(merge_in_blocks(files, tmp_path / f"c{leaves}", strategy, base, leaves) for leaves in (1, 3)),
    ]

    for other in others:
        assert other.resolve_key == inline.resolve_key
        assert other.output_digest == inline.output_digest
        assert other.output_path.read_bytes() == inline.output_path.read_bytes()
        assert other.decisions == inline.decisions


def merge_in_blocks(files: list[Path], output: Path, strategy: str, base: Path, leaves: int):
    job = job_of(files, strategy, base_for(strategy, base), group_mode=False)
    plan = make_plan(job, cores=1)
    plan = replace(plan, tensors=with_blocks(plan.tensors, leaves * 65_536))
    with (
        open_pool(0, SystemFs(), ticker(None)) as pool,
        open_output(output, plan, fs=SystemFs(), rng=SystemRng()) as writer,
    ):
        from crdt_merge_node.ports import SystemClock

        return Run(job, plan, pool, say_nothing).write(writer, started=0, clock=SystemClock())


def job_of(files: list[Path], strategy: str, base: Path | None, *, group_mode: bool):
    described = [describe_file(path) for path in files]
    schema = described[0].manifest.schema
    base_file = describe_file(base) if base else None
    policy = Policy(
        strategy=strategy,
        strategy_version=get(strategy).version,
        schema=schema.id,
        base=base_file.manifest.content if base_file else None,
    )
    return build_job(
        policy, schema, [file.used for file in described], base_file.used if base_file else None,
        group_mode=group_mode,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", ["linear", "ties"])
def test_merge_equals_the_resolve_of_a_group_from_its_blob_store(models, tmp_path: Path, strategy, dtype):
    """The group holds blobs, one file a tensor or a row; merge reads ranges of the users' files."""
    base, files = models[dtype]
    offline = merge_files(files, tmp_path / "offline", strategy=strategy, base=base, dtype="BF16")
    store = tmp_path / "blobs"
    store.mkdir()
    used = [blobs_of(path, store) for path in (*files, files[0])]  # The first one twice, by two authors.
    base_model = blobs_of(base, store)
    schema = used[0].manifest.schema
    policy = Policy(
        strategy=strategy, schema=schema.id, base=base_model.manifest.content, dtype="BF16", version=7
    )
    group = run_job(
        build_job(policy, schema, used[::-1], base_model, group_mode=True, workers=2 * (dtype == "F32")),
        tmp_path / "group",
    )

    assert group.resolve_key == offline.resolve_key
    assert group.output_digest == offline.output_digest
    assert (tmp_path / "group").read_bytes() == (tmp_path / "offline").read_bytes()


def blobs_of(path: Path, store: Path) -> UsedModel:
    """A contribution as the daemon has it: large tensors are files named by digest, small ones bytes."""
    manifest: Manifest = describe_file(path).manifest
    tensors = safetensors.numpy.load_file(path)
    sources = {}
    for entry in manifest.entries:
        raw = tensors[entry.spec.name].tobytes()
        if len(raw) > 1 << 16:
            blob = store / entry.blob.hex()
            blob.write_bytes(raw)
            sources[entry.spec.name] = TensorSource(str(blob), 0, len(raw))
        else:
            sources[entry.spec.name] = TensorSource(None, 0, len(raw), raw)
    name = contribution_digest(kind="model", content=manifest.content, weight=WEIGHT_ONE)
    return UsedModel(name, WEIGHT_ONE, manifest, sources)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_is_the_mean_in_every_element_type(models, tmp_path: Path, dtype: str):
    _, files = models[dtype]
    merge_files(files, tmp_path / "out", strategy="weight_average")

    found = safetensors.numpy.load_file(tmp_path / "out")
    inputs = [safetensors.numpy.load_file(path) for path in files]
    for name in SHAPES:
        exact = sum(item[name].astype(np.float64) for item in inputs) / K
        step = float(ml_dtypes.finfo(DTYPES[dtype]).eps)
        least = float(ml_dtypes.finfo(DTYPES[dtype]).smallest_subnormal)
        np.testing.assert_allclose(found[name].astype(np.float64), exact, rtol=step, atol=least + 8e-16)
        assert found[name].dtype == DTYPES[dtype]
    np.testing.assert_array_equal(found["ids"], np.arange(9))


def test_equal_files_count_once_and_weights_count(models, tmp_path: Path):
    """R9: the same tensors with another weight are another vote."""
    _, files = models["F32"]
    average = {"strategy": "weight_average"}
    twice = merge_files([*files, files[0]], tmp_path / "a", **average)
    once = merge_files(files, tmp_path / "b", **average)
    again = merge_files(
        [*files, files[0]], tmp_path / "c", **average, weights=[WEIGHT_ONE] * K + [2 * WEIGHT_ONE]
    )

    assert twice.file_sha256 == once.file_sha256
    assert again.file_sha256 != once.file_sha256
    assert again.resolve_key != once.resolve_key


def test_masks_come_from_the_contributions_alone(models, tmp_path: Path):
    base, files = models["F32"]
    digests = {
        merge_files(list(order), tmp_path / "out", strategy="dare", base=base).file_sha256
        for order in itertools.permutations(files)
    }

    assert len(digests) == 1


def refused(tmp_path: Path, files: list[Path], **options) -> pytest.ExceptionInfo[Exception]:
    with pytest.raises(Exception, match=r".") as caught:
        merge_files(files, tmp_path / "out", **{"strategy": "linear", **options})
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    return caught


def test_a_file_with_nan_is_named_with_its_tensor(models, tmp_path: Path):
    """S10, T23: and in a group it would be quarantined, not merged."""
    tensors = random_model(5, "F32")
    tensors["a.weight"][529, 999] = np.nan
    bad = save(tmp_path / "bad.safetensors", tensors)

    caught = refused(tmp_path, [*models["F32"][1], bad])

    assert caught.type is NonFiniteError
    assert "bad.safetensors" in str(caught.value)
    assert "a.weight" in str(caught.value)
    assert not describe_file(bad).is_finite


def other(path: Path, **changes: np.ndarray | None) -> Path:
    tensors = {**random_model(6, "F32"), **changes}
    return save(path, {name: array for name, array in tensors.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"c.bias": None}, TensorMissingError),
        ({"extra": np.zeros(3, np.float32)}, TensorMissingError),
        ({"c.bias": np.zeros((17, 1), np.float32)}, ShapeMismatchError),
        ({"c.bias": np.zeros(17, np.int32)}, DTypeMismatchError),
        ({"ids": np.arange(9) + 1}, IntegerTensorDiffersError),
    ],
)
def test_a_file_of_another_model_is_refused_by_name(models, tmp_path: Path, changes, error):
    """B60."""
    bad = other(tmp_path / "bad.safetensors", **changes)

    caught = refused(tmp_path, [models["F32"][1][0], bad])

    assert caught.type is error
    if error is not IntegerTensorDiffersError:
        assert "bad.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", MalformedTensorFileError),
        (b"\x80\x04\x95pickle" + bytes(100), MalformedTensorFileError),
        (b"PK\x03\x04" + bytes(100), MalformedTensorFileError),
        (bytes(100), MalformedTensorFileError),
        (None, StorageError),
    ],
)
def test_what_is_no_tensor_file_is_refused_by_name(models, tmp_path: Path, content, error):
    """B56, T51."""
    bad = tmp_path / "bad.safetensors"
    if content is not None:
        bad.write_bytes(content)

    caught = refused(tmp_path, [*models["F32"][1], bad])

    assert caught.type is error
    assert "bad.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"strategy": "tie"}, ParameterError),
        ({"strategy": "ties"}, BaseMissingError),
        ({"params": {"densty": "0.5"}}, ParameterError),
        ({"dtype": "I64"}, ParameterError),
        ({"weights": [WEIGHT_ONE]}, ParameterError),
        ({"weights": [0, 0, 0]}, ParameterError),
        ({"weights": [1 << 63] * K}, ParameterError),
        ({"memory_bytes": 1 << 20}, ResolveError),
    ],
)
def test_options_that_make_no_merge_are_refused(models, tmp_path: Path, options, error):
    """B59, B60, and before anything is written."""
    assert issubclass(refused(tmp_path, models["F32"][1], **options).type, error)


def test_no_files_are_an_error(tmp_path: Path):
    assert refused(tmp_path, []).type is EmptySetError


def test_a_cancelled_merge_ends_its_workers_and_leaves_nothing(models, tmp_path: Path):
    base, files = models["F32"]
    steps: list[str] = []
    before = children_of(os.getpid())

    with pytest.raises(ResolveCancelledError):
        merge_files(
            files, tmp_path / "out", strategy="ties", base=base, workers=2,
            progress=lambda _done, _total, step: steps.append(step),
            cancelled=lambda: "merging" in steps,
        )  # fmt: skip

    assert "merging" in steps
    assert list(tmp_path.iterdir()) == []
    assert children_of(os.getpid()) == before


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


SCRIPT = """
import sys
from pathlib import Path
from crdt_merge_node.resolve.single import be_single
if sys.argv.pop(1) == "copies":
    be_single()
from crdt_merge_node.resolve.merge import merge_files

def progress(done, total, step):
    if step == "merging":
        print("merging", flush=True)
        sys.stdin.readline()

files = [Path(path) for path in sys.argv[2:]]
merge_files(files, Path(sys.argv[1]), strategy="linear", workers=2, progress=progress)
"""


@pytest.mark.parametrize("kind", ["copies", "fresh"])
def test_a_merge_killed_while_writing_leaves_no_output_and_no_process(models, tmp_path: Path, kind: str):
    """T43: under the output's name there is what was there before, and workers end with their parent."""
    output = tmp_path / "out.safetensors"
    output.write_text("before")
    free = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, kind, str(output), *map(str, models["F32"][1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=free,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"merging\n"
        workers = [(pid, os.pidfd_open(pid)) for pid in children_of(process.pid)]
        copies = [pid for pid, _ in workers if command_of(pid) == command_of(process.pid)]
        process.send_signal(signal.SIGKILL)

    assert len(workers) == 2
    assert len(copies) == (2 if kind == "copies" else 0)
    for _, descriptor in workers:
        wait_for_end(descriptor)
    assert output.read_text() == "before"
    assert not output.with_name("out.safetensors.provenance.json").exists()


def wait_for_end(descriptor: int) -> None:
    """A descriptor of a process becomes readable when the process ends."""
    import select

    readable, _, _ = select.select([descriptor], [], [], 300)
    os.close(descriptor)
    assert readable, "a worker outlived its parent"


def test_a_worker_that_dies_is_an_error_that_says_so(models, tmp_path: Path):
    def kill_workers(_done: int, _total: int, _step: str) -> None:
        for child in children_of(os.getpid()):
            os.kill(child, signal.SIGKILL)

    with pytest.raises(ResolveError, match=r"worker ended with status -9"):
        merge_files(models["F32"][1], tmp_path / "out", strategy="linear", workers=2, progress=kill_workers)

    assert list(tmp_path.iterdir()) == []


def test_an_error_in_a_worker_arrives_as_itself(models, tmp_path: Path):
    """The class, the message and the hint survive the way between processes."""
    _, files = models["F32"]
    big = other(tmp_path / "big.safetensors", **{"c.bias": np.full(17, 3e38, np.float32)})

    with pytest.raises(ResolveError, match=r"c\.bias: 17 merged values are too large for F16") as caught:
        merge_files([big], tmp_path / "out", strategy="linear", workers=1, dtype="F16")

    assert caught.value.code == "E1309"
    assert "--dtype" in caught.value.hint
    assert len(files) == K


def test_a_file_named_like_a_library_in_the_working_directory_is_not_imported(
    models, tmp_path: Path, monkeypatch
):
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)

    merge_files(models["F32"][1], tmp_path / "out", strategy="linear", workers=1)

    assert (tmp_path / "out").exists()


def test_describing_a_file_names_it_like_its_blobs(models, tmp_path: Path):
    path = models["BF16"][0]
    described = describe_file(path, 3 * WEIGHT_ONE)
    blobs = blobs_of(path, tmp_path)

    assert described.manifest == blobs.manifest
    assert described.digest == contribution_digest(
        kind="model", content=blobs.manifest.content, weight=3 * WEIGHT_ONE
    )
    assert described.manifest.schema == Schema.of(entry.spec for entry in described.manifest.entries)


def test_settings_of_numeric_libraries_change_no_bit(models, tmp_path: Path):
    """S13, through whole merges in fresh processes."""
    base, files = models["BF16"]
    script = (
        "import sys; from pathlib import Path; from crdt_merge_node.resolve.merge import merge_files; "
        "merge_files([Path(p) for p in sys.argv[3:]], Path(sys.argv[1]), strategy='slerp', "
        "base=Path(sys.argv[2]))"
    )
    digests = set()
    for number, settings in enumerate(
        (
            {"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Haswell"},
            {"OPENBLAS_NUM_THREADS": "8", "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3"},
            {"OPENBLAS_CORETYPE": "Prescott", "PYTHONHASHSEED": "7"},
        )
    ):
        output = tmp_path / str(number)
        subprocess.run(
            [sys.executable, "-c", script, str(output), str(base), *map(str, files)],
            env={**os.environ, **settings},
            check=True,
        )
        digests.add(hashlib.sha256(output.read_bytes()).hexdigest())

    assert len(digests) == 1
