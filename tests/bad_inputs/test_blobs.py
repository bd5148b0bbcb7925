"""Bulk connections that break the rules, and providers of bytes that lie (SCENARIOS 6.2: B45, B46)."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import structlog
from crdt_merge_node import rationing
from crdt_merge_node.transport.contexts import ALPN_BULK
from crdt_merge_protocol.blobs import Manifest, ManifestEntry, TensorSpec, blob_digest_of
from crdt_merge_protocol.canonical import encode
from crdt_merge_protocol.limits import BULK_REQUESTS_MAX, CHUNK_BYTES, LANE_BYTES_MAX, MIB
from crdt_merge_protocol.messages.bulk import Absent, Chunk, ChunkList, Have, HaveQuery, Object, WantChunks
from crdt_merge_protocol.messages.membership import Ping
from support.hostile import HEADER
from support.siege import Siege
from support.whole_nodes import WholeNode

pytestmark = pytest.mark.asyncio(loop_scope="module")

ID = bytes(range(32))
OBJECT, CHUNKS_WANTED, CHUNK, HAVE, CHUNK_LIST = 81, 82, 83, 85, 88
CHUNK_HEADER, OBJECT_HEADER, LIST_HEADER = (
    struct.Struct(">32sQI"),
    struct.Struct(">32sII"),
    struct.Struct(">32sQ"),
)

RAW = {
    "b45 a chunk past the end": (CHUNK, CHUNK_HEADER.pack(ID, 10, 1) + bytes(10)),
    "b45 a chunk of another size": (CHUNK, CHUNK_HEADER.pack(ID, 10, 0) + bytes(9)),
    "b45 a chunk of an empty blob": (CHUNK, CHUNK_HEADER.pack(ID, 0, 0)),
    "b45 a chunk of a blob of 2^63": (CHUNK, CHUNK_HEADER.pack(ID, 2**63, 0) + bytes(CHUNK_BYTES)),
    "b45 chunk 2^32 - 1": (CHUNK, CHUNK_HEADER.pack(ID, 2**35, 2**32 - 1) + bytes(10)),
    "b45 a chunk without header": (CHUNK, bytes(43)),
    "b45 an object of 2^32 - 1": (OBJECT, OBJECT_HEADER.pack(ID, 2**32 - 1, 0) + bytes(10)),
    "b45 a slice past the end": (OBJECT, OBJECT_HEADER.pack(ID, 10, 5) + bytes(6)),
    "b45 an empty slice": (OBJECT, OBJECT_HEADER.pack(ID, 10, 5)),
    "b45 bytes of an empty object": (OBJECT, OBJECT_HEADER.pack(ID, 0, 0) + b"x"),
    "b45 a list of too few chunks": (CHUNK_LIST, LIST_HEADER.pack(ID, 2 * MIB) + bytes(32)),
    "b45 a list of half a digest": (CHUNK_LIST, LIST_HEADER.pack(ID, MIB) + bytes(16)),
    "b45 a list of a blob of 2^64 - 1": (CHUNK_LIST, LIST_HEADER.pack(ID, 2**64 - 1) + bytes(32)),
    "b45 no chunk wanted": (CHUNKS_WANTED, encode([ID, []])),
    "b45 65 chunks wanted": (CHUNKS_WANTED, encode([ID, list(range(65))])),
    "b45 chunks wanted twice": (CHUNKS_WANTED, encode([ID, [1, 1]])),
    "b45 chunks wanted backwards": (CHUNKS_WANTED, encode([ID, [2, 1]])),
    "b45 chunk -1 wanted": (CHUNKS_WANTED, encode([ID, [-1]])),
    "b45 chunk 2^40 wanted": (CHUNKS_WANTED, encode([ID, [2**40]])),
    "b45 more chunks than there are": (HAVE, encode([ID, 10, b"\xff"])),
    "b45 a blob of 2^63 had": (HAVE, encode([ID, 2**63, b"\x01"])),
}


@pytest.mark.parametrize("case", RAW)
async def test_b45_sizes_and_positions_that_cannot_be_end_the_connection(siege: Siege, case):
    kind, body = RAW[case]
    async with siege.unharmed(), siege.hostile(alpn=ALPN_BULK) as hostile:
        hostile.raw(HEADER.pack(len(body), kind, 1) + body)

        assert "broke the protocol" in await hostile.is_sent_away()


ANSWERS = [
    Chunk(blob=ID, nbytes=4, index=0, data=b"data"),
    Object(id=ID, nbytes=4, offset=0, data=b"data"),
    Have(blob=ID, nbytes=4, chunks=1),
    Absent(id=ID, indices=()),
    ChunkList(blob=ID, nbytes=4, digests=(ID,)),
]


@pytest.mark.parametrize("message", ANSWERS, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("alpn", [ALPN_BULK, None], ids=["on bulk", "on gossip"])
async def test_b45_an_answer_that_nobody_asked_for_ends_the_connection(siege: Siege, message, alpn):
    """Nothing is ever pushed: bytes come to who asked for them, on the connection that asked."""
    async with siege.unharmed(), siege.hostile(**{"alpn": alpn} if alpn else {}) as hostile:
        hostile.send(message)

        assert await hostile.is_sent_away()


async def test_b43_more_questions_than_the_protocol_allows_end_the_connection(siege: Siege):
    async with siege.unharmed(), siege.hostile(alpn=ALPN_BULK) as hostile:
        for number in range(BULK_REQUESTS_MAX):
            hostile.send(WantChunks(blob=ID, indices=tuple(range(number % 8, number % 8 + 64))))

        assert "questions wait" in await hostile.is_sent_away()


async def test_b43_a_hundred_thousand_questions_are_answered_as_fast_as_answers_are_read(siege: Siege):
    digest = siege.live.services.store.blobs.digests()[0]
    async with siege.unharmed(is_offence=None), siege.hostile(alpn=ALPN_BULK) as hostile:
        for _ in range(400):
            await hostile.writable()
            hostile.send(HaveQuery(blob=digest))
            await siege.turns()
        assert await hostile.hears(Have, count=400)


async def test_b43_whoever_asks_and_does_not_read_holds_one_lane_and_one_read_ahead(siege: Siege):
    data = bytes(3 * MIB)
    big = blob_digest_of(data)
    blobs = siege.live.services.store.blobs
    digests = [blob_digest_of(data)]
    assert digests
    partial = blobs.begin_partial(big, len(data), _chunk_digests(data))
    for index in range(3):
        partial.write(index, data[index * MIB : (index + 1) * MIB])
    partial.finish()
    try:
        async with (
            siege.unharmed(is_offence=None, memory_bytes=LANE_BYTES_MAX + 8 * MIB),
            siege.hostile(alpn=ALPN_BULK) as hostile,
        ):
            hostile.pump.pause_reading()
            for _ in range(100):
                hostile.send(WantChunks(blob=big, indices=(0, 1, 2)))
            await siege.turns()
    finally:
        blobs.delete(big)


def _chunk_digests(data: bytes) -> list[bytes]:
    from crdt_merge_protocol.blobs import chunk_digest

    return [chunk_digest(data[start : start + CHUNK_BYTES]) for start in range(0, len(data), CHUNK_BYTES)]


@pytest.mark.parametrize("alpn", [ALPN_BULK])
async def test_b45_a_gossip_message_does_not_belong_on_a_bulk_connection(siege: Siege, alpn):
    from crdt_merge_protocol.messages.membership import Roots

    async with siege.unharmed(), siege.hostile(alpn=alpn) as hostile:
        hostile.send(Ping(nonce=1), Roots(roots=()))

        assert "no question" in await hostile.is_sent_away()


# --- providers ----------------------------------------------------------------------------------------

BIG = np.arange(600_000, dtype=np.float32)  # Three chunks, the last of them short.


Read = Callable[..., Any]

LIES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "b46 wrong bytes": ("read_chunk", lambda data: bytes(len(data))),
    "b45 short bytes": ("read_chunk", lambda data: data[:-1]),
    "b46 an object that is another": ("get_object", lambda data: data + b"\x00"),
    "b46 an object of zeros": ("get_object", lambda data: bytes(len(data))),
    "b46 a list of other chunks": ("chunk_digests", lambda digests: [bytes(32)] * len(digests)),
    "b45 a list of too few chunks": ("chunk_digests", lambda digests: digests[:-1]),
    "b45 another size": ("size", lambda nbytes: nbytes + 1),
}


def lying(honest: Read, lie: Callable[[Any], Any], about: set[bytes]) -> Read:
    """Return a method that lies about some ids and tells the truth about all others."""

    def answer(digest: bytes, *rest: Any) -> Any:
        found = honest(digest, *rest)
        return lie(found) if digest in about and found is not None else found

    return answer


@pytest.mark.parametrize("case", LIES)
async def test_b45_b46_nothing_that_a_lying_provider_sends_is_stored(siege: Siege, case, monkeypatch):
    """A member contributes honestly and serves other bytes: its contribution stays missing, no more."""
    method, lie = LIES[case]
    site, live = siege.site, siege.live
    monkeypatch.setattr(rationing, "ROOM_BYTES_MIN", 2 * BIG.nbytes)  # Else it is not even fetched.
    async with site.running(site.make(), live.address, name="liar") as liar:
        await liar.connected(live)
        await liar.until_group("besieged", lambda info: info.used == 2)
        manifest = Manifest.of(put_big(liar, seed=len(case)))
        blobs, about = liar.services.store.blobs, {manifest.content, manifest.entries[0].blob}
        monkeypatch.setattr(blobs, method, lying(getattr(blobs, method), lie, about))
        before = live.services.store.blobs.digests()
        with structlog.testing.capture_logs() as lines:
            tag = await liar.contribute_raw("besieged", manifest, slot="lie", type="thing")
            await live.until(lambda: bytes.fromhex(tag) in siege.state)
            await siege.until_logged(lines, lambda line: is_about(line, liar))
        info = await live.api.contribution_show("besieged", tag)

        assert info.state == "missing"
        assert live.services.store.blobs.digests() == before
        assert not live.running.failed.done()
        assert not [line for line in lines if line["event"].endswith(".failed")]
        await siege.serves_the_honest()
        monkeypatch.undo()
        await liar.api.contribution_remove("besieged", tag)
        await live.until(lambda: not siege.shows(tag))


def put_big(node: WholeNode, *, seed: int) -> list[ManifestEntry]:
    data = (BIG + seed).tobytes()
    blobs, digest = node.services.store.blobs, blob_digest_of(data)
    partial = blobs.begin_partial(digest, len(data), _chunk_digests(data))
    for index in range(3):
        partial.write(index, data[index * MIB : (index + 1) * MIB])
    partial.finish()
    return [ManifestEntry(spec=TensorSpec(name="big", dtype="F32", shape=BIG.shape), blob=digest)]


def is_about(line: Any, liar: WholeNode) -> bool:
    """Tell whether a line says that the lie was found out."""
    return line.get("peer") == liar.id and line["event"] in ("blob.refused", "peer.refused", "bulk.lost")


MANIFESTS = {
    "garbage": b"this is no manifest",
    "nothing": b"",
    "a tensor twice": encode([["b", "F32", [4], ID], ["b", "F32", [4], ID]]),
    "not sorted": encode([["w", "F32", [3, 4], ID], ["b", "F32", [4], ID]]),
    "a product beyond 64 bits": encode([["w", "F32", [2**31] * 8, ID]]),
    "a tensor of 64 GiB": encode([["w", "F32", [2**31, 8], ID]]),
    "nine dimensions": encode([["w", "F32", [1] * 9, ID]]),
    "a negative dimension": encode([["w", "F32", [-1], ID]]),
    "an unknown element type": encode([["w", "F33", [4], ID]]),
    "a path for a name": encode([["../../etc/passwd", "F32", [4], ID]]),
    "a blob digest of 31 bytes": encode([["w", "F32", [4], bytes(31)]]),
    "bytes after it": encode([["w", "F32", [4], ID]]) + b"\x00",
    "200 k tensors": b"\xdd\x00\x03\x0d\x40" + b"\x90" * 200_000,
    "depth 5,000": b"\x91" * 5_000,
}


@pytest.mark.parametrize("case", MANIFESTS)
@pytest.mark.parametrize("kind", ["model", "thing"])
async def test_b46_b50_b54_a_manifest_that_hashes_right_and_says_nonsense_is_set_aside(
    siege: Siege, case, kind
):
    """The digest is right, the manifest wrong: a property of the digest, so all nodes agree (R14)."""
    before = siege.live.services.store.blobs.digests()
    data = MANIFESTS[case]
    tag = await siege.honest.contribute_raw("besieged", data, slot="nonsense", type=kind)
    shown = await siege.live.until_state("besieged", tag, "quarantined")

    assert shown.reason
    assert siege.live.services.store.blobs.digests() == before
    await siege.honest.api.contribution_remove("besieged", tag)
    await siege.live.until(lambda: not siege.shows(tag))
