"""Sync sessions against every rule, with a live node on the other side (SCENARIOS 6.2: B39-B44)."""

import itertools
import os
from random import Random

import pytest
from crdt_merge_protocol.canonical import encode
from crdt_merge_protocol.limits import LANE_BYTES_MAX, SYNC_INBOUND_PER_PEER_MAX, SYNC_PAGE_IDS_MAX
from crdt_merge_protocol.merkle import Trie
from crdt_merge_protocol.messages.membership import Roots
from crdt_merge_protocol.messages.overlay import Graft, IHave
from crdt_merge_protocol.messages.sync import Ack, Busy, End, Lack, List, Nodes, Open, Operations
from crdt_merge_protocol.messages.walk import Children, Halved, Leaf, Wanted
from support.forged import chain
from support.hostile import HEADER
from support.siege import Hostile, Siege

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT = b"\x07" * 8
FULL = Children(b"", 0xFFFF, (SHORT,) * 16)


def opening(siege: Siege, **changes) -> Open:
    fields = {
        "session": os.urandom(4),
        "group": siege.group,
        "root": os.urandom(32),
        "count": len(siege.state),
        "nonce": os.urandom(8),
    }
    return Open(**fields | changes)


async def begun(siege: Siege, hostile: Hostile) -> Nodes:
    """Open a session; return the node's description of its trie."""
    hostile.send(opening(siege))
    found: Nodes = await hostile.hears(Nodes)
    return found


# --- B39 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 31, 33, 64])
async def test_b39_a_root_of_another_size_is_refused(siege: Siege, size):
    good = opening(siege)
    fields = [good.session, good.group, bytes(size), good.count, good.nonce, None]
    body = encode(fields)
    async with siege.unharmed(), siege.hostile() as hostile:
        hostile.raw(HEADER.pack(len(body), Open.TYPE, 1) + body)

        assert "32 bytes" in await hostile.is_sent_away()


async def test_b39_who_claims_our_root_and_lacks_everything_is_believed_alone(siege: Siege):
    """The claim ends its session; nobody's state follows from it, and the honest peer is still compared."""
    async with siege.unharmed(is_offence=False), siege.hostile() as hostile:
        hostile.send(opening(siege, root=siege.state.sync_root))

        assert (await hostile.hears(End)).root is None
        hostile.send(Roots(roots=((siege.group, siege.state.sync_root, 1),)))
        await hostile.is_still_heard()


async def test_b39_who_announces_a_root_and_answers_nothing_costs_a_session(siege: Siege):
    async with siege.unharmed(is_offence=False), siege.hostile() as hostile:
        hostile.send(Roots(roots=((siege.group, os.urandom(32), 1 << 20),)))
        await hostile.hears(Open)
        await hostile.is_still_heard()


# --- B40, B41 -----------------------------------------------------------------------------------------

ENTRIES = {
    "b40 the root twice": (FULL, FULL),
    "b40 a child behind its own parent": (FULL, Children(b"\x01", 1, (SHORT,))),
    "b40 a leaf behind its own parent": (FULL, Leaf(b"\x01", ())),
    "b40 overlapping leaves": (Leaf(b"", (SHORT,)), Leaf(b"", (SHORT,))),
    "b40 halves of what was described": (FULL, Halved(b"", 1, (SHORT,) * 8)),
    "b43 wants before any leaf": (Wanted((SHORT,)),),
    "b43 wants of what nobody has": (Wanted(tuple(sorted(os.urandom(8) for _ in range(500)))),),
}


@pytest.mark.parametrize("case", ENTRIES)
async def test_b40_b43_entries_that_answer_nothing_are_refused(siege: Siege, case):
    async with siege.unharmed(), siege.hostile() as hostile:
        nodes = await begun(siege, hostile)
        hostile.send(Nodes(session=nodes.session, entries=ENTRIES[case]))

        assert await hostile.is_sent_away()


