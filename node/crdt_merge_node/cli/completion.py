"""``completion``: the script that makes a shell complete commands, options, groups and peers."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from .app import PROGRAM, root
from .options import Invocation, command
from .output import say, say_json

VARIABLE: Final = "_CRDT_MERGE_NODE_COMPLETE"
"""Where click looks for what a shell wants to know."""
SHELLS: Final = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@command
def completion(invocation: Invocation, shell: str) -> None:
    """Print the script that makes SHELL complete words of this program.

    \b
    bash: crdt-merge-node completion bash > ~/.local/share/bash-completion/completions/crdt-merge-node
    zsh:  crdt-merge-node completion zsh > "${fpath[1]}/_crdt-merge-node"
    fish: crdt-merge-node completion fish > ~/.config/fish/completions/crdt-merge-node.fish

    Groups and peers are completed too, if a daemon runs and answers within 0.3 s.
    """  # noqa: D301  click keeps the lines of a paragraph that begins with this mark.
    kind = get_completion_class(shell)
    assert kind is not None, "click knows all three"
    script = kind(root, {}, PROGRAM, VARIABLE).source()
    if invocation.is_json:
        say_json("completion/1", shell=shell, script=script)
    else:
        say(script)
