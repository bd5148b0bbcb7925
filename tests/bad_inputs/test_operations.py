"""Operations that no honest node signs, pushed to a live node (SCENARIOS 6.2: B21-B28, B30, B36)."""

import itertools
import os
from dataclasses import replace

import pytest
from crdt_merge_node.verifying import THREADS
from crdt_merge_protocol.canonical import encode
from crdt_merge_protocol.identity import NodeKey
from crdt_merge_protocol.limits import OPERATION_BYTES_MAX, ORPHANS_PER_PEER_MAX
from crdt_merge_protocol.messages.gossip import Gossip, WantGenesis
from crdt_merge_protocol.operations import Kind, SignedOperation, sign_operation
from support.authors import make_genesis
from support.forged import chain, fields_of, operation, random_key, sign_fields, signed_wire
from support.siege import Siege

pytestmark = pytest.mark.asyncio(loop_scope="module")

SORTED = tuple(number.to_bytes(32, "big") for number in range(1, 2000))
ORDER = 2**252 + 27742317777372353535851937790883648493


async def is_refused(siege: Siege, *wires: bytes, group: bytes | None = None) -> str:
    """Push operations; return why the connection ended."""
    async with siege.unharmed(), siege.hostile() as hostile:
        hostile.send(Gossip(group=group or siege.group, operations=wires))
        reason = await hostile.is_sent_away()
    assert siege.replica.orphan_count == 0
    return reason


async def test_the_helper_of_these_tests_makes_acceptable_operations(siege: Siege):
    key = random_key()
    made = operation(siege.group, key)
    async with siege.hostile() as hostile:
        hostile.send(Gossip(group=siege.group, operations=(signed_wire(made, key),)))
        await siege.live.until(lambda: made.id in siege.state)
    await siege.honest.until(lambda: made.id in siege.honest.services.engine.state(siege.group))


FIELDS = {
    "b21 a body of 60 KiB": (9, bytes(OPERATION_BYTES_MAX)),
    "b22 65 deps": (6, list(SORTED[:65])),
    "b22 1,025 refs": (7, list(SORTED[:1025])),
    "b22 deps twice": (6, [SORTED[0]] * 2),
    "b22 refs twice": (7, [SORTED[0]] * 2),
    "b22 deps not sorted": (6, [SORTED[1], SORTED[0]]),
    "b22 refs not sorted": (7, [SORTED[1], SORTED[0]]),
    "b22 a dep of 31 bytes": (6, [bytes(31)]),
    "b22 refs that are numbers": (7, [1, 2]),
    "b23 a negative seq": (4, -1),
    "b23 seq 1 without prev": (4, 1),
    "b23 the last seq without prev": (4, 2**64 - 1),
    "b23 prev at seq 0": (5, SORTED[0]),
    "b23 a boolean seq": (4, False),
    "b26 a group of 31 bytes": (1, bytes(31)),
    "b26 another group": (1, SORTED[5]),
    "b26 no group": (1, None),
    "b28 an author of 33 bytes": (2, bytes(33)),
    "b30 kind 256": (8, 256),
    "b30 kind -1": (8, -1),
    "b30 envelope version 2": (0, 2),
    "b30 envelope version 0": (0, 0),
    "b30 a body of text": (9, "text"),
    "b30 no body": (9, None),
    "b30 a log of 15 bytes": (3, bytes(15)),
}


@pytest.mark.parametrize("case", FIELDS)
async def test_b21_to_b30_a_well_signed_operation_with_a_bad_field_is_refused(siege: Siege, case):
    key = random_key()
    position, value = FIELDS[case]
    fields = fields_of(operation(siege.group, key))
    fields[position] = value

    assert await is_refused(siege, sign_fields(fields, key))


@pytest.mark.parametrize("change", [lambda f: f[:-1], lambda f: [*f, None], lambda _: []], ids="-+0")
async def test_b21_an_operation_of_more_or_fewer_fields_is_refused(siege: Siege, change):
    key = random_key()

    assert await is_refused(siege, sign_fields(change(fields_of(operation(siege.group, key))), key))


async def test_b21_the_largest_operation_is_taken_and_one_byte_more_is_not(siege: Siege):
    key = random_key()
    overhead = len(operation(siege.group, key, body=bytes(60_000)).encode()) - 60_000
    largest = operation(siege.group, key, body=b"\x01" + bytes(OPERATION_BYTES_MAX - overhead - 1))
    async with siege.hostile() as hostile:
        hostile.send(Gossip(group=siege.group, operations=(signed_wire(largest, key),)))
        await siege.live.until(lambda: largest.id in siege.state)
    larger = replace(largest, body=largest.body + b"\x00")

    assert "61440 bytes" in await is_refused(siege, signed_wire(larger, key))


