"""Plans and results as JSON documents: ``sim-plan/1`` and ``sim-result/1``.

A result carries the whole plan that led to it, not only scenario and seed. So an artefact of last year
replays although the planner has drawn differently since, and a plan that was shrunk is still a plan.
Fields are only ever added.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from crdt_merge_node.errors import ConfigError

from .plan import Act, Fault, FaultSpec, Link, Plan, Scenario, TopologySpec, WorkloadSpec
from .result import Check, Result, Sample

PLAN_SCHEMA: Final = "sim-plan/1"
RESULT_SCHEMA: Final = "sim-result/1"
_COUNTERS: Final = ("sometimes", "hops")


def plan_document(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON objects."""
    return {
        "schema": PLAN_SCHEMA,
        "seed": plan.seed,
        "scenario": dataclasses.asdict(plan.scenario),
        "links": [[link.a, link.b, link.latency_s, link.is_wan] for link in plan.links],
        "sites": list(plan.sites),
        "acts": [dataclasses.asdict(act) for act in plan.acts],
        "faults": [dataclasses.asdict(fault) for fault in plan.faults],
    }


def read_plan(document: Mapping[str, Any]) -> Plan:
    """Return the plan of a document.

    Raises:
        ConfigError: It is no plan, or of another schema.
    """
    _expect(document, PLAN_SCHEMA)
    try:
        return Plan(
            scenario=_read_scenario(document["scenario"]),
            seed=document["seed"],
            links=tuple(
                Link(a=a, b=b, latency_s=latency_s, is_wan=is_wan)
                for a, b, latency_s, is_wan in document["links"]
            ),
            sites=tuple(document["sites"]),
            acts=tuple(Act(**act) for act in document["acts"]),
            faults=tuple(Fault(**fault) for fault in document["faults"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"The plan is damaged: {error!r}.") from error


def result_document(result: Result, plan: Plan | None = None, command: str = "") -> dict[str, Any]:
    """Return a result as JSON objects, with its plan and the command that replays it."""
    document: dict[str, Any] = {"schema": RESULT_SCHEMA, "is_success": result.is_success, "command": command}
    document |= dataclasses.asdict(result)
    for check, text in zip(result.checks.values(), document["checks"].values(), strict=True):
        text["verdict"] = check.verdict
    for name in _COUNTERS:
        document[name] = {str(key): count for key, count in sorted(getattr(result, name).items())}
    return document | ({"plan": plan_document(plan)} if plan is not None else {})


def read_result(document: Mapping[str, Any]) -> Result:
    """Return the result of a document.

    Raises:
        ConfigError: It is no result, or of another schema.
    """
    _expect(document, RESULT_SCHEMA)
    known = {field.name for field in dataclasses.fields(Result)}
    values = {name: value for name, value in document.items() if name in known}
    try:
        values["checks"] = {
            id_: Check(id=id_, claim=check["claim"], checked=check["checked"], violations=check["violations"])
            for id_, check in document["checks"].items()
        }
        values["samples"] = [Sample(**sample) for sample in document["samples"]]
        values["links"] = [(a, b) for a, b in document["links"]]
        values["sometimes"] = Counter(document["sometimes"])
        values["hops"] = Counter({int(hop): count for hop, count in document["hops"].items()})
        return Result(**values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"The result is damaged: {error!r}.") from error


def load(path: Path) -> dict[str, Any]:
    """Read a JSON document from a file.

    Raises:
        ConfigError: There is no such file, or it holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no JSON object.")
    return document


def plan_in(document: Mapping[str, Any]) -> Plan:
    """Return the plan of a plan document, or the one inside a result document.

    Raises:
        ConfigError: It holds no plan.
    """
    return read_plan(document.get("plan", document))


def _expect(document: Mapping[str, Any], schema: str) -> None:
    found = document.get("schema") if isinstance(document, Mapping) else None
    if found != schema:
        raise ConfigError(f"The document is {found!r}, not {schema!r}.")


def _read_scenario(values: Mapping[str, Any]) -> Scenario:
    topology = dict(values["topology"])
    for name in ("latency_ms", "wan_latency_ms"):
        low, high = topology[name]
        topology[name] = (low, high)
    parts = {
        "topology": TopologySpec(**topology),
        "workload": WorkloadSpec(**values["workload"]),
        "faults": FaultSpec(**values["faults"]),
    }
    return Scenario(**{**values, **parts})
