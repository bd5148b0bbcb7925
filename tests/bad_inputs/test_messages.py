"""Frames whose bodies are no messages (SCENARIOS 6.2: B13-B20), on all three kinds of connections."""

import msgpack
import pytest
from crdt_merge_node.transport.contexts import ALPN_BULK, ALPN_GOSSIP
from crdt_merge_protocol.limits import CONTROL_BODY_BYTES_MAX
from crdt_merge_protocol.messages.base import REGISTRY, ControlMessage
from crdt_merge_protocol.messages.gossip import GenesisFound, Gossip
from support.hostile import HEADER, Mutator, sample_messages
from support.siege import Siege

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOTS, WANT_OBJECT = 16, 80
MIB_OF = b"\xdd" + (60_000).to_bytes(4, "big")
BODIES = {
    "b13 an array of 2^32 - 1 in five bytes": b"\xdd\xff\xff\xff\xff",
    "b13 a map of 2^32 - 1": b"\xdf\xff\xff\xff\xff",
    "b13 text of 2^32 - 1 bytes": b"\xdb\xff\xff\xff\xff",
    "b13 bytes of 2^32 - 1": b"\xc6\xff\xff\xff\xff",
    "b13 counts that multiply": b"\xdc\xff\xff" * 20,
    "b13 counts that multiply and are there": (b"\xdc\x3f\xff" * 8) + bytes(60_000),
    "b14 depth 5,000": b"\x91" * 5_000 + b"\xc0",
    "b14 depth 500": b"\x91" * 500 + b"\xc0",
    "b14 depth 9": b"\x91" * 9 + b"\xc0",
    "b14 depth 60,000 and no end": b"\x91" * 60_000,
    "b14 wide and deep": b"\x92\x00" * 500 + b"\xc0" * 2,
    "b15 empty maps": MIB_OF + b"\x80" * 60_000,
    "b15 empty lists": MIB_OF + b"\x90" * 60_000,
    "b15 empty text": MIB_OF + b"\xa0" * 60_000,
    "b15 nothings": b"\xdc\x40\x00" + b"\xc0" * 16_384,
    "b16 the same key twice": b"\x82\x01\x02\x01\x03",
    "b16 a map with one key": b"\x91\x81\x01\x02",
    "b17 a small integer in nine bytes": b"\x91\xcf\x00\x00\x00\x00\x00\x00\x00\x01",
    "b17 a small integer in two bytes": b"\x91\xcc\x01",
    "b17 a list of none in three bytes": b"\xdc\x00\x00",
    "b17 a list of one in five bytes": b"\xdd\x00\x00\x00\x01\x90",
    "b17 short bytes in a long form": b"\x91\xc5\x00\x01a",
    "b17 a float": b"\x91\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00",
    "b17 a short float": b"\x91\xca\x3f\x80\x00\x00",
    "b17 NaN": b"\x91\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    "b18 an extension": b"\x91\xd4\x05\x00",
    "b18 a timestamp": b"\x91\xd6\xff\x00\x00\x00\x01",
    "b18 a timestamp of twelve bytes": b"\x91\xc7\x0c\xff" + bytes(12),
    "b18 an extension of 2^32 - 1": b"\x91\xc9\xff\xff\xff\xff\x05",
    "b18 the byte that is never used": b"\xc1",
    "b19 text that is not UTF-8": b"\x91\xa2\xff\xfe",
    "b19 a lone surrogate": b"\x91\xa3\xed\xa0\x80",
    "b19 an overlong slash": b"\x91\xa2\xc0\xaf",
    "b20 a byte after the value": b"\x91\x90\x00",
    "b20 a value after the value": b"\x91\x90\x91\x90",
    "b20 a field too many": b"\x92\x90\x90",
    "b20 a field too few": b"\x90",
}


def frame(kind: int, body: bytes) -> bytes:
    return HEADER.pack(len(body), kind, 1) + body


@pytest.mark.parametrize("case", BODIES)
@pytest.mark.parametrize(("alpn", "kind"), [(ALPN_GOSSIP, ROOTS), (ALPN_BULK, WANT_OBJECT)], ids=["g", "b"])
async def test_b13_to_b20_a_body_that_is_no_canonical_message_ends_its_connection(
    siege: Siege, case, alpn, kind
):
    async with siege.unharmed(), siege.hostile(alpn=alpn) as hostile:
        hostile.raw(frame(kind, BODIES[case]))

        assert "broke the protocol" in await hostile.is_sent_away()


