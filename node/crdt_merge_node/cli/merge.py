"""``merge``: the same engine without a group and without a daemon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from crdt_merge_node.control.model import Progress

from .options import Invocation, command
from .output import clean, count, duration, facts, note, say, say_json, size
from .progress import view_for
from .values import OUTPUT, READABLE, parse_pairs, parse_weight

if TYPE_CHECKING:
    from crdt_merge_node.resolve.job import ResolveResult

MIB = 1 << 20


@click.command()
@click.argument("files", nargs=-1, required=True, type=READABLE, metavar="FILE...")
@click.option("-o", "--output", type=OUTPUT, required=True, help="The safetensors file to write.")
@click.option("--strategy", default="weight_average", show_default=True, help="How the files are merged.")
@click.option("--base", type=READABLE, help="The model that the others were trained from.")
@click.option("--param", "params", multiple=True, metavar="K=V", help="Parameter of the strategy.")
@click.option("--weight", "weights", metavar="W,...", help="One per FILE, in order, separated by commas.")
@click.option("--dtype", default="", help="Element type of the output, such as F32; else that of the base.")
@click.option("--memory-mib", type=click.IntRange(min=1), default=512, show_default=True, help="Budget.")
@click.option(
    "--workers", type=click.IntRange(0, 1024), help="Processes; else one per core for large models."
)
@command
def merge(
    invocation: Invocation,
    *,
    files: tuple[str, ...],
    output: str,
    strategy: str,
    base: str | None,
    params: tuple[str, ...],
    weights: str | None,
    dtype: str,
    memory_mib: int,
    workers: int | None,
) -> None:
    """Merge safetensors files into one, without a daemon.

    The output is byte for byte that of a group that holds these files as contributions under this policy.
    """
    from crdt_merge_node.resolve.merge import merge_files

    values = [parse_weight(weight) for weight in weights.split(",")] if weights else None
    if values is not None and len(values) != len(files):
        raise click.UsageError(f"--weight has {len(values)} weights for {count(len(files), 'file')}.")
    with view_for(invocation, "merge/1") as view:
        result = merge_files(
            [Path(file) for file in files],
            Path(output),
            strategy=strategy,
            base=Path(base) if base else None,
            params=parse_pairs(params, option="--param"),
            weights=values,
            dtype=dtype.upper(),
            memory_bytes=memory_mib * MIB,
            workers=workers,
            progress=lambda done, total, step: view.show(
                Progress(step=step, done_bytes=done, total_bytes=total)
            ),
        )
    if invocation.is_json:
        _say_json(result, strategy, len(files))
    else:
        _show(result, strategy, len(files))


def _show(result: ResolveResult, strategy: str, inputs: int) -> None:
    say(f"wrote {clean(str(result.output_path))}: {size(result.nbytes)} in {duration(result.duration_s)}")
    say(
        facts(
            (
                ("strategy", f"{strategy}, {count(inputs, 'input')}"),
                ("resolve key", result.resolve_key.hex()),
                ("digest", result.output_digest.hex()),
                ("sha-256", result.file_sha256.hex()),
                ("provenance", str(result.manifest_path)),
            )
        )
    )
    for warning in result.warnings:
        note(f"warning: {clean(warning)}")


def _say_json(result: ResolveResult, strategy: str, inputs: int) -> None:
    say_json(
        "merge/1",
        event="result",
        path=str(result.output_path),
        provenance_path=str(result.manifest_path),
        strategy=strategy,
        inputs=inputs,
        resolve_key=result.resolve_key.hex(),
        output_digest=result.output_digest.hex(),
        file_sha256=result.file_sha256.hex(),
        nbytes=result.nbytes,
        duration_s=result.duration_s,
        warnings=result.warnings,
    )