@pytest.mark.parametrize(
    "changes",
    [
        {"deps": SORTED[:64]},
        {"refs": SORTED[:1024]},
        {"seq": 2**64 - 1, "prev": SORTED[3]},
        {"seq": 1, "prev": SORTED[3], "deps": SORTED[:2], "refs": SORTED[4:6]},
    ],
    ids=["deps", "refs", "the last seq", "everything"],
)
async def test_b22_b23_what_names_the_unknown_waits_apart_and_goes_with_its_sender(siege: Siege, changes):
    key = random_key()
    wire = signed_wire(operation(siege.group, key, **changes), key)
    async with siege.unharmed(is_offence=False), siege.hostile() as hostile:
        hostile.send(Gossip(group=siege.group, operations=(wire,)))
        await hostile.is_still_heard()
        await siege.live.until(lambda: siege.replica.orphan_count == 1)
    assert siege.replica.orphan_count == 0


@pytest.mark.parametrize("case", ["another author", "another log", "a gap", "itself again", "a later one"])
async def test_b24_what_does_not_continue_its_own_log_is_refused(siege: Siege, case):
    key, log = random_key(), os.urandom(16)
    first = sign_operation(operation(siege.group, key, log=log), key)
    second = sign_operation(operation(siege.group, key, log=log, seq=1, prev=first.id), key)
    async with siege.hostile() as hostile:
        hostile.send(Gossip(group=siege.group, operations=(first.wire(), second.wire())))
        await siege.live.until(lambda: second.id in siege.state)
    other = random_key()
    signer, changes = {
        "another author": (other, {"log": log, "seq": 1, "prev": first.id}),
        "another log": (key, {"seq": 1, "prev": first.id}),
        "a gap": (key, {"log": log, "seq": 7, "prev": second.id}),
        "itself again": (key, {"log": log, "seq": 1, "prev": second.id}),
        "a later one": (key, {"log": log, "seq": 2, "prev": first.id}),
    }[case]

    assert "does not continue its own log" in await is_refused(
        siege, signed_wire(operation(siege.group, signer, **changes), signer)
    )


async def test_b25_an_identical_replay_is_nothing_at_all(siege: Siege):
    """T2. What a fork does is decided in the view: ``tests/unit/protocol/test_state.py``."""
    small = (signed.wire() for signed in siege.state.causal() if len(signed.encoded) < 1000)
    wires = tuple(itertools.islice(small, 40))
    async with siege.unharmed(is_offence=False), siege.hostile() as hostile:
        for _ in range(100):
            hostile.send(Gossip(group=siege.group, operations=wires))
        await hostile.is_still_heard()


async def test_b26_operations_of_a_group_that_nobody_knows_only_lead_to_a_question(siege: Siege):
    elsewhere = make_genesis().group
    key = random_key()
    wire = signed_wire(operation(elsewhere, key), key)
    async with siege.unharmed(is_offence=False), siege.hostile() as hostile:
        hostile.send(Gossip(group=elsewhere, operations=(wire,)))

        assert (await hostile.hears(WantGenesis)).groups == (elsewhere,)


@pytest.mark.parametrize("case", ["zeros", "63", "65", "none", "S + L", "a flipped bit", "of another", "R"])
async def test_b27_a_signature_that_is_none_is_refused(siege: Siege, case):
    key = random_key()
    signed = sign_operation(operation(siege.group, key), key)
    good = signed.signature
    scalar = (int.from_bytes(good[32:], "little") + ORDER).to_bytes(32, "little")
    forged = {
        "zeros": bytes(64),
        "63": good[:-1],
        "65": good + b"\x00",
        "none": b"",
        "S + L": good[:32] + scalar,
        "a flipped bit": good[:5] + bytes([good[5] ^ 4]) + good[6:],
        "of another": sign_operation(operation(siege.group, key), key).signature,
        "R": b"\x01" + bytes(31) + good[32:],
    }[case]

    assert await is_refused(siege, encode([signed.encoded, forged]))


P = 2**255 - 19
Y8 = 2707385501144840649318225287225658788936804267575313519463743609750303402022
POINTS = [
    *((1, 0), (1, 1), (P - 1, 0), (P - 1, 1), (0, 0), (0, 1)),
    *((Y8, 0), (Y8, 1), (P - Y8, 0), (P - Y8, 1)),
    *((P, 0), (P, 1), (P + 1, 0), (P + 1, 1)),
    *((P + 5, 0), (2**255 - 1, 1)),
]


