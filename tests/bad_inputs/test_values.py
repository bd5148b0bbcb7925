"""Numbers that no merge may see, and sets that make no merge (SCENARIOS 6.2: B51, B55, B59, B60; T23)."""

from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node.cli.values import Weight
from crdt_merge_protocol.blobs import Manifest
from crdt_merge_protocol.canonical import encode
from crdt_merge_protocol.errors import (
    CrdtMergeError,
    DTypeMismatchError,
    EmptySetError,
    NonFiniteError,
    ParameterError,
    ShapeMismatchError,
    TensorMissingError,
)
from crdt_merge_protocol.limits import CHUNK_BYTES
from crdt_merge_protocol.messages.gossip import Gossip
from crdt_merge_protocol.operations import Kind
from safetensors.numpy import load_file, save_file
from support.forged import operation, random_key, signed_wire
from support.siege import GROUP_NAME, Siege
from support.whole_nodes import ONE, WholeNode, last

pytestmark = pytest.mark.asyncio(loop_scope="module")

WIDE = "wide"
COUNT = CHUNK_BYTES // 4 + 10_000  # More than a chunk of F32.
EDGES = {
    "first": 0,
    "end of a chunk": CHUNK_BYTES // 4 - 1,
    "next chunk": CHUNK_BYTES // 4,
    "last": COUNT - 1,
}
POISONS = {
    "NaN": 0x7FC0_0000,
    "signalling NaN": 0x7F80_0001,
    "minus NaN": 0xFFC0_0001,
    "infinity": 0x7F80_0000,
    "minus infinity": 0xFF80_0000,
}
EXTREMES = {"3e38": 0x7F61_B1E6, "the largest": 0x7F7F_FFFF, "minus zero": 0x8000_0000, "a denormal": 1}


def wide(bits: int = 0, position: int = 0) -> np.ndarray:
    elements = np.full(COUNT, 1.0, np.float32)
    elements.view(np.uint32)[position] = bits or elements.view(np.uint32)[position]
    return elements


async def wide_group(siege: Siege, tmp_path: Path) -> None:
    """Make, once, a group whose only tensor is longer than a chunk, with one contribution."""
    if siege.live.group(WIDE) is None:
        save_file({"w": wide()}, tmp_path / "like.safetensors")
        await siege.live.create_group(WIDE, tmp_path / "like.safetensors")
        await siege.live.add(WIDE, tmp_path / "like.safetensors")
        await siege.honest.until_group(WIDE, lambda info: info.used == 1)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("poison", POISONS)
async def test_b55_a_number_that_is_none_is_found_before_anything_is_signed(
    siege: Siege, poison, edge, tmp_path: Path
):
    await wide_group(siege, tmp_path)
    save_file({"w": wide(POISONS[poison], EDGES[edge])}, tmp_path / "bad.safetensors")
    async with siege.unharmed(is_offence=False):
        with pytest.raises(NonFiniteError, match="w"):
            await siege.live.add(WIDE, tmp_path / "bad.safetensors", slot="bad")


@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16", "BOOL"])
async def test_b55_b51_every_element_type_has_its_own_numbers_that_are_none(siege: Siege, dtype, tmp_path):
    from crdt_merge_node.resolve.finite import scan_finite

    poison = {
        "F64": b"\x01" + bytes(5) + b"\xf0\x7f",
        "F16": b"\x01\x7c",
        "BF16": b"\x81\x7f",
        "BOOL": b"\x02",
    }

    assert not scan_finite(dtype, bytes(len(poison[dtype]) * 9) + poison[dtype])


@pytest.mark.parametrize("extreme", EXTREMES)
async def test_b55_what_is_extreme_and_finite_is_a_number_and_stays_one(siege: Siege, extreme, tmp_path):
    await wide_group(siege, tmp_path)
    save_file({"w": wide(EXTREMES[extreme], COUNT - 1)}, tmp_path / "odd.safetensors")
    added = await siege.live.add(WIDE, tmp_path / "odd.safetensors", slot="odd")
    await siege.live.resolve(WIDE, tmp_path / "out.safetensors")

    assert added.contribution.state == "used"
    assert np.isfinite(load_file(tmp_path / "out.safetensors")["w"]).all()
    await siege.live.api.contribution_remove(WIDE, added.contribution.tag)


