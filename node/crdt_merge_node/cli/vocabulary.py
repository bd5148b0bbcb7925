"""``vocabulary``: a model with the tokens of another, without a daemon."""

from __future__ import annotations

from pathlib import Path

import click

from crdt_merge_node.control.model import Progress

from .options import Invocation, command
from .output import clean, count, facts, note, say, say_json, size
from .progress import view_for
from .values import MODEL, OUTPUT, READABLE, refuse_clashes


@click.command()
@click.argument("model", type=MODEL)
@click.option("--to", required=True, type=MODEL, help="The model whose tokens are wanted, such as the base.")
@click.option("-o", "--output", required=True, type=OUTPUT, help="The safetensors file to write.")
@click.option("--tokens", type=READABLE, metavar="FILE", help="Vocabulary of MODEL, else that beside it.")
@click.option("--to-tokens", type=READABLE, metavar="FILE", help="Vocabulary of the other model, likewise.")
@click.option(
    "--map",
    "given",
    type=READABLE,
    metavar="FILE",
    help="JSON list: per wanted row the row of MODEL, or null.",
)
@click.option(
    "--tensor", "tensors", multiple=True, metavar="GLOB", help="One more tensor with a row for every token."
)
@command
def vocabulary(
    invocation: Invocation,
    *,
    model: str,
    to: str,
    output: str,
    tokens: str | None,
    to_tokens: str | None,
    given: str | None,
    tensors: tuple[str, ...],
) -> None:
    """Write MODEL with the tokens of another model, so that they can be merged or share a group.

    Rows of tokens that both know move to where the other has them, rows of tokens that MODEL does not know
    are copied from there, and rows of tokens that only MODEL knows are left out. The tokenizer of the other
    model belongs to the result.
    """
    from crdt_merge_node.ports import SystemFs, SystemRng
    from crdt_merge_node.vocabularies import align_vocabulary

    if given and (tokens or to_tokens):
        raise click.UsageError("--map takes the place of --tokens and --to-tokens.")
    refuse_clashes([output], [model, to, tokens, to_tokens, given])
    with view_for(invocation, "vocabulary/1") as view:
        result = align_vocabulary(
            Path(model),
            Path(to),
            Path(output),
            fs=SystemFs(),
            rng=SystemRng(),
            vocabulary=Path(tokens) if tokens else None,
            to_vocabulary=Path(to_tokens) if to_tokens else None,
            given=Path(given) if given else None,
            tensors=tensors,
            progress=lambda done, total: view.show(
                Progress(step="writing", done_bytes=done, total_bytes=total)
            ),
        )
    if invocation.is_json:
        say_json(
            "vocabulary/1",
            event="result",
            path=str(result.path),
            nbytes=result.nbytes,
            tables=list(result.tables),
            rows=result.rows,
            shared=result.shared,
            copied=result.copied,
            dropped=result.dropped,
            warnings=list(result.warnings),
        )
        return
    say(f"wrote {clean(str(result.path))}: {size(result.nbytes)}")
    say(
        facts(
            (
                ("tables", ", ".join(map(clean, result.tables))),
                ("rows", f"{result.rows}: {result.shared} of MODEL, {result.copied} of the other"),
                ("left out", count(result.dropped, "token") if result.dropped else ""),
            )
        )
    )
    for warning in result.warnings:
        note(f"warning: {clean(warning)}")
