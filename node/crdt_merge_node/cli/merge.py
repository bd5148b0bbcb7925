"""``merge``: the same engine without a group and without a daemon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
@click.option("-o", "--output", type=OUTPUT, help="The safetensors file to write.")
@click.option("--strategy", default="weight_average", show_default=True, help="How the files are merged.")
@click.option("--base", type=READABLE, help="The model that the others were trained from.")
@click.option("--param", "params", multiple=True, metavar="K=V", help="Parameter of the strategy.")
@click.option("--weight", "weights", metavar="W,...", help="One per FILE, in order, separated by commas.")
@click.option("--dtype", default="", help="Element type of the output, such as F32; else that of the base.")
@click.option(
    "--artefact", "artefacts", multiple=True, type=READABLE, metavar="FILE", help="What the strategy needs."
)
@click.option("--task", default="", metavar="FILE", help="Write the model of the task of one of the FILEs.")
@click.option("--plan", "is_plan", is_flag=True, help="Say what would be done and what it costs, and end.")
@click.option("--memory-mib", type=click.IntRange(min=1), default=512, show_default=True, help="Budget.")
@click.option(
    "--workers", type=click.IntRange(0, 1024), help="Processes; else one per core for large models."
)
@command
def merge(
    invocation: Invocation,
    *,
    files: tuple[str, ...],
    output: str | None,
    strategy: str,
    base: str | None,
    params: tuple[str, ...],
    weights: str | None,
    dtype: str,
    artefacts: tuple[str, ...],
    task: str,
    is_plan: bool,
    memory_mib: int,
    workers: int | None,
) -> None:
    """Merge safetensors files into one, without a daemon.

    The output is byte for byte that of a group that holds these files as contributions under this policy.
    """
    values = [parse_weight(weight) for weight in weights.split(",")] if weights else None
    if values is not None and len(values) != len(files):
        raise click.UsageError(f"--weight has {len(values)} weights for {count(len(files), 'file')}.")
    options: dict[str, Any] = {
        "strategy": strategy,
        "base": Path(base) if base else None,
        "params": parse_pairs(params, option="--param"),
        "weights": values,
        "dtype": dtype.upper(),
        "artefacts": [Path(artefact) for artefact in artefacts],
        "memory_bytes": memory_mib * MIB,
        "workers": workers,
    }
    if is_plan:
        _plan(invocation, [Path(file) for file in files], options)
        return
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    from crdt_merge_node.resolve.merge import merge_files

    with view_for(invocation, "merge/1") as view:
        result = merge_files(
            [Path(file) for file in files],
            Path(output),
            **options,
            task=task,
            progress=lambda done, total, step: view.show(
                Progress(step=step, done_bytes=done, total_bytes=total)
            ),
        )
    if invocation.is_json:
        _say_json(result, strategy, len(files))
    else:
        _show(result, strategy, len(files))


def _plan(invocation: Invocation, files: list[Path], options: dict[str, Any]) -> None:
    """Say what a merge would do; nothing is read beyond headers."""
    from crdt_merge_node.resolve.merge import plan_files

    found = plan_files(files, **options)
    if invocation.is_json:
        say_json("merge/1", event="plan", plan=found)
        return
    stand_in = f"{found.strategy}: {clean(found.stand_in_reason)}" if found.stand_in_reason else ""
    most = f"{size(found.peak_memory_bytes)} at the peak, {size(options['memory_bytes'])} allowed"
    tensors = f"{count(found.tensors, 'tensor')}, {found.merged_tensors} of them merged"
    say(
        facts(
            (
                ("strategy", f"{options['strategy']}, {count(len(files), 'input')}"),
                ("stand-in", stand_in),
                ("tensors", tensors),
                ("reads", f"{size(found.read_bytes)}, each file {count(found.passes, 'time')}"),
                ("writes", size(found.output_bytes)),
                ("memory", most),
                ("work", f"{count(found.workers, 'worker')}, about {duration(found.seconds)}"),
                ("numerics", found.determinism),
            )
        )
    )
    for warning in found.warnings:
        note(f"warning: {clean(warning)}")


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
                ("modulators", str(result.modulators_path or "")),
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
        effective_strategy=result.effective_strategy,
        determinism=result.profile,
        modulators_path=str(result.modulators_path) if result.modulators_path else None,
        inputs=inputs,
        resolve_key=result.resolve_key.hex(),
        output_digest=result.output_digest.hex(),
        file_sha256=result.file_sha256.hex(),
        nbytes=result.nbytes,
        duration_s=result.duration_s,
        warnings=result.warnings,
    )
