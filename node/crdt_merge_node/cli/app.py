"""The root command. Commands are imported when they are named, so that ``status`` pays for nothing else."""

from __future__ import annotations

import atexit
import gc
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import click

from crdt_merge_node.errors import did_you_mean

from .output import INTERRUPTED, clean, warn

PROGRAM: Final = "crdt-merge-node"
_CLI: Final = "crdt_merge_node.cli"
MESSAGE_CHARS_MAX: Final = 600
"""Of a message about wrong arguments: it repeats them, and they may be of any length."""
SENTENCE_CHARS_MAX: Final = 200
"""Of what a list of commands says of each."""
COMMANDS: Final[Mapping[str, str]] = {
    "init": f"{_CLI}.init:init",
    "run": f"{_CLI}.run:run",
    "invite": f"{_CLI}.invite:invite",
    "cert": f"{_CLI}.cert:cert",
    "ca": f"{_CLI}.ca:ca",
    "status": f"{_CLI}.status:status",
    "why": f"{_CLI}.why:why",
    "events": f"{_CLI}.events:events",
    "log": f"{_CLI}.log:log",
    "check": f"{_CLI}.check:check",
    "doctor": f"{_CLI}.doctor:doctor",
    "peer": f"{_CLI}.peer:peer",
    "group": f"{_CLI}.group:group",
    "policy": f"{_CLI}.policy:policy",
    "contribution": f"{_CLI}.contribution:contribution",
    "act": f"{_CLI}.act:act",
    "artefact": f"{_CLI}.artefact:artefact",
    "resolve": f"{_CLI}.resolve:resolve",
    "merge": f"{_CLI}.merge:merge",
    "lora": f"{_CLI}.lora:lora",
    "vocabulary": f"{_CLI}.vocabulary:vocabulary",
    "strategy": f"{_CLI}.strategy:strategy",
    "dev": f"{_CLI}.dev:dev",
    "demo": f"{_CLI}.demo:demo",
    "bundle": f"{_CLI}.bundle:bundle",
    "config": f"{_CLI}.config:config",
    "errors": f"{_CLI}.errors:errors",
    "backup": f"{_CLI}.backup:backup",
    "restore": f"{_CLI}.backup:restore",
    "fsck": f"{_CLI}.fsck:fsck",
    "inspect": f"{_CLI}.inspect:inspect",
    "leave": f"{_CLI}.leave:leave",
    "completion": f"{_CLI}.completion:completion",
    "version": f"{_CLI}.version:version",
}
"""In the order in which a newcomer meets them."""


@contextmanager
def _readable_errors() -> Iterator[None]:
    """Cut what an error repeats of the arguments, and make control characters in it visible."""
    try:
        yield
    except click.ClickException as error:
        # Not a new error in its place: each kind shows itself in its own way, with its own status.
        for name in ("message", "option_name"):
            if isinstance(text := vars(error).get(name), str):
                vars(error)[name] = _cut(clean(text))
        raise
    except KeyboardInterrupt:  # While the command is still being imported.
        warn("interrupted")
        raise click.exceptions.Exit(INTERRUPTED) from None


def _unpin(arguments: list[str]) -> list[str]:
    """Return arguments where ``--json=1``, which asks for version 1 of the documents, is ``--json``.

    All documents are of version 1 so far. An option with a value that may be left out would swallow the word
    behind it, and one that takes any other number has to be refused; so it is done here.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return ["--json" if word == "--json=1" else word for word in arguments[:end]] + arguments[end:]


def _cut(text: str) -> str:
    if len(text) <= MESSAGE_CHARS_MAX:
        return text
    return f"{text[: MESSAGE_CHARS_MAX // 2]} … {text[-MESSAGE_CHARS_MAX // 2 :]}"


class SuggestingGroup(click.Group):
    """A group of commands that, told an unknown one, names the most similar."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say what was probably meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            suggestion = did_you_mean(args[0], self.list_commands(ctx)) if args else ""
            raise click.UsageError(f"{error.message} {suggestion}".rstrip(), ctx) from None

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature.
        """Return the names in order of definition, not of the alphabet."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their whole first sentences, where click would cut them off."""
        named = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, each.get_short_help_str(SENTENCE_CHARS_MAX)) for name, each in named if each]
            )


class _Root(SuggestingGroup):
    """Finds commands in :data:`COMMANDS`; says nothing longer or stranger than a person can read."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line."""
        given = kwargs.pop("args", None)
        if given is None:
            given = args[0] if args and args[0] is not None else sys.argv[1:]
        try:
            return super().main(_unpin(list(given)), *args[1:], **kwargs)
        except UnicodeEncodeError:
            # Help and usage repeat what was typed; streams that are strict refuse what is no text.
            raise SystemExit(2) from None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options before the command."""
        with _readable_errors():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _readable_errors():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature.
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module of a command."""
        if (target := COMMANDS.get(cmd_name)) is None:
            return None
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{target} is no command.")
        return command


@click.group(
    cls=_Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 done, 1 failed or unhealthy, 2 bad usage, 3 no daemon, 4 not found, 5 refused, "
    "6 timed out or something is missing, 7 damaged, 78 bad configuration. Every command takes --json.",
)
@click.option("--data-dir", type=click.Path(file_okay=False), help="Directory of the node's data.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def root(data_dir: str | None, debug: bool) -> None:
    """Build one model together with other machines, without a coordinator.

    On the first machine: init, run, invite. On every other: init --join TOKEN, run. To see it all on one
    machine: demo.
    """


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line of this process and exit."""
    # Importing makes many objects and no garbage: collecting every 700 of them costs `status` a tenth.
    gc.set_threshold(50_000, 10, 10)
    # Nor is there any at the end worth looking for: walking all that was imported takes 70 ms.
    atexit.register(gc.freeze)
    return root.main(args=arguments, prog_name=PROGRAM)
