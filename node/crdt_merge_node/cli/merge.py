"""``merge``: the same engine without a group and without a daemon."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from crdt_merge_protocol.limits import WEIGHT_ONE

from crdt_merge_node.control.model import Progress

from .options import Invocation, command
from .output import by_workers, clean, count, duration, facts, note, say, say_json, size
from .progress import view_for
from .resolve import reused
from .stacking import ONLY_STACKED, stack_in, write_stack_of
from .values import (
    FILE_PARAM_HELP,
    MODEL,
    OUTPUT,
    PLACE,
    READABLE,
    ByteSize,
    Weights,
    parse_pairs,
    read_text,
    refuse_clashes,
    shard_bytes_of,
)
from .verifying import answer, beside

if TYPE_CHECKING:
    from crdt_merge_node.recipes.mergekit import Recipe
    from crdt_merge_node.resolve.job import ResolveJob, ResolveResult

DEFAULT_STRATEGY: Final = "weight_average"


@click.command()
@click.argument("files", nargs=-1, type=MODEL, metavar="FILE...")
@click.option("-o", "--output", type=PLACE, help="The safetensors file, or the directory, to write.")
@click.option("--shard-size", type=ByteSize(), help="Write a directory of shards of this size, such as 5GB.")
@click.option("--strategy", show_default=DEFAULT_STRATEGY, help="How the files are merged.")
@click.option("--base", type=MODEL, help="The model that the others were trained from.")
@click.option("--param", "params", multiple=True, metavar="K=V", help=FILE_PARAM_HELP)
@click.option("--weight", "weights", type=Weights(), help="One per FILE, in order, separated by commas.")
@click.option("--dtype", default="", help="Element type of the output, such as F32; else that of the base.")
@click.option(
    "--artefact", "artefacts", multiple=True, type=READABLE, metavar="FILE", help="What the strategy needs."
)
@click.option("--task", default="", metavar="FILE", help="Write the model of the task of one of the FILEs.")
@click.option("--plan", "is_plan", is_flag=True, help="Say what would be done and what it costs, and end.")
@click.option(
    "--config", type=READABLE, help="A mergekit YAML file instead of FILEs, strategy and parameters."
)
@click.option("--report", "reports", multiple=True, type=OUTPUT, help="Measures by layer: HTML, or .json.")
@click.option("--card", type=OUTPUT, help="Write a model card.")
@click.option("--verify", type=MODEL, metavar="FILE", help="Write nothing; compare FILE with the output.")
@click.option("--as-group", is_flag=True, help="Warn, and go on as a group does, where files disagree.")
@click.option("--fresh", is_flag=True, help="Compute everything, even what the replaced output holds.")
@click.option("--memory", type=ByteSize(), default="512MiB", show_default=True, help="Budget.")
@click.option(
    "--workers", type=click.IntRange(0, 1024), help="Processes; else one per core for large models."
)
@command
def merge(
    invocation: Invocation,
    *,
    files: tuple[str, ...],
    output: str | None,
    shard_size: int | None,
    strategy: str | None,
    base: str | None,
    params: tuple[str, ...],
    weights: list[int] | None,
    dtype: str,
    artefacts: tuple[str, ...],
    task: str,
    is_plan: bool,
    config: str | None,
    reports: tuple[str, ...],
    card: str | None,
    verify: str | None,
    as_group: bool,
    fresh: bool,
    memory: int,
    workers: int | None,
) -> None:
    """Merge models, safetensors files or directories of shards, into one, without a daemon.

    The output is byte for byte that of a group that holds these files as contributions under this policy.
    What a group has a rule for is refused unless --as-group: integers that differ (those of the base, else
    the most frequent, are kept), values too large for the type of the output (the largest there is), models
    that cancel out on a sphere (averaged).
    """
    if config is not None:
        if files or strategy or params or base or weights:
            raise click.UsageError(
                "--config takes the place of FILEs, --strategy, --base, --param and --weight."
            )
        if (stack := stack_in(config)) is not None:
            if is_plan or verify or reports or card or artefacts or task or as_group or fresh:
                raise click.UsageError(ONLY_STACKED)
            write_stack_of(
                invocation, stack, config=config, output=output, shard_size=shard_size, dtype=dtype
            )
            return
        recipe = _read_config(config)
        files, strategy, base = recipe.models, recipe.strategy, recipe.base
        params = tuple(f"{name}={value}" for name, value in recipe.params.items())
        dtype = dtype or recipe.dtype
    if not files:
        raise click.UsageError("Missing argument 'FILE...'.")
    if weights is not None and len(weights) != len(files):
        raise click.UsageError(f"--weight has {len(weights)} weights for {count(len(files), 'file')}.")
    strategy = strategy or DEFAULT_STRATEGY
    options: dict[str, Any] = {
        "strategy": strategy,
        "base": Path(base) if base else None,
        "params": parse_pairs(params, option="--param"),
        "weights": weights,
        "dtype": dtype.upper(),
        "artefacts": [Path(artefact) for artefact in artefacts],
        "memory_bytes": memory,
        "workers": workers,
    }
    inputs = [Path(file) for file in files]
    if is_plan:
        _plan(invocation, inputs, options)
        return
    options["is_lenient"] = as_group
    if verify is not None:
        _verify(invocation, inputs, verify, options, task=task)
        return
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    refuse_clashes([output, *reports, card], [*files, base, *artefacts, config])
    options |= {"shard_bytes": shard_bytes_of(output, shard_size), "reuses": not fresh}
    result = _merge(invocation, inputs, Path(output), options, task=task, reports=reports, card=card)
    if invocation.is_json:
        _say_json(result, strategy, len(files))
    else:
        _show(result, strategy, len(files))


def _verify(
    invocation: Invocation, files: list[Path], path: str, options: dict[str, Any], *, task: str
) -> None:
    """Merge to a file beside the one that is looked at, and say whether they are the same."""
    with beside(path) as expected:
        result = _merge(invocation, files, expected, options, task=task)
        answer(invocation, "merge/1", expected, path, resolve_key=result.resolve_key.hex())


def _merge(
    invocation: Invocation,
    files: list[Path],
    output: Path,
    options: dict[str, Any],
    *,
    task: str,
    reports: tuple[str, ...] = (),
    card: str | None = None,
) -> ResolveResult:
    from crdt_merge_node.resolve.single import be_single

    be_single()  # First: the next imports bring numpy.
    from crdt_merge_node.ports import SystemFs
    from crdt_merge_node.resolve.merge import merge_files

    fs = SystemFs()
    remarks: list[str] = []
    with view_for(invocation, "merge/1") as view:

        def progress(done: int, total: int, step: str) -> None:
            view.show(Progress(step=step, done_bytes=done, total_bytes=total))

        def afterwards(job: ResolveJob, result: ResolveResult) -> None:
            if reports or card:
                from crdt_merge_node.report.writing import write_card, write_reports

                paths = [Path(path) for path in reports]
                write_reports(job, result.output_path, paths, fs=fs, progress=progress)
                if card:
                    write_card(result, Path(card), fs=fs)
            remarks.extend(_remarks(job, len(files)))

        result = merge_files(files, output, **options, task=task, progress=progress, afterwards=afterwards)
    return replace(result, warnings=(*result.warnings, *remarks))


def _remarks(job: ResolveJob, k: int) -> list[str]:
    """Return what may not have been meant: files that are one contribution, rows that fit nothing.

    In a group neither is remarkable: others may have the same, and something that fits may come later.
    """
    from crdt_merge_protocol.strategies.parameters import idle_rows
    from crdt_merge_protocol.strategies.registry import get

    values = get(job.strategy).validate(job.params)
    names, digests = [spec.name for spec in job.schema.specs], [item.digest.hex() for item in job.inputs]
    twice = [f"The {k} files are {count(len(digests), 'contribution')}: equal ones count once."]
    return (twice if len(digests) < k else []) + [
        f"Nothing fits {row}." for row in idle_rows(values, names, digests)
    ]


def _read_config(path: str) -> Recipe:
    """Return what a mergekit YAML file says, its models being files of this machine."""
    from crdt_merge_node.checkpoints.reading import read_checkpoint
    from crdt_merge_node.ports import SystemFs
    from crdt_merge_node.recipes.mergekit import read_mergekit
    from crdt_merge_node.resolve.describe import describe_file

    config = read_mergekit(read_text(path))
    for name in (*config.models, *([config.base] if config.base else [])):
        if not Path(name).exists():
            raise click.UsageError(f"{path} names the model {clean(name)}, which is no file here.")
    names = [entry.spec.name for entry in read_checkpoint(SystemFs(), Path(config.models[0])).entries]
    recipe = config.recipe(names, lambda model: describe_file(Path(model), weight=WEIGHT_ONE).digest)
    for remark in recipe.notes:
        note(f"note: {remark}")
    return recipe


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
                ("work", f"{by_workers(found.workers)}, about {duration(found.seconds)}"),
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
                ("reused", reused(result.reused_tensors, None, result.reused_bytes)),
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
        reused_tensors=result.reused_tensors,
        reused_bytes=result.reused_bytes,
    )
