"""SCENARIOS S1 to S9, S11, S14: what the published reference fails; on copies, by wire, after a restart."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from crdt_merge_protocol.blobs import Manifest, ManifestEntry, Schema, TensorSpec, contribution_digest
from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.errors import BadSignatureError
from crdt_merge_protocol.merkle import root_of
from crdt_merge_protocol.operations import Add, Kind, SignedOperation, sign_operation
from crdt_merge_protocol.resolve_key import resolve_key, seed_of, used_root
from crdt_merge_protocol.state import CRDTMergeState
from support.authors import KEYS, ONE, Author, contents, hash_of, make_genesis, meet
from support.forged import signed_wire

GENESIS = make_genesis()


def authors(count: int) -> list[Author]:
    return [Author(GENESIS, number) for number in range(count)]


def joined(*states: CRDTMergeState) -> CRDTMergeState:
    result = states[0].copy()
    for state in states[1:]:
        result.join(state)
    return result


def restarted(state: CRDTMergeState) -> CRDTMergeState:
    """Return the state rebuilt from its stored bytes."""
    rebuilt = CRDTMergeState(state.genesis)
    for wire in [signed.wire() for signed in state.causal()]:
        rebuilt.apply(SignedOperation.parse(wire))
    return rebuilt


def used_root_of(state: CRDTMergeState) -> bytes:
    return used_root(shown.digest for shown in state.view.visible)


def test_s1_join_is_associative_with_a_supersede_and_a_remove_in_play() -> None:
    one, two, three = authors(3)
    one.add("superseded")
    two.pull(one)
    tag = two.add("removed").id
    three.pull(two)
    one.add("newer")
    two.remove(tag)
    three.add("third")
    s1, s2, s3 = one.state, two.state, three.state
    left, right = joined(joined(s1, s2), s3), joined(s1, joined(s2, s3))

    assert left.view == right.view
    assert left.sync_root == right.sync_root
    assert contents(left) == ["newer", "third"]
    assert restarted(left).view == right.view


def test_s2_content_added_by_two_and_removed_by_one_stays_visible() -> None:
    one, two = authors(2)
    one.add("same")
    tag = two.add("same").id
    two.remove(tag)
    meet(one, two)

    assert contents(one.state) == contents(two.state) == ["same"]
    assert [shown.author for shown in two.state.view.visible] == [one.node_id]


def test_s3_a_concurrent_add_survives_a_remove() -> None:
    here, there = Author(GENESIS, 0), Author(GENESIS, 0)
    tag = here.add("same").id
    there.pull(here)
    there.log = b"second process.."
    here.remove(tag)
    there.add("same")
    meet(here, there)

    assert contents(here.state) == contents(there.state) == ["same"]


def test_s3_an_add_after_a_remove_is_visible_everywhere() -> None:
    one, two = authors(2)
    one.remove(one.add("same").id)
    one.add("same")
    two.pull(one)

    assert contents(two.state) == contents(one.state) == ["same"]


def test_s4_a_remove_takes_effect_at_the_origin_across_the_wire_and_after_a_restart() -> None:
    one, two = authors(2)
    tag = one.add().id
    two.pull(one)
    removal = one.remove(tag)

    assert contents(one.state) == []
    assert contents(two.state) == ["content"]
    two.state.apply(SignedOperation.parse(removal.wire()))
    assert contents(two.state) == []
    assert contents(restarted(two.state)) == []
    one.pull(two)
    assert contents(restarted(one.state)) == []


def test_s5_two_processes_of_one_key_never_mint_equal_tags() -> None:
    first, second = Author(GENESIS), Author(GENESIS)
    second.log = b"second process.."

    assert first.add("same").id != second.add("same").id


def test_s5_a_restored_backup_mints_no_tag_again_and_convicts_nobody() -> None:
    """PROTOCOL R4: after a restart the log is another one, though key, state and content are the same."""
    node = Author(GENESIS)
    node.add("before")
    backup = node.state.copy()
    lost = node.add("lost")
    node.state = backup
    node.restart()
    again = node.add("lost")
    node.state.apply(lost)

    assert again.id != lost.id
    assert not node.state.view.forked


def test_s6_every_delivery_order_gives_the_same_view_and_roots() -> None:
    """All orders of a small history that has everything in it; longer ones are drawn in tests/property."""
    one, two = authors(2)
    tag = one.add("a").id
    fork = two.make(77, b"fork")
    two.add("b")
    two.restart()
    two.pull(one)
    two.hold(tag)
    one.add("c")
    one.remove(tag)
    one.pull(two)
    one.state.apply(fork)
    operations = one.state.causal()
    outcomes, count = set(), 0
    for order in itertools.permutations(operations):
        known: set[bytes] = set()
        if not all(s.operation.parents <= known and not known.add(s.id) for s in order):
            continue
        state = CRDTMergeState(GENESIS)
        for signed in order:
            state.apply(signed)
        count += 1
        outcomes.add((state.sync_root, state.view.fingerprint, used_root_of(state)))

    assert count > 10
    assert outcomes == {(one.state.sync_root, one.state.view.fingerprint, used_root_of(one.state))}


@pytest.mark.parametrize(
    "changes",
    [
        {"base": hash_of("base")},
        {"strategy": "ties"},
        {"strategy_version": 2},
        {"params": {"density": "0.5"}},
        {"params": {"density": "0.50"}},
        {"seed_rule": "contribution"},
        {"dtype": "F32"},
        {"schema": hash_of("other schema")},
    ],
    ids=str,
)
def test_s7_another_recipe_is_another_resolve_key(changes: dict[str, object]) -> None:
    policy = GENESIS.policy
    root = used_root([hash_of("one"), hash_of("two")])

    assert resolve_key(root, policy.recipe()) == resolve_key(root, policy.next().recipe())
    assert resolve_key(root, policy.recipe()) != resolve_key(root, policy.next(**changes).recipe())


def test_s7_another_set_is_another_resolve_key_and_another_seed() -> None:
    one, two = hash_of("one"), hash_of("two")
    recipe = GENESIS.policy.recipe()

    assert resolve_key(used_root([one]), recipe) != resolve_key(used_root([one, two]), recipe)
    assert seed_of([one]) != seed_of([one, two])


def test_r17_order_and_repetition_change_neither_root_nor_seed() -> None:
    digests = [hash_of(str(number)) for number in range(40)]

    assert used_root(digests) == used_root(reversed([*digests, *digests])) == root_of(digests)
    assert seed_of(digests) == seed_of([*digests[20:], *digests])
    assert seed_of(digests) != used_root(digests)


def test_r17_who_contributed_where_and_when_changes_no_used_root() -> None:
    one, two = authors(2)
    one.add("a")
    one.add("b", slot="second", payload=hash_of("notes"))
    two.remove(two.add("x").id)
    two.add("b")
    two.restart()
    two.add("a", slot="elsewhere")

    assert one.state.sync_root != two.state.sync_root
    assert used_root_of(one.state) == used_root_of(two.state)


def test_s8_no_two_tuples_of_fields_hash_alike_by_concatenation() -> None:
    assert digest("domain", b"1.0", b"11") != digest("domain", b"1.01", b"1")
    assert digest("domain", b"ab") != digest("domain", b"a", b"b")
    assert digest("domain", b"") != digest("domain")
    assert digest("domaina", b"b") != digest("domain", b"ab")


def test_s8_shape_and_dtype_are_part_of_a_content_id() -> None:
    def content(dtype: str, shape: tuple[int, ...]) -> bytes:
        spec = TensorSpec(name="w", dtype=dtype, shape=shape)
        return Manifest.of([ManifestEntry(spec=spec, blob=hash_of("blob"))]).content

    variants = [
        ("F32", (2, 3)),
        ("F32", (3, 2)),
        ("F32", (6,)),
        ("F16", (2, 3)),
        ("F64", (2, 3)),
        ("F32", (23,)),
    ]

    assert len({content(*variant) for variant in variants}) == len(variants)


def test_s11_a_renamed_tensor_or_swapped_tensors_change_the_roots() -> None:
    """Down to the used root: what is merged under another name is another model."""

    def named(*names: str) -> list[TensorSpec]:
        return [TensorSpec(name=name, dtype="F32", shape=(2, 3)) for name in names]

    def root(*names: str) -> bytes:
        blobs = (hash_of("first"), hash_of("second"))
        pairs = zip(named(*names), blobs, strict=True)
        content = Manifest.of([ManifestEntry(spec=spec, blob=blob) for spec, blob in pairs]).content
        return used_root([contribution_digest(kind="model", content=content, weight=ONE)])

    assert len({root("a", "b"), root("a", "c"), root("b", "a")}) == 3
    assert Schema.of(named("a", "b")).id != Schema.of(named("a", "c")).id


def test_s8_weight_and_type_are_part_of_a_contribution_digest() -> None:
    add = Add(slot="main", type="model", content=hash_of("c"), weight=ONE, payload=None)
    variants = [add, replace(add, weight=ONE + 1), replace(add, weight=-ONE), replace(add, type="modelx")]

    assert len({variant.digest for variant in variants}) == len(variants)
    assert add.digest == contribution_digest(kind="model", content=hash_of("c"), weight=ONE)


def test_s9_what_is_handed_out_can_be_changed_without_changing_the_state() -> None:
    node = authors(1)[0]
    node.add("a")
    before = node.state.view, node.state.sync_root, node.state.version_vector
    node.state.version_vector.clear()
    node.state.causal().clear()
    node.state.copy().apply(Author(GENESIS, 1).add("b"))
    node.state.trie.copy().insert(bytes(32))

    assert (node.state.view, node.state.sync_root, node.state.version_vector) == before
    assert isinstance(node.state.heads(), frozenset)
    assert isinstance(node.state.adds, frozenset)
    with pytest.raises(AttributeError):
        node.state.view.visible[0].weight = 2  # type: ignore[misc]


def test_s9_what_is_handed_in_can_be_changed_without_changing_the_state() -> None:
    node = authors(1)[0]
    other = Author(GENESIS, 1)
    wire = bytearray(other.add("a").wire())
    signed = SignedOperation.parse(bytes(wire))
    node.state.join(other.state)
    root = node.state.sync_root
    wire[:] = bytes(len(wire))
    other.add("b")

    assert node.state.sync_root == root
    assert node.state.get(signed.id) == signed
    assert contents(node.state) == ["a"]


def test_t33_less_than_a_quorum_changes_nothing_anywhere() -> None:
    genesis = make_genesis(admins=KEYS[:3], quorum=3)
    thief, node = Author(genesis, 0), Author(genesis, 4)
    thief.change_policy((KEYS[0], KEYS[1], KEYS[1], KEYS[0]), strategy="ties")
    node.pull(thief)

    assert node.state.view.policy == genesis.policy
    assert node.state.get(next(iter(node.state.heads()))).operation.kind == Kind.POLICY


def test_s14_forged_and_unsigned_evidence_is_refused_and_convicts_nobody() -> None:
    """Evidence is a second operation at one place of an author's log; only the author can make it."""
    victim, accuser = authors(2)
    first = victim.add("honest")
    accuser.pull(victim)
    before = accuser.state.view
    second = replace(first.operation, kind=77, body=b"second")
    genuine = sign_operation(second, victim.key)
    forgeries = (
        signed_wire(second, accuser.key),
        replace(genuine, signature=first.signature).wire(),  # The victim's, but of another operation.
        replace(genuine, signature=bytes(64)).wire(),
    )
    for wire in forgeries:
        with pytest.raises(BadSignatureError):
            SignedOperation.parse(wire)

    assert accuser.state.view == before
    assert not accuser.state.view.forked
    assert accuser.state.fork_proof(victim.node_id) is None
    # The same operation with the victim's own signature convicts: the forgeries lacked nothing else.
    accuser.state.apply(SignedOperation.parse(genuine.wire()))
    assert accuser.state.view.forked == {victim.node_id}


def test_s14_who_brings_evidence_gains_nothing_by_it() -> None:
    forker, accuser, other = authors(3)
    proof = forker.make(77, b"second")
    forker.add("forked")
    accuser.add("accuser's")
    other.add("other's")
    meet(forker, accuser, other)
    before = {shown.tag: shown for shown in accuser.state.view.visible}

    accuser.state.apply(proof)
    meet(accuser, other)

    after = {shown.tag: shown for shown in other.state.view.visible}
    assert contents(other.state) == ["accuser's", "other's"]
    assert after.items() <= before.items()  # Weights, depths and order of those left are what they were.
    assert other.state.view.policy == accuser.state.view.policy == make_genesis().policy
