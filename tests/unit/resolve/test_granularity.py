"""Blocks of rows and of whole tensors, and artefacts beside them: the bits of the reference, in any cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_node.errors import CorruptError
from crdt_merge_node.ports import SystemClock, SystemFs, SystemRng
from crdt_merge_node.resolve.job import TensorSource, UsedArtefact, UsedModel
from crdt_merge_node.resolve.memory import share_memory, with_blocks
from crdt_merge_node.resolve.output import open_output
from crdt_merge_node.resolve.plan import build_job, make_plan
from crdt_merge_node.resolve.run import Run, open_pool, say_nothing, ticker
from crdt_merge_node.resolve.steps import SLOT_BYTES
from crdt_merge_protocol.blobs import (
    Manifest,
    ManifestEntry,
    Schema,
    TensorSpec,
    blob_digest_of,
    contribution_digest,
)
from crdt_merge_protocol.errors import ArtefactInvalidError, ResolveError
from crdt_merge_protocol.limits import MIB, WEIGHT_ONE
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.strategies import registry
from crdt_merge_protocol.strategies.artefacts import Artefact
from crdt_merge_protocol.strategies.contract import Strategy, Wanted
from crdt_merge_protocol.strategies.dtypes import encode_block
from crdt_merge_protocol.strategies.reference import ArtefactArrays, merge_arrays

SHAPES = {
    "chunked": (1100, 1024),  # 256 rows are a chunk.
    "odd": (700, 2001),  # Only 1 MiB of rows together is whole chunks: spans end within them.
    "flat": (1_200_001,),  # One row, larger than a slot.
    "small": (3, 5),
    "none": (0, 4),
    "one": (),
}
SPECS = [TensorSpec(name=name, dtype="F32", shape=shape) for name, shape in SHAPES.items()]
SCHEMA = Schema.of([*SPECS, TensorSpec(name="ids", dtype="I32", shape=(9,))])
K = 2


class Rows(Strategy):
    """The sum of the inputs without the first element of each row: a block of half a row would show."""

    id, title, paper, doc, base = "test_rows", "t", "p", "d", "optional"
    cut = "rows"

    def granularity(self, context, tensor_index):
        return self.cut

    def merge(self, context, state, block):
        shape = context.specs[block.tensor_index].shape
        rows = sum(block.inputs).reshape(-1, shape[-1] if shape else 1)
        merged = rows - rows[:, :1]
        if block.base is not None:
            merged += block.base.reshape(merged.shape)
        return merged.reshape(-1)


class Whole(Rows):
    """The sum of the inputs backwards: anything but the whole tensor would show."""

    id, cut = "test_whole", "tensor"

    def merge(self, context, state, block):
        return sum(block.inputs)[::-1] * 0.5


class Assisted(Rows):
    """One artefact cut like the block, one that comes whole; seen in a statistics pass too."""

    id, cut = "test_assisted", "elements"

    def wants(self, context, tensor_index):
        name = context.specs[tensor_index].name
        return (Wanted(0, f"part/{name}", True), Wanted(0, "odd/whole", False))

    def pass_count(self, context):
        return 1

    def observe(self, context, state, pass_no, block):
        return float(block.artefacts[0].max() + block.artefacts[1][-1])

    def end_pass(self, context, state, pass_no, partials):
        return max(value for _, value in partials)

    def merge(self, context, state, block):
        return sum(block.inputs) * block.artefacts[0] + block.artefacts[1].max() + state


class AssistedRows(Assisted):
    id, cut = "test_assisted_rows", "rows"


@pytest.fixture(autouse=True)
def strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    for strategy in (Rows(), Whole(), Assisted(), AssistedRows()):
        monkeypatch.setitem(registry._STRATEGIES, strategy.id, strategy)


def random_model(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {spec.name: np.asarray(rng.standard_normal(spec.shape), np.float32) for spec in SPECS}
    return found | {"ids": np.arange(9, dtype=np.int32)}


def stored(tensors: Mapping[str, np.ndarray], specs, tmp_path: Path | None = None):
    """The manifest and sources of tensors: in memory, or one file each."""
    data = {name: array.tobytes() for name, array in tensors.items()}
    manifest = Manifest.of(ManifestEntry(spec=s, blob=blob_digest_of(data[s.name])) for s in specs)
    if tmp_path is None:
        return manifest, {name: TensorSource(None, 0, len(raw), raw) for name, raw in data.items()}
    sources = {}
    for number, (name, raw) in enumerate(data.items()):
        path = tmp_path / f"{manifest.content.hex()[:8]}-{number}"
        path.write_bytes(b"123" + raw)
        sources[name] = TensorSource(str(path), 3, len(raw))
    return manifest, sources


def used(tensors: Mapping[str, np.ndarray]) -> UsedModel:
    manifest, sources = stored(tensors, SCHEMA.specs)
    digest = contribution_digest(kind="model", content=manifest.content, weight=WEIGHT_ONE)
    return UsedModel(digest, WEIGHT_ONE, manifest, sources)


def artefact_for(digest: bytes) -> tuple[UsedArtefact, dict[str, np.ndarray]]:
    rng = np.random.default_rng(77)
    types = {"F32": np.float32, "U8": np.uint8}
    specs, tensors = [], {}
    for number, spec in enumerate(SPECS):
        dtype = ("F32", "U8")[number % 2]
        specs.append(TensorSpec(name=f"part/{spec.name}", dtype=dtype, shape=spec.shape))
        tensors[specs[-1].name] = np.asarray(rng.integers(0, 9, spec.shape)).astype(types[dtype])
    specs.append(TensorSpec(name="odd/whole", dtype="F32", shape=(300_001,)))
    tensors["odd/whole"] = rng.standard_normal(300_001).astype(np.float32)
    manifest, sources = stored(tensors, specs)
    header = {"artefact": "fisher_diag/1", "subject": digest.hex()}
    ordered = tuple(sorted(specs, key=lambda spec: spec.name.encode()))
    artefact = Artefact(digest=bytes(32), type="fisher_diag", header=header, specs=ordered)
    return UsedArtefact(artefact, manifest, sources), tensors


MODELS = [random_model(seed) for seed in range(K)]
USED = [used(model) for model in MODELS]
BASE = random_model(9)


def job_for(strategy: str, *, base=None, artefacts=(), models=USED, **options):
    policy = Policy(strategy=strategy, schema=SCHEMA.id, base=base.manifest.content if base else None)
    return build_job(policy, SCHEMA, models, base, group_mode=True, artefacts=artefacts, **options)


def write(job, output: Path, leaves: int = 2):
    plan = make_plan(job, cores=1)
    plan = replace(plan, tensors=with_blocks(plan.tensors, leaves * 65_536))
    with (
        open_pool(0, SystemFs(), ticker(None)) as pool,
        open_output(output, plan, fs=SystemFs(), rng=SystemRng()) as writer,
    ):
        return Run(job, plan, pool, say_nothing).write(writer, started=0, clock=SystemClock())


def floats(model: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in model.items() if name != "ids"}


def check_equal(output: Path, expected) -> None:
    found = safetensors.numpy.load_file(output)
    for name, values in expected.tensors.items():
        assert found[name].tobytes() == encode_block("F32", values.reshape(-1)), name


def output_digest_of(path: Path) -> bytes:
    from crdt_merge_protocol.canonical import digest, encode

    found = safetensors.numpy.load_file(path)
    lines = [[s.name, s.dtype, list(s.shape), blob_digest_of(found[s.name].tobytes())] for s in SCHEMA.specs]
    return digest("crdt-merge/output/1", encode(lines))


@pytest.mark.parametrize("leaves", [1, 2])
@pytest.mark.parametrize("strategy", ["test_rows", "test_whole"])
def test_rows_and_tensors_come_out_as_the_reference_has_them(tmp_path: Path, strategy: str, leaves: int):
    base = used(BASE)
    digests = [model.digest for model in USED]
    expected = merge_arrays(strategy, [floats(m) for m in MODELS], floats(BASE), digests=digests)

    result = write(job_for(strategy, base=base), tmp_path / "out", leaves)

    check_equal(tmp_path / "out", expected)
    assert result.output_digest == output_digest_of(tmp_path / "out")


@pytest.mark.parametrize("leaves", [1, 2])
@pytest.mark.parametrize("strategy", ["test_assisted", "test_assisted_rows"])
def test_artefacts_come_with_the_blocks(tmp_path: Path, strategy: str, leaves: int):
    artefact, tensors = artefact_for(USED[0].digest)
    expected = merge_arrays(
        strategy,
        [floats(m) for m in MODELS],
        digests=[model.digest for model in USED],
        artefacts=[ArtefactArrays(artefact.artefact, tensors)],
    )

    write(job_for(strategy, artefacts=[artefact]), tmp_path / "out", leaves)

    check_equal(tmp_path / "out", expected)


def rotten(source: TensorSource, at: int) -> TensorSource:
    raw = bytearray(source.data or b"")
    raw[at] ^= 1
    return replace(source, data=bytes(raw))


@pytest.mark.parametrize("at", [0, 2_100_000, -1])
@pytest.mark.parametrize("strategy", ["test_rows", "test_whole"])
def test_rot_is_found_where_spans_do_not_end_with_chunks(tmp_path: Path, strategy: str, at: int):
    """T41."""
    model = USED[0]._replace(sources={**USED[0].sources, "odd": rotten(USED[0].sources["odd"], at)})

    with pytest.raises(CorruptError, match="odd is not blob"):
        write(job_for(strategy, models=[model, USED[1]]), tmp_path / "out")

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["part/odd", "part/small", "odd/whole"])
def test_rot_in_an_artefact_is_found(tmp_path: Path, name: str):
    artefact, _ = artefact_for(USED[0].digest)
    damaged = artefact._replace(sources={**artefact.sources, name: rotten(artefact.sources[name], -1)})

    with pytest.raises(CorruptError, match="is not blob"):
        write(job_for("test_assisted", artefacts=[damaged]), tmp_path / "out")


def test_an_artefact_without_a_wanted_tensor_is_refused_before_anything_is_read():
    artefact, _ = artefact_for(USED[0].digest)
    specs = tuple(spec for spec in artefact.artefact.specs if spec.name != "part/odd")
    lacking = artefact._replace(artefact=replace(artefact.artefact, specs=specs))

    with pytest.raises(ArtefactInvalidError, match="has no tensor part/odd"):
        make_plan(job_for("test_assisted", artefacts=[lacking]), cores=1)


def test_what_cannot_be_cut_costs_workers_and_then_names_its_tensor():
    job = job_for("test_whole", workers=4)
    flat = 1_400_700 * 8 * (K + 2)  # Both inputs, the merged tensor and its scratch, in float64.
    plan = make_plan(replace(job, memory_bytes=300 * MIB), cores=4)

    assert 1 <= plan.workers < 4
    assert plan.workers * flat <= plan.memory_bytes <= 300 * MIB
    with pytest.raises(ResolveError, match=r"Tensor odd, which .* cannot cut smaller, needs .* MiB"):
        make_plan(replace(job, memory_bytes=60 * MIB), cores=4)


def test_rows_take_no_more_memory_than_their_blocks():
    specs = [TensorSpec(name="w", dtype="F32", shape=(4096, 4096))]
    schema = Schema.of(specs)
    manifest = Manifest.of(ManifestEntry(spec=spec, blob=bytes(32)) for spec in specs)
    model = UsedModel(bytes(32), WEIGHT_ONE, manifest, {"w": TensorSource("/nowhere", 0, specs[0].nbytes)})
    policy = Policy(strategy="test_rows", schema=schema.id)
    plan = make_plan(build_job(policy, schema, [model], None, group_mode=True, workers=2), cores=2)

    assert plan.memory_bytes < 2 * 80 * MIB
    assert plan.tensors[0].step * 4 <= SLOT_BYTES
    assert plan.tensors[0].is_hashed_by_workers
    assert share_memory(512 * MIB, k=1, wanted=2).workers == 2
