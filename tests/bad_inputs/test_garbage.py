"""Any bytes whatever are parsed or refused with the one error of their kind, by every decoder there is.

Bytes of peers end in ``RemoteProtocolError``, nothing else (DESIGN 3.4); what a user hands in or a disk gives
back has its own type. ``CRDT_MERGE_TEST_EXAMPLES`` multiplies how many are tried (`make nightly`).
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest
from crdt_merge_node.config import load_config
from crdt_merge_node.contents import read_payload
from crdt_merge_node.errors import ConfigError, StorageError
from crdt_merge_node.judging import read_artefact
from crdt_merge_node.ports import SeededRng
from crdt_merge_node.recipes.mergekit import read_mergekit
from crdt_merge_node.storage import DataDir, Store
from crdt_merge_node.transport.addresses import split_address
from crdt_merge_node.transport.certificates import (
    CertificateError,
    certificate_from_der,
    certificate_from_pem,
    key_from_pem,
    read_peer_certificate,
    read_request,
)
from crdt_merge_node.transport.invites import Token
from crdt_merge_protocol import bodies
from crdt_merge_protocol.blobs import Manifest, Schema, TensorSpec, blob_digest, chunk_digest
from crdt_merge_protocol.canonical import decode, encode
from crdt_merge_protocol.checkpoint import parse_index
from crdt_merge_protocol.errors import (
    ArtefactInvalidError,
    CrdtMergeError,
    MalformedCheckpointError,
    MalformedTensorFileError,
    RemoteProtocolError,
)
from crdt_merge_protocol.genesis import Genesis
from crdt_merge_protocol.messages.base import REGISTRY
from crdt_merge_protocol.messages.walk import decode_entries
from crdt_merge_protocol.operations import Operation, SignedOperation
from crdt_merge_protocol.packing import PackedFile, Packing
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.strategies.artefacts import SCOPES
from crdt_merge_protocol.tensorfile import header_bytes, layout, parse_header
from crdt_merge_protocol.wire import FrameDecoder, encode_frame
from hypothesis import given
from hypothesis import strategies as st
from support.authors import make_genesis
from support.hostile import Mutator, sample_messages, sample_operations
from support.machines import StillClock
from support.profile import examples

SPECS = [TensorSpec(name="w", dtype="F32", shape=(3, 4)), TensorSpec(name="b", dtype="BF16", shape=(4,))]
OPERATION = sample_operations()[0]
GENESIS = make_genesis()
MANIFEST = encode([[spec.name, spec.dtype, list(spec.shape), bytes(32)] for spec in SPECS[::-1]])
SCHEMA = Schema.of(SPECS)
HEADER = layout(SPECS)[0]
PACKING = Packing(files=(PackedFile(name="", nbytes=64, header=HEADER[8:]),)).encode()
INDEX = b'{"metadata": {}, "weight_map": {"w": "model-00001-of-00002.safetensors"}}'
ARTEFACT = json.dumps({"artefact": "fisher/1", "subject": "ab" * 32}).encode()

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=70)
    | st.text(max_size=20)
    | st.floats()
    | st.sampled_from([bytes(32), b"\x01" * 32, bytes(64), b"w", "w", "F32", 1 << 63]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.integers(0, 5), inner, max_size=3),
    max_leaves=20,
)
PACKED = VALUES.map(lambda value: bytes(msgpack.packb(value, use_bin_type=True)))


def damaged(*samples: bytes) -> st.SearchStrategy[bytes]:
    """Valid bytes with some of them changed, moved, left out or doubled."""

    def change(sample: bytes, seed: int) -> bytes:
        rng, data = Random(seed), bytearray(sample)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(5):
                case 0 if data:
                    data[at - 1] ^= 1 << rng.randrange(8)
                case 1:
                    data[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
                case 2:
                    del data[at:]
                case 3:
                    data[at:at] = data[: rng.randrange(40)]
                case _:
                    data += rng.randbytes(rng.randrange(5))
        return bytes(data)

    return st.builds(change, st.sampled_from(samples), st.integers(0, 2**32))


def garbage(*samples: bytes) -> st.SearchStrategy[bytes]:
    found = st.binary(max_size=200) | PACKED
    return found | damaged(*samples) | damaged(*samples) if samples else found


def text_of(*samples: str) -> st.SearchStrategy[str]:
    return st.text(max_size=60) | damaged(*(sample.encode() for sample in samples)).map(
        lambda data: data.decode(errors="replace")
    )


PEER_DECODERS: dict[str, tuple[Callable[[bytes], Any], tuple[bytes, ...]]] = {
    "canonical": (decode, (MANIFEST,)),
    "operation": (Operation.decode, (OPERATION.encoded,)),
    "signed operation": (SignedOperation.parse, (OPERATION.wire(),)),
    "stored operation": (SignedOperation.load, (OPERATION.wire(),)),
    "genesis": (Genesis.decode, (GENESIS.encode(),)),
    "policy": (Policy.decode, (GENESIS.policy.encode(),)),
    "manifest": (Manifest.decode, (MANIFEST,)),
    "schema": (Schema.decode, (SCHEMA.encode(),)),
    "packing": (Packing.decode, (PACKING,)),
    "walk": (decode_entries, (b"\x80\x01" + b"\x07" * 8,)),
}


@pytest.mark.parametrize("name", PEER_DECODERS)
def test_b01_to_b31_bytes_of_a_peer_are_read_or_end_in_the_one_error(name):
    """What is read reads back as itself: nothing has two encodings."""
    decoder, samples = PEER_DECODERS[name]

    @examples(40)
    @given(data=garbage(*samples))
    def check(data: bytes) -> None:
        try:
            found = decoder(data)
        except RemoteProtocolError:
            return
        if name == "canonical":
            assert encode(found) == data
        elif hasattr(found, "wire"):
            assert found.wire() == data
        elif hasattr(found, "encode"):
            assert found.encode() == data

    check()


@pytest.mark.parametrize("kind", sorted(REGISTRY))
def test_b08_to_b20_any_body_of_any_message_is_read_or_ends_in_the_one_error(kind):
    samples = tuple(message.to_body() for message in sample_messages() if kind == message.TYPE)

    @examples(12)
    @given(data=garbage(*samples))
    def check(data: bytes) -> None:
        try:
            found = REGISTRY[kind].from_body(data)
        except RemoteProtocolError:
            return
        assert found.to_body() == data

    check()


@examples(60)
@given(seed=st.integers(0, 2**32), extra=st.binary(max_size=50))
def test_b01_to_b12_any_stream_of_frames_is_read_or_ends_in_the_one_error(seed, extra):
    mutator, decoder = Mutator(seed), FrameDecoder()
    frame = encode_frame(mutator.rng.choice(sample_messages()))
    try:
        for piece in mutator.pieces(mutator.damage(frame) + extra):
            decoder.feed(piece)
    except RemoteProtocolError:
        return


@examples(60)
@given(kind=st.integers(0, 255), body=garbage(*(signed.operation.body for signed in sample_operations())))
def test_b30_no_body_of_an_operation_raises_anything(kind, body):
    bodies.read(kind, body)
    bodies.read(kind % 10, b"\x01" + body)


@examples(60)
@given(data=garbage(HEADER[8:], HEADER), size=st.integers(0, 10**6))
def test_b47_to_b57_any_header_of_a_tensor_file_is_read_or_refused(data, size):
    try:
        length = header_bytes(data[:8], len(data) + size)
        parse_header(data[8 : 8 + length], len(data) + size)
    except MalformedTensorFileError:
        pass
    try:
        parse_header(data, len(data) + 64)
    except MalformedTensorFileError:
        return


@examples(60)
@given(data=garbage(INDEX))
def test_b57_any_index_of_a_checkpoint_is_read_or_refused(data):
    try:
        parse_index(data)
    except MalformedCheckpointError:
        return


@examples(40)
@given(data=garbage(encode([bytes(16), [["note", "text"]]])))
def test_any_payload_is_read_as_notes_or_as_none(data):
    found = read_payload(data)

    assert all(isinstance(text, str) for pair in found.meta.items() for text in pair)


@examples(40)
@given(type_=st.sampled_from(sorted(SCOPES)), data=garbage(ARTEFACT))
def test_any_header_of_an_artefact_is_read_or_refused(type_, data):
    try:
        read_artefact(type_, bytes(32), data, SPECS, SCHEMA)
    except ArtefactInvalidError:
        return


TOKEN = Token(
    cluster=bytes(32), secret=bytes(16), addresses=("127.0.0.1:7946",), expires_at=1_800_000_000
).to_text()


@examples(60)
@given(text=text_of(TOKEN))
def test_any_token_is_read_or_refused(text):
    try:
        Token.from_text(text)
    except ConfigError:
        return


@examples(40)
@given(
    data=garbage(
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\x30\x82\x01\x00" + bytes(256)
    )
)
def test_any_certificate_key_and_request_is_read_or_refused(data):
    for read in (
        certificate_from_der,
        certificate_from_pem,
        key_from_pem,
        read_request,
        lambda data: read_peer_certificate(data, bytes(32)),
    ):
        try:
            read(data)
        except CertificateError:
            continue


@examples(60)
@given(text=text_of("127.0.0.1:7946", "[::1]:7946", "node.example:1"))
def test_any_address_is_read_or_refused(text):
    try:
        split_address(text)
    except (CrdtMergeError, ValueError):
        return


CONFIG = b'[listen]\nport = 7946\nhost = "::"\n[peers]\nseeds = ["a:1", "b:2"]\n[log]\nlevel = "info"\n'


@examples(30)
@given(data=garbage(CONFIG))
def test_b65_any_configuration_is_read_or_refused(data):
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.toml").write_bytes(data)
        try:
            load_config(None, {"node.data_dir": directory}, {})
        except ConfigError:
            return


RECIPE = (
    "merge_method: ties\nbase_model: b\ndtype: float32\nmodels:\n  - model: a\n    parameters: {weight: 1}\n"
)


@examples(60)
@given(text=text_of(RECIPE))
def test_any_recipe_is_read_or_refused(text):
    try:
        read_mergekit(text)
    except CrdtMergeError:
        return


@pytest.mark.asyncio
async def test_t43_whatever_lies_where_a_fetch_broke_off_is_judged_by_its_hash_alone(tmp_path: Path):
    """Files of unfinished blobs, of any size and content: chunks that are right are kept, no others."""
    chunks = [bytes([7]) * (1 << 20), b"tail" * 1000]
    nbytes, digests = sum(map(len, chunks)), [chunk_digest(chunk) for chunk in chunks]
    blob = blob_digest(nbytes, digests)
    rng = Random(43)
    data = DataDir.open(tmp_path / "data")
    store = await Store.open(data, clock=StillClock(), rng=SeededRng(1), reserve_bytes=0)
    try:
        for _ in range(int(os.environ.get("CRDT_MERGE_TEST_EXAMPLES", "0")) * 5 + 6):
            left = bytearray(b"".join(chunks))
            for _ in range(rng.randrange(4)):
                at = rng.randrange(len(left))
                left[at : at + rng.randrange(3000)] = rng.randbytes(rng.randrange(3000))
            path = data.partial / blob.hex()
            path.write_bytes(bytes(left[: rng.randrange(len(left) + 1)] + rng.randbytes(rng.randrange(100))))
            try:
                partial = store.blobs.begin_partial(blob, nbytes, digests)
            except StorageError:
                path.unlink()
                continue
            for index, chunk in enumerate(chunks):
                if partial.present[index]:
                    assert partial.read(index) == chunk
                partial.write(index, chunk)
            partial.finish()
            store.blobs.verify(blob)
            store.blobs.delete(blob)
    finally:
        await store.close()
        data.close()