RAW_ENTRIES = {
    "b40 depth 63 and children": b"\x3f" + bytes(32) + b"\x00\x01" + SHORT,
    "b40 bits behind a prefix": b"\x01\x1f\x00\x01" + SHORT,
    "b40 no children": b"\x00\x00\x00",
    "b40 cut off": b"\x00\xff\xff" + SHORT * 3,
    "b40 a prefix cut off": b"\x3f\x00",
    "b41 short ids twice": b"\x80\x02" + SHORT * 2,
    "b41 short ids that descend": b"\x80\x02" + SHORT + bytes(8),
    "b41 seventeen in a leaf": b"\x80\x11" + b"".join(bytes([n]) * 8 for n in range(17)),
    "b41 a leaf of 255": b"\x80\xff",
    "b43 65,535 wanted": b"\xc0\xff\xff" + SHORT * 20,
    "b43 none wanted": b"\xc0\x00\x00",
    "b43 wanted with a prefix": b"\xc2\x11\x00\x01" + SHORT,
}


@pytest.mark.parametrize("case", RAW_ENTRIES)
async def test_b40_b41_entries_that_are_none_are_refused(siege: Siege, case):
    async with siege.unharmed(), siege.hostile() as hostile:
        nodes = await begun(siege, hostile)
        body = encode([nodes.session, b"", True, 0, RAW_ENTRIES[case]])
        hostile.raw(HEADER.pack(len(body), Nodes.TYPE, 1) + body)

        assert "broke the protocol" in await hostile.is_sent_away()


def differing(nodes: Nodes) -> list[bytes]:
    """Return the places where a liar can say that everything is different there."""
    places = [entry.prefix for entry in nodes.entries if isinstance(entry, Halved)]
    for entry in nodes.entries:
        if isinstance(entry, Children):
            places += [entry.prefix + bytes([n]) for n in range(16) if entry.bitmap >> n & 1]
    return places


async def test_b40_endless_subdivision_ends_with_the_nodes_own_trie(siege: Siege):
    """Whatever the other side says differs, an honest side goes no deeper than it has ids."""
    rng = Random(40)
    async with siege.unharmed(is_offence=None), siege.hostile() as hostile:
        nodes = await begun(siege, hostile)
        for step in range(70):
            places = differing(nodes)[:300]
            if not places:
                break
            lies = tuple(Children(p, 0xFFFF, tuple(rng.randbytes(8) for _ in range(16))) for p in places)
            hostile.send(Nodes(session=nodes.session, entries=lies))
            try:
                nodes = await hostile.hears(Nodes, count=step + 2)
            except AssertionError:
                break  # It had enough.
        assert step < 10


LISTS = {
    "b41 1 M ids": lambda s: [s, 0, os.urandom(32 * 1800)],
    "b41 one id more than a page": lambda s: [s, 0, os.urandom(32 * (SYNC_PAGE_IDS_MAX + 1))],
    "b41 the same id twice": lambda s: [s, 0, bytes(64)],
    "b41 half an id": lambda s: [s, 0, bytes(48)],
    "b41 nothing and more to come": lambda s: [s, 7, b""],
    "b41 2^32 more to come": lambda s: [s, 1 << 32, bytes(32)],
}


@pytest.mark.parametrize("case", LISTS)
async def test_b41_a_list_that_is_none_is_refused(siege: Siege, case):
    async with siege.unharmed(), siege.hostile() as hostile:
        nodes = await begun(siege, hostile)
        body = encode(LISTS[case](nodes.session))
        hostile.raw(HEADER.pack(len(body), List.TYPE, 1) + body)

        assert await hostile.is_sent_away()


@pytest.mark.parametrize("is_sorted", [True, False])
async def test_b41_a_list_of_what_nobody_has_costs_its_page_and_nothing_is_kept(siege: Siege, is_sorted):
    """Ids that share 32 bits, sorted or not: there is no way to tell before their operations come."""
    ids = [b"\x00" * 4 + os.urandom(28) for _ in range(SYNC_PAGE_IDS_MAX)]
    async with siege.unharmed(is_offence=None), siege.hostile() as hostile:
        hostile.send(Roots(roots=((siege.group, os.urandom(32), 1 << 20),)))
        session = (await hostile.hears(Open)).session
        page = List(session=session, left_count=1 << 20, ids=tuple(sorted(ids) if is_sorted else ids))
        hostile.send(page)
        await siege.turns()
        hostile.send(page)
        await siege.turns()