@pytest.mark.parametrize("point", range(len(POINTS)))
async def test_b28_an_author_of_small_order_or_without_canonical_form_is_refused(siege: Siege, point):
    """Under the identity point the signature (R = identity, S = 0) verifies everything in OpenSSL."""
    y, sign_bit = POINTS[point]
    author = (y | sign_bit << 255).to_bytes(32, "little")
    encoded = replace(operation(siege.group, NodeKey(bytes(32))), author=author).encode()

    reason = await is_refused(siege, encode([encoded, b"\x01" + bytes(63)]))

    assert "Ed25519 point" in reason or "not verify" in reason


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        *((kind, bytes([255]) + b"\x90") for kind in (1, 2, 3, 9)),
        *((kind, b"\x01" + junk) for kind in (1, 2, 3, 9) for junk in (b"", b"\xc1", b"\x91" * 20, b"\x90")),
        (1, b""),
        (255, b"\xff" * 100),
        (0, b"\x01"),
    ],
)
async def test_b30_b36_a_body_that_cannot_be_read_is_kept_and_has_no_effect(siege: Siege, kind, body):
    """R22: it is counted in the root, relayed, and changes nothing that anybody sees."""
    key = random_key()
    before = siege.state.view.visible
    made = operation(siege.group, key, kind=kind, body=body, deps=siege.state.choose_deps())
    async with siege.hostile() as hostile:
        hostile.send(Gossip(group=siege.group, operations=(signed_wire(made, key),)))
        await siege.live.until(lambda: made.id in siege.state)
    await siege.honest.until(lambda: made.id in siege.honest.services.engine.state(siege.group))

    assert siege.state.view.visible == before


@pytest.mark.parametrize("case", ["unknown heads", "of itself", "mutual", "of an honest author"])
async def test_b36_a_revoke_has_no_effect_in_this_release(siege: Siege, case):
    """Its number is taken, its body is not read yet: stored, relayed, without effect on anybody's view."""
    one, two = random_key(), random_key()
    victims = {
        "unknown heads": [(one, two.node_id, SORTED[0])],
        "of itself": [(one, one.node_id, SORTED[0])],
        "mutual": [(one, two.node_id, SORTED[0]), (two, one.node_id, SORTED[1])],
        "of an honest author": [(one, siege.honest.id, SORTED[0])],
    }[case]
    before = siege.state.view.visible
    made = []
    for key, victim, head in victims:
        body = b"\x01" + encode([victim, [head], os.urandom(16), [[key.node_id, bytes(64)]]])
        made.append((operation(siege.group, key, kind=Kind.REVOKE, body=body), key))
    async with siege.hostile() as hostile:
        wires = tuple(signed_wire(found, key) for found, key in made)
        hostile.send(Gossip(group=siege.group, operations=wires))
        await siege.live.until(lambda: all(found.id in siege.state for found, _ in made))

    assert siege.state.view.visible == before


# --- floods -------------------------------------------------------------------------------------------


async def test_t17_a_flood_of_bad_signatures_costs_one_verification_of_each_thread(siege: Siege, monkeypatch):
    """The first one ends the connection; the sender may come back later, and ever later."""
    key = random_key()
    forged = [
        encode([operation(siege.group, key, seq=0, log=bytes([n, *bytes(15)])).encode(), os.urandom(64)])
        for n in range(200)
    ]
    verified = []
    check = SignedOperation.check_signature
    monkeypatch.setattr(
        SignedOperation, "check_signature", lambda self: (verified.append(self.id), check(self))[1]
    )
    identity = siege.member()
    async with siege.unharmed(), siege.hostile(identity=identity) as hostile:
        for _ in range(50):
            hostile.send(Gossip(group=siege.group, operations=tuple(forged)))
        await hostile.is_sent_away()
        by_hostile = [id_ for id_ in verified if id_ in {operation_id_of(wire) for wire in forged}]

        assert 1 <= len(by_hostile) <= THREADS
    async with siege.hostile(identity=identity, is_greeted=False) as again:
        assert "it may come back in" in await again.is_sent_away()


def operation_id_of(wire: bytes) -> bytes:
    return SignedOperation.load(wire).id


async def test_t18_an_endless_chain_of_orphans_takes_its_senders_share_and_no_more(siege: Siege):
    wires = [signed.wire() for signed in chain(siege.group, ORPHANS_PER_PEER_MAX + 200, prev=SORTED[9])]
    async with siege.unharmed(is_offence=False), siege.hostile() as hostile:
        for begin in range(0, len(wires), 100):
            hostile.send(Gossip(group=siege.group, operations=tuple(wires[begin : begin + 100])))
        await hostile.is_still_heard()

        assert siege.replica.orphan_count == ORPHANS_PER_PEER_MAX
    assert siege.replica.orphan_count == 0
