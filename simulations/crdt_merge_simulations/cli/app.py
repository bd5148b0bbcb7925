"""The root command. Commands are imported when they are named."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

import click
from crdt_merge_node.cli.app import SuggestingGroup

PROGRAM: Final = "crdt-merge-sim"
_CLI: Final = "crdt_merge_simulations.cli"
COMMANDS: Final[Mapping[str, str]] = {
    "list": f"{_CLI}.catalogue:catalogue",
    "run": f"{_CLI}.run:run",
    "replay": f"{_CLI}.replay:replay",
    "shrink": f"{_CLI}.shrink:shrink",
    "sweep": f"{_CLI}.sweep:sweep",
    "compare": f"{_CLI}.compare:compare",
    "tier3": f"{_CLI}.tier3:tier3",
    "laws": f"{_CLI}.laws:laws",
    "cluster": f"{_CLI}.cluster:cluster",
}
"""In the order in which one comes to need them."""


class _Root(SuggestingGroup):
    """Finds commands in :data:`COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature.
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module of a command."""
        if (target := COMMANDS.get(cmd_name)) is None:
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(
    cls=_Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 all agreed and nothing was violated, 1 failed, 2 bad usage, 6 not converged, "
    "7 an invariant was violated, 78 bad scenario. Every command takes --json.",
)
def root() -> None:
    """Break many nodes in virtual time and see that they agree afterwards.

    Begin with: list, then run NAME --seed 1 --html report.html.
    """


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line of this process and exit."""
    return root.main(args=arguments, prog_name=PROGRAM)