@pytest.mark.parametrize("case", BODIES)
async def test_b13_to_b20_a_hello_that_is_no_message_is_refused(siege: Siege, case):
    async with siege.unharmed(is_offence=None), siege.hostile(is_greeted=False) as hostile:
        hostile.raw(frame(1, BODIES[case]))

        assert await hostile.is_sent_away()


async def test_b15_a_thousand_frames_of_many_small_values_cost_no_memory(siege: Siege):
    """One of them, 64 KiB long, may become a few mebibytes; all of them together no more."""
    wide = frame(ROOTS, b"\x91\xdc\x04\x00" + b"\x90" * 1024)
    for number in range(40):
        async with siege.unharmed(), siege.hostile() as hostile:
            hostile.raw(wide * (1 + number % 5))
            await hostile.is_sent_away()


async def test_b19_text_that_is_not_normalised_stays_what_it_is(siege: Siege):
    """It is well-formed, and compared as bytes (PROTOCOL R1): no error, and no other text either."""
    async with siege.unharmed(is_offence=None), siege.hostile(is_greeted=False) as hostile:
        hostile.send(hostile.hello(agent="e\u0301 and \u00e9"))
        await hostile.is_still_heard()


async def test_b20_bytes_after_the_body_of_a_data_message_are_refused(siege: Siege):
    chunk = next(message for message in sample_messages() if type(message).__name__ == "Chunk")
    async with siege.unharmed(), siege.hostile(alpn=ALPN_BULK) as hostile:
        hostile.raw(frame(chunk.TYPE, chunk.to_body() + b"\x00"))

        assert "broke the protocol" in await hostile.is_sent_away()


def fields_of(message: ControlMessage) -> list:
    """Return the fields of a message that names no address but one where nobody listens."""
    return anonymous(msgpack.unpackb(message.to_body()))


def anonymous(value):
    if isinstance(value, list):
        return [anonymous(item) for item in value]
    return "127.0.0.1:1" if isinstance(value, str) and ":" in value else value


def pack(fields: list) -> bytes:
    return msgpack.packb(fields, use_bin_type=True)


CONTROL_TYPES = sorted(kind for kind, found in REGISTRY.items() if issubclass(found, ControlMessage))
ODD_FIELDS = [None, -1, 2**63, 2**64 - 1, b"", b"x" * 33, "x" * 2000, [], [[]], [None] * 3, True]


@pytest.mark.parametrize("kind", CONTROL_TYPES)
async def test_b17_every_field_of_every_message_is_checked_for_its_type_and_range(siege: Siege, kind):
    """Each field in turn is another value: a message in hand is within limits, or there is none."""
    sample = next(message for message in sample_messages(group=siege.group) if kind == message.TYPE)
    fields = fields_of(sample)
    tried = 0
    for position in range(len(fields)):
        for odd in ODD_FIELDS:
            changed = [*fields[:position], odd, *fields[position + 1 :]]
            body = pack(changed)
            alpn = ALPN_BULK if 80 <= kind < 96 else ALPN_GOSSIP
            if tried % 9 == position % 9:  # All are tried in the unit tests; a sample of them is tried here.
                async with siege.unharmed(is_offence=None), siege.hostile(alpn=alpn) as hostile:
                    hostile.raw(frame(kind, body))
                    hostile.raw(frame(3, b"\x91\x01"))
                    await siege.turns()
            tried += 1
    assert tried == len(fields) * len(ODD_FIELDS)


@pytest.mark.parametrize("seed", range(12))
async def test_s12_mutated_frames_of_every_type_harm_nobody(siege: Siege, seed):
    """Twelve times sixty damaged frames on one node; S12 itself, with 20,000, needs no socket."""
    mutator = Mutator(seed)
    samples = [
        message
        for message in sample_messages(group=siege.group)
        if message.TYPE < 80 and not isinstance(message, GenesisFound)
    ]
    async with siege.unharmed(is_offence=None):
        for number in range(10):
            async with siege.hostile() as hostile:
                for _ in range(6):
                    message = mutator.rng.choice(samples)
                    hostile.raw(mutator.damage(frame(message.TYPE, pack(fields_of(message)))))
                if number % 2:
                    hostile.raw(b"\xff" * 70_000)  # Ends whatever frame was begun.
                await siege.turns()


async def test_b21_a_message_of_the_largest_size_that_is_garbage_inside_costs_its_size(siege: Siege):
    wires = (b"\x92" + b"\xc4\xff" * 8 + bytes(CONTROL_BODY_BYTES_MAX - 200),)
    async with siege.unharmed(), siege.hostile() as hostile:
        hostile.send(Gossip(group=siege.group, operations=wires))

        assert await hostile.is_sent_away()