@pytest.mark.parametrize("edge", ["first", "next chunk", "last"])
@pytest.mark.parametrize("poison", ["NaN", "signalling NaN", "minus infinity"])
async def test_b55_what_a_peer_signed_all_the_same_is_set_aside_and_changes_no_output(
    siege: Siege, poison, edge, tmp_path
):
    """R14: a property of the digest, so all nodes drop the same, whatever arrived when."""
    await wide_group(siege, tmp_path)
    control = await siege.live.resolve(WIDE, tmp_path / "control.safetensors")
    tag = await contribute_wide(siege.honest, wide(POISONS[poison], EDGES[edge]))
    for node in (siege.honest, siege.live):
        await node.until_state(WIDE, tag, "quarantined")
    after = await siege.live.resolve(WIDE, tmp_path / "after.safetensors")

    assert (after.resolve_key, after.file_sha256) == (control.resolve_key, control.file_sha256)
    await siege.honest.api.contribution_remove(WIDE, tag)


async def contribute_wide(node: WholeNode, elements: np.ndarray) -> str:
    """Sign an ADD past the scan, as a malicious release would."""
    from crdt_merge_protocol.blobs import ManifestEntry, TensorSpec, blob_digest_of, chunk_digest

    data = elements.tobytes()
    chunks = [data[:CHUNK_BYTES], data[CHUNK_BYTES:]]
    blob = blob_digest_of(data)
    partial = node.services.store.blobs.begin_partial(blob, len(data), [chunk_digest(one) for one in chunks])
    for index, chunk in enumerate(chunks):
        if not partial.present[index]:
            partial.write(index, chunk)
    partial.finish()
    spec = TensorSpec(name="w", dtype="F32", shape=elements.shape)
    return await node.contribute_raw(WIDE, Manifest.of([ManifestEntry(spec=spec, blob=blob)]), slot="poison")


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ({"w": np.ones((3, 4), np.float64), "b": np.ones(4, np.float32)}, DTypeMismatchError),
        ({"w": np.ones((3, 4), np.int32), "b": np.ones(4, np.float32)}, DTypeMismatchError),
        ({"w": np.ones((4, 3), np.float32), "b": np.ones(4, np.float32)}, ShapeMismatchError),
        ({"w": np.ones(12, np.float32), "b": np.ones(4, np.float32)}, ShapeMismatchError),
        ({"w": np.ones((3, 4), np.float32)}, TensorMissingError),
        (
            {"w": np.ones((3, 4), np.float32), "b": np.ones(4, np.float32), "c": np.ones(1)},
            TensorMissingError,
        ),
    ],
)
async def test_b51_b60_a_file_of_another_schema_is_refused_before_a_byte_is_copied(
    siege: Siege, tensors, error, tmp_path
):
    save_file(tensors, tmp_path / "other.safetensors")
    async with siege.unharmed(is_offence=False):
        with pytest.raises(error):
            await siege.live.add(GROUP_NAME, tmp_path / "other.safetensors", slot="bad")


# --- weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0, -1, -ONE, 2**63, 2**64, 10**30, 10**6 * ONE])
async def test_b59_a_weight_outside_of_the_cap_is_refused(siege: Siege, weight):
    async with siege.unharmed(is_offence=False):
        with pytest.raises(ParameterError, match="weight"):
            await siege.live.add(GROUP_NAME, siege.model, slot="bad", weight=weight)


@pytest.mark.parametrize(
    "text",
    ["NaN", "nan", "inf", "-inf", "0", "-1", "", " ", "1e999", "1e-999", "x", "0x10", "1/0", "9" * 5000],
)
async def test_b59_text_that_is_no_weight_is_bad_usage(text):
    import click

    with pytest.raises(click.BadParameter):
        Weight().convert(text, None, None)


