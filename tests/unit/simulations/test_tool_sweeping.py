"""Sweeps: each seed once, and failures that are alike told once."""

import sys
import types
from collections.abc import Sequence

import pytest
from crdt_merge_node.errors import ConfigError
from crdt_merge_simulations import sweeping
from crdt_merge_simulations.failures import failures, signature
from crdt_merge_simulations.plan import Scenario
from crdt_merge_simulations.sweeping import Outcome, Tally, sweep, sweep_on_ray
from support.stories import fail_every_third, make_plan, make_result


def test_failures_that_differ_in_numbers_only_are_told_once() -> None:
    tally = Tally()
    for outcome in sweep(Scenario(name="x"), range(1, 10), jobs=1, run_one=fail_every_third):
        tally.add(outcome)

    assert (tally.runs, tally.failed) == (9, 3)
    assert list(tally.causes.values()) == [[3, 6, 9]]
    assert tally.blind_spots == ["fork seen"]
    assert tally.sometimes["orphan buffered"] == 9


@pytest.mark.parametrize(
    ("one", "other", "is_alike"),
    [
        ("n3 lost 2 operations", "n17 lost 40 operations", True),
        ("op 00ab12ff is gone from n1", "op 9f3e77aa is gone from n2", True),
        ("n3 lost 2 operations", "n3 kept 2 operations", False),
    ],
)
def test_particulars_do_not_tell_failures_apart(one: str, other: str, is_alike: bool) -> None:
    assert (signature("I1", one) == signature("I1", other)) is is_alike


def test_the_same_words_under_another_invariant_are_another_failure() -> None:
    assert signature("I1", "gone") != signature("I4", "gone")


def test_a_run_that_never_converged_failed_by_that() -> None:
    result = make_result(make_plan(), is_converged=False)

    assert list(failures(result)) == ["convergence"]


def test_without_ray_the_option_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping.importlib.util, "find_spec", lambda _name: None)

    with pytest.raises(ConfigError, match="not installed"):
        list(sweep_on_ray(Scenario(name="x"), [1], "auto"))


def test_with_ray_seeds_are_spread_over_the_cluster_and_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Remote:
        def __init__(self, function: object) -> None:
            self.function = function

        def remote(self, *args: object) -> Outcome:
            return self.function(*args)

    def wait(running: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
        return list(running[:1]), list(running[1:])

    ray = types.ModuleType("ray")
    ray.init = lambda address: calls.append(f"init {address}")
    ray.remote, ray.wait, ray.get = Remote, wait, list
    ray.shutdown = lambda: calls.append("shutdown")
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(sweeping.importlib.util, "find_spec", lambda _name: object())
    monkeypatch.setattr(sweeping, "run_seed", fail_every_third)

    outcomes = list(sweep_on_ray(Scenario(name="x"), [1, 2, 3], "10.0.0.1:6379"))

    assert [outcome.seed for outcome in outcomes] == [1, 2, 3]
    assert calls == ["init 10.0.0.1:6379", "shutdown"]
