"""A bug as data: which lines of the real code are replaced by which, and who must notice.

A patch names a function and an exact piece of its source, so it breaks loudly when the code it was made for
has changed, and needs no copy of the packages: the changed source is compiled in the place of the original.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, Final
from unittest.mock import patch

from crdt_merge_simulations import scenario_file
from crdt_merge_simulations.plan import Scenario

BUGS: Final = Path(__file__).parent / "bugs"
SCENARIOS: Final = Path(__file__).parent / "scenarios"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One hunk of a patch."""

    target: str
    """``module:name`` or ``module:Class.name`` of a function or property."""
    before: str
    """A piece of its source that occurs exactly once; leading and trailing space counts for nothing."""
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """One planted bug."""

    name: str
    breaks: str
    """What it breaks, in one sentence."""
    scenario: str
    """Found in ``scenarios/`` here, else among those that are shipped."""
    invariants: frozenset[str]
    """Of these at least one must be violated."""
    changes: tuple[Change, ...]

    def load_scenario(self) -> Scenario:
        """Return the scenario in which the bug must show."""
        path = SCENARIOS / f"{self.scenario}.toml"
        return scenario_file.load(path) if path.exists() else scenario_file.find(self.scenario)

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Run the code with the bug.

        Raises:
            ValueError: The code is not the one that the patch was made for.
        """
        with ExitStack() as stack:
            for target in dict.fromkeys(change.target for change in self.changes):
                owner, name = _find(target)
                changes = [change for change in self.changes if change.target == target]
                changed = _changed(inspect.getattr_static(owner, name), changes)
                stack.enter_context(patch.object(owner, name, changed))
            yield


def load_bug(name: str) -> Bug:
    """Return a planted bug by name."""
    table = tomllib.loads((BUGS / f"{name}.toml").read_text())
    changes = tuple(Change(**change) for change in table.pop("changes"))
    return Bug(name=name, changes=changes, invariants=frozenset(table.pop("invariants")), **table)


def bug_names() -> list[str]:
    """Return the names of all planted bugs, sorted."""
    return sorted(path.stem for path in BUGS.glob("*.toml"))


def _find(target: str) -> tuple[Any, str]:
    """Return the module or class and the name in it."""
    module, _, path = target.partition(":")
    *outer, name = path.split(".")
    owner = importlib.import_module(module)
    for part in outer:
        owner = getattr(owner, part)
    return owner, name


def _changed(original: Any, changes: Iterable[Change]) -> Any:
    """Return a function, property or class method with another source."""
    function: FunctionType = getattr(original, "fget", None) or getattr(original, "__func__", original)
    source = textwrap.dedent(inspect.getsource(function))
    for change in changes:
        source = _replaced(source, change)
    # On the lines where the original is, so that tracebacks point there.
    code = compile(
        "from __future__ import annotations" + "\n" * (function.__code__.co_firstlineno - 1) + source,
        function.__code__.co_filename,
        "exec",
    )
    names: dict[str, Any] = {}
    exec(code, function.__globals__, names)
    return names[function.__name__]


def _replaced(source: str, change: Change) -> str:
    """Return a source with the one place that a change is about changed."""
    lines, before = source.splitlines(), _stripped(change.before)
    stripped = _stripped(source)
    places = [at for at in range(len(lines)) if stripped[at : at + len(before)] == before]
    if len(places) != 1:
        raise ValueError(f"{change.target} has {len(places)} places that say: {change.before.strip()}")
    [at] = places
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    after = textwrap.indent(textwrap.dedent(change.after).strip("\n"), indent)
    return "\n".join([*lines[:at], after, *lines[at + len(before) :]])


def _stripped(source: str) -> list[str]:
    return [line.strip() for line in source.strip("\n").splitlines()]