@pytest.mark.parametrize("weight", [2**63, 2**64 - 1, -(2**63), None, "1", b"2", True, []])
async def test_b59_an_operation_with_a_weight_outside_of_the_format_has_no_effect(siege: Siege, weight):
    key, before = random_key(), siege.state.view.visible
    body = b"\x01" + encode(["main", "model", bytes(32), weight, None])
    made = operation(siege.group, key, kind=Kind.ADD, body=body)
    async with siege.hostile() as hostile:
        hostile.send(Gossip(group=siege.group, operations=(signed_wire(made, key),)))
        await siege.live.until(lambda: made.id in siege.state)

    assert siege.state.view.visible == before


@pytest.mark.parametrize("weight", [0, -ONE, -(2**63) + 1, 2**63 - 1])
async def test_b59_a_weight_that_the_group_does_not_allow_is_set_aside_everywhere(
    siege: Siege, weight, tmp_path
):
    control = await siege.live.resolve(GROUP_NAME, tmp_path / "control.safetensors")
    tensors = {"w": np.full((3, 4), 9.0, np.float32), "b": np.ones(4, np.float32)}
    manifest = Manifest.of(siege.honest.put_tensors(tensors))
    tag = await siege.honest.contribute_raw(GROUP_NAME, manifest, slot="heavy", weight=weight)
    await siege.live.until_state(GROUP_NAME, tag, "quarantined")
    after = await siege.live.resolve(GROUP_NAME, tmp_path / "after.safetensors")

    assert after.file_sha256 == control.file_sha256
    await siege.honest.api.contribution_remove(GROUP_NAME, tag)
    await siege.live.until(lambda: not siege.shows(tag))


# --- how many -----------------------------------------------------------------------------------------


async def test_b60_a_group_of_nothing_has_no_output(siege: Siege, tmp_path):
    await siege.live.create_group("nothing", siege.model)
    async with siege.unharmed(is_offence=False):
        with pytest.raises(EmptySetError):
            await siege.live.resolve("nothing", tmp_path / "out.safetensors")

    assert list(tmp_path.iterdir()) == []


async def test_b60_a_group_of_one_gives_that_one(siege: Siege, tmp_path):
    await siege.live.create_group("single", siege.model)
    await siege.live.add("single", siege.model)
    async with siege.unharmed(is_offence=False):
        await siege.live.resolve("single", tmp_path / "out.safetensors")

    assert (load_file(tmp_path / "out.safetensors")["w"] == load_file(siege.model)["w"]).all()


async def test_b60_a_strategy_without_the_base_that_it_needs_is_refused(siege: Siege, tmp_path):
    async with siege.unharmed(is_offence=False):
        with pytest.raises(CrdtMergeError, match="base"):
            await siege.live.create_group("baseless", siege.model, strategy="ties")

    assert siege.live.group("baseless") is None


@pytest.mark.parametrize(
    "params",
    [{"densty": "0.5"}, {"density": "NaN"}, {"density": "-1"}, {"density": "1e999"}, {"density": ""}],
)
async def test_b59_b60_parameters_that_are_none_are_refused_before_there_is_a_group(siege: Siege, params):
    async with siege.unharmed(is_offence=False):
        with pytest.raises(CrdtMergeError):
            await siege.live.create_group("odd", base=siege.model, strategy="ties", params=params)

    assert siege.live.group("odd") is None


async def test_b60_an_output_that_cannot_be_written_is_named(siege: Siege, tmp_path):
    async with siege.unharmed(is_offence=False):
        with pytest.raises(CrdtMergeError, match="absent"):
            await last(
                siege.live.api.resolve(
                    GROUP_NAME, output_path=str(tmp_path / "absent" / "out"), wait_s=0.0, without=()
                )
            )
