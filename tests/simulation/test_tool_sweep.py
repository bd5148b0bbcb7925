"""Sweeps over processes, as the command runs them."""

from crdt_merge_simulations.plan import Scenario
from crdt_merge_simulations.sweeping import sweep
from support.stories import fail_every_third


def test_two_processes_find_what_one_finds() -> None:
    alone = list(sweep(Scenario(name="x"), range(6), jobs=1, run_one=fail_every_third))
    spread = sorted(
        sweep(Scenario(name="x"), range(6), jobs=2, run_one=fail_every_third),
        key=lambda outcome: outcome.seed,
    )

    assert spread == alone