async def test_b42_ids_that_xor_to_nothing_still_change_the_root(siege: Siege):
    """T10: fingerprints are hashed, never combined; see also ``tests/unit/protocol/test_merkle.py``."""
    rng = Random(42)
    some = [rng.randbytes(32) for _ in range(117)]
    last = bytes(32)
    for one in some:
        last = bytes(a ^ b for a, b in zip(last, one, strict=True))
    trie = Trie()
    for signed in siege.state.causal():
        trie.insert(signed.id)
    before = trie.root
    roots = set()
    for one in (*some, last):
        trie.insert(one)
        roots.add(trie.root)

    assert len(roots) == 118
    assert before not in roots


# --- B43 ----------------------------------------------------------------------------------------------


async def test_b43_what_is_wanted_a_hundred_thousand_times_is_given_as_far_as_it_is_taken(siege: Siege):
    """Who asks and never reads fills one lane of its own connection."""
    wanted = tuple(signed.id for signed in itertools.islice(siege.state.causal(), 40))
    async with siege.unharmed(is_offence=None), siege.hostile() as hostile:
        hostile.pump.pause_reading()
        for _ in range(2500):
            hostile.send(Graft(group=siege.group, ids=wanted))
            if not hostile.pump.is_writable:
                break
        await siege.turns()
        connection = siege.live.services.driver.connections[hostile.node]

        assert connection.queued_bytes() <= LANE_BYTES_MAX
        hostile.pump.resume_reading()
        await hostile.is_still_heard()


async def test_b43_what_was_announced_and_is_never_given_is_asked_for_in_vain_and_forgotten(siege: Siege):
    lies = tuple(os.urandom(32) for _ in range(1000))
    async with siege.unharmed(is_offence=None), siege.hostile() as hostile:
        for _ in range(20):
            hostile.send(IHave(group=siege.group, ids=lies))
        await siege.turns()


# --- B44 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["reversed", "orphans"])
async def test_b44_operations_that_a_session_did_not_ask_for_are_refused(siege: Siege, order):
    made = chain(siege.group, 8)
    wires = [signed.wire() for signed in made]
    sent = {"reversed": wires[::-1], "orphans": wires[3:]}[order]
    async with siege.unharmed(), siege.hostile() as hostile:
        nodes = await begun(siege, hostile)
        hostile.send(Operations(session=nodes.session, left_count=0, operations=tuple(sent)))

        assert await hostile.is_sent_away()


@pytest.mark.parametrize(
    "make",
    [
        lambda session: Nodes(session=session, entries=()),
        lambda session: Ack(session=session, count=1),
        lambda session: Busy(session=session, reason="", retry_after_ms=2**32 - 1),
        lambda session: Lack(session=session, bitmap=b"\x01"),
        lambda session: List(session=session, left_count=0, ids=(bytes(32),)),
        lambda session: End(session=session, root=bytes(32)),
    ],
    ids=["nodes", "ack", "busy", "lack", "list", "end"],
)
async def test_b44_a_message_that_is_not_its_turn_ends_the_connection_or_its_session(siege: Siege, make):
    async with siege.unharmed(is_offence=None), siege.hostile() as hostile:
        nodes = await begun(siege, hostile)
        for _ in range(50):
            hostile.send(make(nodes.session))
        await siege.turns()


async def test_b44_messages_of_sessions_that_nobody_opened_do_nothing(siege: Siege):
    wires = tuple(signed.wire() for signed in chain(siege.group, 20))
    async with siege.unharmed(is_offence=False), siege.hostile() as hostile:
        for number in range(300):
            session = number.to_bytes(4, "big")
            hostile.send(Operations(session=session, left_count=0, operations=wires[number % 20 :][:1]))
            hostile.send(End(session=session, root=None))
        await hostile.is_still_heard()
        assert siege.replica.orphan_count == 0


async def test_b44_one_peer_has_so_many_sessions_and_a_place_is_left_for_others(siege: Siege):
    async with siege.unharmed(is_offence=False), siege.hostile() as hostile:
        for _ in range(100):
            hostile.send(opening(siege))
        busy = await hostile.hears(Busy, count=99)

        assert "session" in busy.reason
        assert siege.live.services.engine.reconciler.session_count <= SYNC_INBOUND_PER_PEER_MAX


async def test_b44_a_session_that_is_opened_twice_ends_the_connection(siege: Siege):
    twice = opening(siege)
    async with siege.unharmed(), siege.hostile() as hostile:
        hostile.send(*itertools.repeat(twice, 2))

        assert "open already" in await hostile.is_sent_away()
