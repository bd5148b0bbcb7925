"""Events of whole daemons in virtual time: each its own, and the same in every run."""

from __future__ import annotations

import pytest
from crdt_merge_node import runtime
from crdt_merge_node.control.model import LogEvent
from crdt_merge_node.telemetry.events import EventLog
from crdt_merge_simulations import daemon_world
from crdt_merge_simulations.plan import FaultSpec, Scenario, WorkloadSpec
from crdt_merge_simulations.planning import make_plan

SCENARIO = Scenario(
    name="events",
    nodes=4,
    fidelity="daemon",
    duration_s=6.0,
    workload=WorkloadSpec(operations=8),
    faults=FaultSpec(counts={"kill": 2, "partition": 1, "freeze": 2, "reset": 2}),
)


def run(monkeypatch: pytest.MonkeyPatch) -> list[list[LogEvent]]:
    """Run the scenario; return the events of every life of every daemon, in the order of their starts."""
    lives: list[EventLog] = []

    class Noted(EventLog):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            lives.append(self)

    monkeypatch.setattr(runtime, "EventLog", Noted)
    assert daemon_world.run(make_plan(SCENARIO, 3)).is_success
    return [life.read(level="debug") for life in lives]


def test_no_daemon_remembers_what_another_did(monkeypatch: pytest.MonkeyPatch) -> None:
    lives = run(monkeypatch)

    assert len(lives) >= 6, "two were killed and started again"
    for events in lives:
        opened = [event for event in events if event.event == "store.opened"]
        ready = [event.fields["node"] for event in events if event.event == "node.ready"]
        assert len(opened) <= 1
        assert len(ready) <= 1
        assert not {event.fields.get("peer") for event in events} & set(ready), "nobody is its own peer"
    joined = [event for events in lives for event in events if event.event == "peer.joined"]
    assert len(joined) >= 12


def test_the_events_of_a_run_are_those_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch) == run(monkeypatch)
