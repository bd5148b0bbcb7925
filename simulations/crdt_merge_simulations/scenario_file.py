"""Scenarios as files: TOML in, :class:`Scenario` out, with every problem of the file named at once.

The file says what :mod:`crdt_merge_simulations.plan` says, under the same names: the fields of a scenario at
the top, and the tables ``[topology]`` (with ``[topology.params]``), ``[workload]`` and ``[faults]`` (with
``[faults.counts]``). A scenario that is shipped goes by the name of its file.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_origin, get_type_hints

from crdt_merge_node.errors import ConfigError, did_you_mean

from .plan import FAULT_KINDS, FIDELITIES, FaultSpec, Scenario, TopologySpec, WorkloadSpec
from .topology import PARAMETERS

SCENARIOS: Final = Path(__file__).parent / "scenarios"
NODES_MAX: Final = 100_000
_TABLES: Final[Mapping[str, type]] = {
    "topology": TopologySpec,
    "workload": WorkloadSpec,
    "faults": FaultSpec,
}
_UNSIGNED: Final = frozenset(
    {"operations", "policy_changes", "administration", "late_joiners", "churn", "tensor_bytes"}
)


def names() -> list[str]:
    """Return the names of the scenarios that are shipped, sorted."""
    return sorted(path.stem for path in SCENARIOS.glob("*.toml"))


def find(name: str) -> Scenario:
    """Return a shipped scenario by name, or the one in a file.

    Raises:
        ConfigError: There is none, or it says what no scenario can say.
    """
    if name in names():
        return load(SCENARIOS / f"{name}.toml")
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return load(path)
    raise ConfigError(
        f'there is no scenario "{name}".',
        hint=did_you_mean(name, names()) or "`crdt-merge-sim list` shows them.",
    )


def load(path: Path) -> Scenario:
    """Return the scenario in a file. A topology file is looked for beside it.

    Raises:
        ConfigError: It cannot be read, or it says what no scenario can say.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    scenario = parse(text, name=path.stem)
    if scenario.topology.kind != "file":
        return scenario
    place = path.parent / str(scenario.topology.params["path"])
    topology = dataclasses.replace(scenario.topology, params={"path": str(place)})
    return dataclasses.replace(scenario, topology=topology)


def parse(text: str, *, name: str) -> Scenario:
    """Return the scenario in a text.

    Raises:
        ConfigError: Not TOML, or it says what no scenario can say; all problems are listed.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"scenario {name} is not TOML: {error}.") from None
    problems: list[str] = []
    tables: dict[str, Any] = {}
    for key, table_class in _TABLES.items():
        table = document.pop(key, {})
        if isinstance(table, dict):
            tables[key] = table_class(**_read(table_class, table, f"{key}.", problems))
        else:
            problems.append(f"{key} must be a table.")
            tables[key] = table_class()
    values = _read(Scenario, document, "", problems, skip=frozenset(_TABLES))
    scenario = Scenario(**{"name": name, **values, **tables})
    problems += _problems(scenario)
    if problems:
        raise ConfigError.of([f"scenario {name}: {problem}" for problem in problems])
    return scenario


def _read(
    of: type,
    table: Mapping[str, Any],
    prefix: str,
    problems: list[str],
    *,
    skip: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Return the values of a table that fit the fields of a dataclass; note the others."""
    hints = {key: hint for key, hint in get_type_hints(of).items() if key not in skip}
    values = {}
    for key, value in table.items():
        if key not in hints:
            hint = did_you_mean(key, [*hints, *skip])
            problems.append(f"{prefix}{key} is unknown. {hint}".strip())
            continue
        fitting = _fit(hints[key], value)
        if fitting is None:
            problems.append(f"{prefix}{key} cannot be {value!r}.")
        else:
            values[key] = fitting
    return values


def _fit(hint: Any, value: Any) -> Any:
    """Return ``value`` as the type of a field, or None if it does not fit."""
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if get_origin(hint) is tuple and isinstance(value, list):
        items = [_fit(item, one) for item, one in zip(get_args(hint), value, strict=False)]
        return tuple(items) if len(items) == len(value) == len(get_args(hint)) and None not in items else None
    if get_origin(hint) is Mapping and isinstance(value, dict):
        fitted = {key: _fit(get_args(hint)[1], one) for key, one in value.items()}
        return None if None in fitted.values() else fitted
    if hint is Any or (isinstance(hint, type) and type(value) is hint):
        return value
    return None


def _problems(scenario: Scenario) -> list[str]:
    """Return what is wrong with values of the right type."""
    problems = []
    if not 1 <= scenario.nodes <= NODES_MAX:
        problems.append(f"nodes must be 1..{NODES_MAX}, not {scenario.nodes}.")
    if scenario.fidelity not in FIDELITIES:
        problems.append(_no_such("fidelity", scenario.fidelity, FIDELITIES))
    if scenario.duration_s <= 0 or scenario.peace_s <= 0:
        problems.append("duration_s and peace_s must be positive.")
    problems += _topology_problems(scenario.topology)
    problems += _workload_problems(scenario)
    for kind, count in scenario.faults.counts.items():
        if kind not in FAULT_KINDS:
            problems.append(_no_such("faults.counts", kind, FAULT_KINDS))
        elif count < 0:
            problems.append(f"faults.counts.{kind} cannot be negative.")
    if not 0 <= scenario.faults.sites_apart_s <= scenario.duration_s:
        problems.append("faults.sites_apart_s must be within the duration.")
    return problems


def _topology_problems(topology: TopologySpec) -> list[str]:
    problems = []
    if topology.kind in PARAMETERS:
        known = PARAMETERS[topology.kind]
        problems += [_no_such("topology.params", key, known) for key in topology.params if key not in known]
    else:
        problems.append(_no_such("topology.kind", topology.kind, PARAMETERS))
    if topology.kind == "file" and "path" not in topology.params:
        problems.append('topology.params.path is needed for the kind "file".')
    for field in ("latency_ms", "wan_latency_ms"):
        low, high = getattr(topology, field)
        if not 0 < low <= high:
            problems.append(f"topology.{field} must be two positive numbers, the smaller first.")
    return problems


def _workload_problems(scenario: Scenario) -> list[str]:
    workload, problems = scenario.workload, []
    for field in dataclasses.fields(workload):
        value = getattr(workload, field.name)
        if field.name.endswith("_ratio") and not 0 <= value <= 1:
            problems.append(f"workload.{field.name} must be 0..1, not {value}.")
        if field.name in _UNSIGNED and value < 0:
            problems.append(f"workload.{field.name} cannot be negative.")
    if not 0 <= workload.within_s <= scenario.duration_s:
        problems.append("workload.within_s must be within the duration.")
    if workload.groups < 1:
        problems.append("workload.groups must be at least 1.")
    if workload.late_joiners >= max(1, scenario.nodes):
        problems.append(
            "workload.late_joiners must leave at least one node that is there from the beginning."
        )
    return problems


def _no_such(what: str, word: str, known: Any) -> str:
    return f"{what}: {word!r} is unknown. {did_you_mean(word, known) or 'Known: ' + ', '.join(known)}"
