"""What several commands have in common: how a scenario is named, how errors end a command."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Concatenate, Final, ParamSpec

import click
from crdt_merge_node.cli.output import clean, note, say_json
from crdt_merge_protocol.errors import CrdtMergeError

from crdt_merge_simulations.plan import Plan, Scenario

P = ParamSpec("P")
INTERRUPTED: Final = 130
NONE: Final = "none"
FIDELITY_CHOICES: Final = ("engine", "daemon")
"""Worlds in virtual time. Real processes have a command of their own."""
JSON_FILE: Final = click.Path(dir_okay=False, exists=True)
WRITABLE: Final = click.Path(dir_okay=False, writable=True)


def command(function: Callable[P, None]) -> Callable[..., None]:
    """Give a command ``--json`` and ``--debug``, and end it as errors ask for.

    Goes between ``@click.command()`` and the command's own options; ``is_json`` is passed on.
    """

    @click.option("--json", "is_json", is_flag=True, help="Print JSON with a versioned schema.")
    @click.option("--debug", "is_debug", is_flag=True, help="Show tracebacks.")
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        is_debug = kwargs.pop("is_debug")
        try:
            function(*args, **kwargs)
        except CrdtMergeError as error:
            if is_debug:
                raise
            note(f"error {error.code}: {clean(error.message)}")
            if error.hint:
                note(f"hint: {clean(error.hint)}")
            if kwargs.get("is_json"):
                say_json("error/1", code=error.code, message=error.message, hint=error.hint)
            raise click.exceptions.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            note("interrupted")
            raise click.exceptions.Exit(INTERRUPTED) from None

    return wrapper


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which scenario, and what of it is not as its file says."""

    name: str
    nodes: int | None = None
    fidelity: str | None = None
    only: frozenset[int] | None = None
    """Indices of the faults to keep; None: all."""

    def scenario(self) -> Scenario:
        """Find the scenario and change what was asked for.

        Raises:
            ConfigError: There is none of that name, or it is wrong.
        """
        from crdt_merge_simulations.scenario_file import find

        scenario = find(self.name)
        if self.nodes is not None:
            scenario = dataclasses.replace(scenario, nodes=self.nodes)
        if self.fidelity is not None:
            scenario = dataclasses.replace(scenario, fidelity=self.fidelity)
        return scenario

    def plan(self, seed: int) -> Plan:
        """Return what will happen with a seed.

        Raises:
            ConfigError: As :meth:`scenario`, or the topology cannot be.
        """
        from crdt_merge_simulations.planning import make_plan

        return make_plan(self.scenario(), seed).reduced(faults=self.only)

    def command(self, seed: int) -> str:
        """Return what to type to run a seed of this again."""
        words = ["crdt-merge-sim", "run", self.name, "--seed", str(seed)]
        if self.nodes is not None:
            words += ["--nodes", str(self.nodes)]
        if self.fidelity is not None:
            words += ["--fidelity", self.fidelity]
        if self.only is not None:
            words += ["--only", format_indices(self.only)]
        return shlex.join(words)


def scenario_options(function: Callable[Concatenate[Choice, P], None]) -> Callable[..., None]:
    """Give a command the argument SCENARIO with its options; it receives them as a :class:`Choice`."""

    @click.argument("name", metavar="SCENARIO")
    @click.option("--nodes", type=click.IntRange(1), help="Instead of as many as the scenario has.")
    @click.option("--fidelity", type=click.Choice(FIDELITY_CHOICES), help="Instead of the scenario's.")
    @click.option("--only", callback=_parse_only, metavar="3,7,9", help="Keep only these faults, or: none.")
    @functools.wraps(function)
    def wrapper(
        *args: Any,
        name: str,
        nodes: int | None,
        fidelity: str | None,
        only: frozenset[int] | None,
        **kwargs: Any,
    ) -> None:
        choice = Choice(name=name, nodes=nodes, fidelity=fidelity, only=only)
        function(choice, *args, **kwargs)

    return wrapper


def format_indices(indices: Iterable[int]) -> str:
    """Return indices as ``--only`` takes them."""
    return ",".join(map(str, sorted(indices))) or NONE


def _parse_only(_context: click.Context, _option: click.Parameter, text: str | None) -> frozenset[int] | None:
    if text is None:
        return None
    if text.strip() == NONE:
        return frozenset()
    try:
        return frozenset(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of numbers like 3,7,9.") from None
