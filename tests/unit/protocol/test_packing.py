"""How a contribution was in files: written again exactly, and nothing believed that a stranger says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
from crdt_merge_protocol.blobs import Manifest, ManifestEntry, TensorSpec, blob_digest_of
from crdt_merge_protocol.canonical import digest, encode
from crdt_merge_protocol.checkpoint import Shard, index_of, parse_index, plan_shards
from crdt_merge_protocol.errors import CrdtMergeError, LimitExceededError, MalformedCheckpointError
from crdt_merge_protocol.limits import SHARDS_MAX
from crdt_merge_protocol.packing import PackedFile, Packing, is_plain, packing_id, plain_file
from crdt_merge_protocol.tensorfile import header_bytes, layout, parse_header
from hypothesis import given
from hypothesis import strategies as st
from support.profile import examples

TENSORS = {"b": np.arange(6, dtype=np.float32), "a": np.ones((2, 3), np.int64), "e": np.zeros(0, np.float32)}
SHARD = "model-{}-of-2.safetensors"


def packed(data: bytes, name: str = "") -> PackedFile:
    length = header_bytes(data[:8], len(data))
    return PackedFile(name=name, nbytes=len(data), header=data[8 : 8 + length])


def manifest_of(*files: bytes) -> Manifest:
    entries = []
    for data in files:
        found = parse_header(packed(data).header, len(data))
        entries += [
            ManifestEntry(spec=entry.spec, blob=blob_digest_of(data[entry.begin : entry.end]))
            for entry in found.entries
        ]
    return Manifest.of(entries)


def written(packing: Packing, manifest: Manifest, tensors: dict[str, np.ndarray]) -> list[bytes]:
    return [
        file.start + b"".join(tensors[entry.spec.name].tobytes() for entry in file.entries)
        for file in packing.unpack(manifest)
    ]


def sharded() -> tuple[Packing, Manifest, list[bytes]]:
    files = [safetensors.numpy.save({n: TENSORS[n] for n in names}, {"by": "us"}) for names in ("be", "a")]
    weight_map = {"b": SHARD.format(1), "e": SHARD.format(1), "a": SHARD.format(2)}
    packing = Packing(
        files=tuple(packed(data, SHARD.format(n + 1)) for n, data in enumerate(files)),
        index=json.dumps({"weight_map": weight_map}).encode(),
    )
    return packing, manifest_of(*files), files


def test_a_file_is_written_again_byte_for_byte():
    data = safetensors.numpy.save(TENSORS, metadata={"format": "pt", "note": "\u00e4"})
    packing = Packing.decode(Packing(files=(packed(data),)).encode())

    assert written(packing, manifest_of(data), TENSORS) == [data]
    assert not packing.is_directory


def test_shards_are_written_again_byte_for_byte():
    packing, manifest, files = sharded()

    found = Packing.decode(packing.encode())

    assert found == packing
    assert found.is_directory
    assert written(found, manifest, TENSORS) == files


def test_what_our_own_layout_says_need_not_be_kept():
    specs = [TensorSpec(name="a", dtype="I64", shape=(2, 3)), TensorSpec(name="b", dtype="F32", shape=(6,))]
    start, _ = layout(specs)
    ours = PackedFile(name="", nbytes=len(start) + 72, header=start[8:])
    entries = [ManifestEntry(spec=spec, blob=bytes(32)) for spec in reversed(specs)]

    assert is_plain(ours, reversed(specs))
    assert plain_file(Manifest.of(entries)).start == start
    assert not is_plain(PackedFile(name="model.safetensors", nbytes=0, header=start[8:]), specs)
    assert not is_plain(PackedFile(name="", nbytes=0, header=start[8:] + b" "), specs)


def test_the_id_of_a_packing_is_of_its_own_domain():
    assert packing_id(b"x") not in (packing_id(b"y"), digest("crdt-merge/payload/1", b"x"))


@pytest.mark.parametrize(
    "names",
    [[""] * 2, ["a/b.safetensors"], ["../b.safetensors"], ["b.bin"], [], ["b.safetensors", "a.safetensors"]],
)
def test_names_that_are_no_checkpoints_are_refused(names: list[str]):
    data = encode([1, [[name, 8, b"{}"] for name in names], b"{}" if len(names) > 1 else b""])
    with pytest.raises(CrdtMergeError):
        Packing.decode(data)


def test_several_files_need_an_index_and_one_alone_has_none():
    packing, _, _ = sharded()
    with pytest.raises(CrdtMergeError, match="index"):
        Packing.decode(Packing(files=packing.files).encode())
    with pytest.raises(CrdtMergeError, match="index"):
        Packing.decode(encode([1, [["", 10, b"{}"]], b"{}"]))


def test_a_packing_of_other_tensors_is_refused():
    packing, manifest, _ = sharded()
    for other in (
        Manifest.of(manifest.entries[1:]),
        Manifest.of(
            ManifestEntry(spec=TensorSpec(name=e.spec.name, dtype="U8", shape=(1,)), blob=e.blob)
            for e in manifest.entries
        ),
        Manifest.of(
            [
                *manifest.entries,
                ManifestEntry(spec=TensorSpec(name="z", dtype="U8", shape=()), blob=bytes(32)),
            ]
        ),
    ):
        with pytest.raises(CrdtMergeError):
            packing.unpack(other)


def test_an_index_that_says_otherwise_than_the_headers_is_refused():
    packing, manifest, _ = sharded()
    lying = Packing(files=packing.files, index=packing.index.replace(b'"b": "model-1', b'"b": "model-2'))
    assert lying.index != packing.index
    with pytest.raises(MalformedCheckpointError, match="the index says"):
        lying.unpack(manifest)


def test_more_than_an_object_may_have_is_refused():
    with pytest.raises(LimitExceededError, match="less metadata"):
        Packing(files=(PackedFile(name="", nbytes=1, header=bytes(9 << 20)),)).encode()


@given(st.data())
@examples(60)
def test_whatever_a_stranger_sends_ends_in_one_kind_of_error(data: st.DataObject):
    packing, manifest, _ = sharded()
    raw = bytearray(packing.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw) - 1))
        raw[position] = data.draw(st.integers(0, 255))
    try:
        files = Packing.decode(bytes(raw)).unpack(manifest)
    except CrdtMergeError:
        return
    names = sorted(entry.spec.name for file in files for entry in file.entries)
    assert names == [entry.spec.name for entry in manifest.entries]


SPECS = st.lists(st.integers(0, 40), min_size=1, max_size=30).map(
    lambda sizes: [TensorSpec(name=f"t{n}", dtype="U8", shape=(size,)) for n, size in enumerate(sizes)]
)


@given(SPECS, st.integers(1, 64), st.randoms())
@examples(100)
def test_shards_hold_every_tensor_once_and_no_more_than_fits(specs, shard_bytes, rng):
    shards = plan_shards(specs, shard_bytes)
    shuffled = list(specs)
    rng.shuffle(shuffled)

    assert plan_shards(shuffled, shard_bytes) == shards
    names = [spec.name for shard in shards for spec in shard.specs]
    assert names == sorted(spec.name for spec in specs)
    assert all(shard.tensor_bytes <= shard_bytes or len(shard.specs) == 1 for shard in shards)
    if len(shards) > 1:
        assert parse_index(index_of(shards)) == {s.name: each.name for each in shards for s in each.specs}


def test_one_shard_is_a_plain_file_and_several_are_numbered():
    specs = [TensorSpec(name=name, dtype="U8", shape=(10,)) for name in "abc"]
    (one,) = plan_shards(specs, 30)
    assert (one.name, one.header) == ("model.safetensors", layout(specs)[0])
    assert [shard.name for shard in plan_shards(specs, 20)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert plan_shards([], 10) == (Shard(name="model.safetensors", header=layout([])[0], specs=()),)


def test_the_index_is_what_hugging_face_writes():
    specs = [TensorSpec(name=name, dtype="U8", shape=(10,)) for name in "ab"]
    document = json.loads(index_of(plan_shards(specs, 10)))
    assert document == {
        "metadata": {"total_size": 20},
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        },
    }


def test_too_many_shards_are_refused_before_one_is_written():
    specs = [TensorSpec(name=f"t{n}", dtype="U8", shape=(1,)) for n in range(SHARDS_MAX + 1)]
    with pytest.raises(MalformedCheckpointError, match="larger shards"):
        plan_shards(specs, 1)
