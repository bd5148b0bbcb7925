"""The simulator catches bugs planted on purpose. All of them: ``make nightly STAGE=planted``."""

import pytest
from crdt_merge_protocol.plumtree import Plumtree
from crdt_merge_protocol.state import CRDTMergeState
from planted.bug import Bug, Change, bug_names, load_bug
from planted.hunt import attempt, hunt


@pytest.mark.parametrize("name", bug_names())
def test_every_patch_fits_the_code_and_leaves_it_as_it_was(name: str) -> None:
    bug = load_bug(name)
    before = (dict(vars(CRDTMergeState)), dict(vars(Plumtree)))

    with bug.planted():
        pass

    assert (dict(vars(CRDTMergeState)), dict(vars(Plumtree))) == before
    assert bug.load_scenario().name == bug.scenario
    assert bug.invariants


@pytest.mark.parametrize("name", ["reused-log", "seen-before-durable", "xor-root", "vector-off-by-one"])
def test_a_planted_bug_is_caught_and_nothing_else(name: str) -> None:
    caught = hunt(name, seeds_max=1, jobs=1)

    assert caught.seed == 1
    assert caught.false_alarms == {}
    assert caught.is_good


def test_a_patch_that_no_longer_fits_is_refused() -> None:
    change = Change(target="crdt_merge_protocol.plumtree:Plumtree.pruned", before="no such line", after="")
    bug = Bug(name="x", breaks="", scenario="calm-10", invariants=frozenset(), changes=(change,))

    with pytest.raises(ValueError, match="0 places that say: no such line"), bug.planted():
        pass


def test_an_attempt_without_the_bug_finds_nothing() -> None:
    assert attempt("vector-off-by-one", 2, is_planted=False).found == {}
