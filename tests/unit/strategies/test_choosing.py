"""Which artefacts a merge uses (STRATEGIES 1.10, 1.12)."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.resolve_key import resolve_key, used_root
from crdt_merge_protocol.strategies import registry
from crdt_merge_protocol.strategies.artefacts import Artefact, ArtefactNeed
from crdt_merge_protocol.strategies.choosing import (
    Choice,
    Offer,
    choose,
    named_strategies,
    needs_of,
    needs_stand_in,
    whole_recipe,
)

ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))
ANN, BOB, EVE = b"ann", b"bob", b"eve"
BASE = b"B" * 32
FISHER = ArtefactNeed("fisher_diag")
TABLE = ArtefactNeed("lambda_table")
AUTHORS = {ONE: {ANN}, TWO: {BOB, ANN}}


def offer(
    number: int,
    *,
    subject: bytes = b"",
    models: tuple[bytes, ...] = (),
    author: bytes = ANN,
    depth: int = 5,
    base: bytes = b"",
    is_admin: bool = True,
) -> Offer:
    header: dict[str, Any] = {"subject": subject.hex()} if subject else {"set_root": used_root(models).hex()}
    if base:
        header["base"] = base.hex()
    digest = number.to_bytes(32, "big")
    type_ = "fisher_diag" if subject else "lambda_table"
    artefact = Artefact(digest=digest, type=type_, header=header, specs=())
    return Offer(artefact=artefact, author=author, order=(depth, digest), is_admin=is_admin)


def chosen(offers: list[Offer], **options: Any) -> Choice:
    settings = {"base_content": BASE, "sets_aside": True} | options
    needs = settings.pop("needs", (FISHER, TABLE))
    choices = {repr(choose(needs, order, AUTHORS, **settings)) for order in itertools.permutations(offers)}
    assert len(choices) == 1, "the order of offers does not matter"
    return choose(needs, offers, AUTHORS, **settings)


def numbers(choice: Choice) -> list[int]:
    return [int.from_bytes(artefact.digest, "big") for artefact in choice.artefacts]


def reasons(choice: Choice) -> dict[int, str]:
    return {int.from_bytes(digest, "big"): why.reason for digest, why in choice.unfit.items()}


def test_the_newest_of_whoever_contributed_the_subject_counts():
    choice = chosen(
        [
            offer(9, subject=ONE, depth=3),
            offer(1, subject=ONE, depth=4),
            offer(7, subject=ONE, depth=99, author=EVE),
            offer(4, subject=TWO, author=BOB),
            offer(5, subject=TWO),
        ]
    )

    assert numbers(choice) == [1, 5]
    assert choice.models == (ONE, TWO)
    assert reasons(choice) == {
        9: "there is a newer one",
        7: f"its author did not contribute {ONE.hex()[:12]}",
        4: "there is a newer one",
    }


def test_what_lacks_its_artefact_is_set_aside_in_a_group_and_only_there():
    offers = [offer(1, subject=TWO)]

    assert chosen(offers).models == (TWO,)
    assert "no fisher_diag" in chosen(offers).lacking[ONE]
    assert chosen(offers, sets_aside=False).models == (ONE, TWO)
    assert chosen(offers, needs=(replace(FISHER, is_optional=True),)).models == (ONE, TWO)


def test_a_set_is_what_is_left_once_others_were_set_aside():
    choice = chosen([offer(1, subject=TWO), offer(2, models=(TWO,)), offer(3, models=(ONE, TWO))])

    assert numbers(choice) == [1, 2]
    assert choice.unfit[bytes(31) + b"\3"].is_stale
    assert "another set" in reasons(choice)[3]


def test_only_administrators_speak_for_the_set_unless_the_policy_names_one():
    both = (ONE, TWO)
    offers = [
        offer(1, models=both, depth=3),
        offer(2, models=both, depth=2),
        offer(3, models=both, depth=9, is_admin=False),
        offer(4, models=(ONE,), depth=9),
    ]

    assert numbers(chosen(offers, needs=(TABLE,))) == [1]
    assert numbers(chosen(offers, needs=(TABLE,), named=bytes(31).hex() + "03")) == [3]
    assert numbers(chosen(offers, needs=(TABLE,), named=bytes(31).hex() + "04")) == []
    assert "no administrator" in reasons(chosen(offers, needs=(TABLE,)))[3]


def test_what_was_made_for_another_base_is_stale():
    choice = chosen([offer(1, subject=ONE, base=b"x" * 32), offer(2, subject=TWO, base=BASE)])

    assert numbers(choice) == [2]
    assert choice.unfit[bytes(31) + b"\1"].is_stale
    assert choice.models == (TWO,)


def test_types_that_nobody_asked_for_are_let_alone():
    choice = chosen([offer(1, subject=ONE), offer(2, models=(ONE, TWO))], needs=())

    assert (choice.artefacts, choice.unfit, choice.models) == ((), {}, (ONE, TWO))


def test_what_a_stand_in_works_with_sets_nobody_aside():
    needs = needs_of(registry.get("ada_merging"), {"fallback": "fisher_merge"})

    assert {need.type: need.is_optional for need in needs} == {"lambda_table": False, "fisher_diag": True}


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("weight_average", False), ("fisher_merge", False), ("ada_merging", True), ("krum", True)],
)
def test_what_the_set_may_lack_needs_a_stand_in(strategy: str, expected: bool):
    assert needs_stand_in(registry.get(strategy)) is expected


def test_another_version_of_a_stand_in_is_another_recipe(monkeypatch: pytest.MonkeyPatch):
    plain = Policy(strategy="krum", schema=bytes(32))
    with_ties = replace(plain, params=(("fallback", "ties"), ("fallback.density", "0.5")))
    before = whole_recipe(with_ties)
    assert (whole_recipe(plain), before) == (plain.recipe(), with_ties.recipe())
    monkeypatch.setattr(type(registry.get("ties")), "version", 2)

    assert whole_recipe(plain) == plain.recipe()
    assert whole_recipe(with_ties) != before


def test_another_version_of_what_is_named_by_default_is_another_recipe(monkeypatch: pytest.MonkeyPatch):
    """Spunge merges by ties unless told otherwise; so does spunge as a stand-in, and so does an alias."""
    recipes = [
        Policy(strategy="split_unlearn_merge", schema=bytes(32), params=(("fallback", "linear"),)),
        Policy(strategy="krum", schema=bytes(32), params=(("fallback", "spunge"),)),
        Policy(strategy="krum", schema=bytes(32), params=(("fallback", "split_unlearn_merge"),)),
    ]
    before = [whole_recipe(policy) for policy in recipes]
    monkeypatch.setattr(type(registry.get("ties")), "version", 2)

    assert all(new != old for new, old in zip(map(whole_recipe, recipes), before, strict=True))


def test_a_stand_in_named_by_an_alias_brings_its_needs():
    assert [each.id for each in named_strategies({"fallback": "average"})] == ["weight_average"]
    assert [need.type for need in needs_of(registry.get("krum"), {"fallback": "negmerge"})] == ["role"]
    assert [need.type for need in needs_of(registry.get("krum"), {"fallback": "spunge"})] == ["role"]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"fallback": "weight_average"}, False),
        ({"fallback": "average"}, False),
        ({"fallback": "multi_krum"}, True),
        ({"fallback": "multi_krum", "fallback.fallback": "none"}, True),
        ({"fallback": "multi_krum", "fallback.fallback": "weight_average"}, False),
    ],
)
def test_a_stand_in_that_may_fail_as_well_needs_one_in_turn(params: dict[str, str], expected: bool):
    assert needs_stand_in(registry.get("krum"), params) is expected


def test_keys_are_as_ever_without_artefacts_and_tasks():
    """Pinned: outputs and attestations of earlier releases are found under these keys."""
    root, recipe = used_root([ONE, TWO]), b"recipe"
    plain = resolve_key(root, recipe)
    others = {
        resolve_key(root, recipe, artefacts=[THREE]),
        resolve_key(root, recipe, artefacts=[THREE, ONE]),
        resolve_key(root, recipe, task=ONE),
        resolve_key(root, recipe, artefacts=[THREE], task=TWO),
    }
    whole = resolve_key(root, recipe, artefacts=[THREE], task=ONE)

    assert (plain.hex(), whole.hex()) == (PLAIN_KEY, WHOLE_KEY)
    assert len(others - {plain, whole}) == 4
    assert resolve_key(root, recipe, artefacts=[ONE, THREE, ONE]) in others


PLAIN_KEY = "573701fbef0e744e389ba6a427732f844d75982afce255da94a40d5bdbb736bc"
WHOLE_KEY = "05c0979ccdacabb2a9fc8ab3925139908bea28d685dda5fe8482482a30a132e7"
