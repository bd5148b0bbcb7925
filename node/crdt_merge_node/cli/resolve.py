"""``resolve``: merge what a group holds into one file."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from crdt_merge_node.control.model import ContributionInfo, ResolvePlan, ResolveReport
from crdt_merge_node.errors import AmbiguousNameError, NotFoundError

from .completing import GROUP, PEER
from .durations import Seconds
from .options import Invocation, command
from .output import by_workers, clean, count, duration, facts, note, params, say, say_json, short, size
from .progress import follow
from .values import MODEL, OUTPUT, PLACE, ByteSize, absolute, refuse_clashes, shard_bytes_of
from .verifying import answer, beside

if TYPE_CHECKING:
    from crdt_merge_node.control.client import Client


@click.command()
@click.argument("group", type=GROUP)
@click.option("-o", "--output", type=PLACE, help="The safetensors file, or the directory, to write.")
@click.option("--shard-size", type=ByteSize(), help="Write a directory of shards of this size, such as 5GB.")
@click.option("--wait", is_flag=True, help="Wait for bytes that are not here yet, up to --timeout.")
@click.option("--timeout", type=Seconds(min=0.0), default=600.0, show_default=True, help="Seconds.")
@click.option("--without", multiple=True, metavar="TAG", help="Leave a contribution out; changes the key.")
@click.option("--task", default="", metavar="TAG", help="Write the model of this contribution's task.")
@click.option("--plan", "is_plan", is_flag=True, help="Say what would be done and what it costs, and end.")
@click.option("--report", "reports", multiple=True, type=OUTPUT, help="Measures by layer: HTML, or .json.")
@click.option("--card", type=OUTPUT, help="Write a model card.")
@click.option("--verify", type=MODEL, metavar="FILE", help="Write nothing; compare FILE with the output.")
@click.option("--fresh", is_flag=True, help="Compute everything, even what earlier outputs hold.")
@click.option(
    "--verify-with", type=PEER, metavar="PEER", help="Fail unless this node announced the same output."
)
@command
def resolve(
    invocation: Invocation,
    *,
    group: str,
    output: str | None,
    shard_size: int | None,
    wait: bool,
    timeout: float,
    without: tuple[str, ...],
    task: str,
    is_plan: bool,
    reports: tuple[str, ...],
    card: str | None,
    verify: str | None,
    fresh: bool,
    verify_with: str | None,
) -> None:
    """Merge the contributions of GROUP into one safetensors file, or into a directory of shards.

    A group of adapters writes the directory of an adapter, or what its policy says (`policy show`).

    Nodes with the same resolve key write the same tensors, and the same bytes if they shard them alike. The
    provenance is written beside the output, as JSON. An output that is a directory, or ends with a slash, is
    written as Hugging Face lays it out. Exit status 6 if bytes are missing, 7 if another node computed other
    bytes for the same key.
    """
    if output is None and not is_plan and verify is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    refuse_clashes([output, *reports, card], [verify])
    with invocation.client() as client, ExitStack() as stack:
        peer = _peer(client, verify_with) if verify_with else None
        expected = stack.enter_context(beside(verify)) if verify is not None else None
        target = str(expected) if expected is not None else output
        events = client.resolve(
            group,
            output_path=str(absolute(target) or ""),
            wait_s=timeout if wait else 0.0,
            without=without,
            task=task,
            plan_only=is_plan,
            report_paths=tuple(str(absolute(path)) for path in reports),
            card_path=str(absolute(card) or ""),
            shard_bytes=0 if expected is not None else shard_bytes_of(output or "", shard_size),
            # Who verifies an output does not want to be answered from it.
            fresh=fresh or verify is not None,
        )
        if is_plan:
            _say_plan(invocation, events)
            return
        report: ResolveReport = follow(
            invocation,
            "resolve/1",
            events,
            show_plan=_show_plan,
            leaves=f"{clean(target or '')} is as it was, or whole.",
        )
        if expected is not None and verify is not None:
            answer(invocation, "resolve/1", expected, verify, resolve_key=report.resolve_key)
            return
    if invocation.is_json:
        say_json("resolve/1", report, event="result")
    else:
        show_report(report)
    _exit_unless_agreed(report, peer, verify_with or "")


def _exit_unless_agreed(report: ResolveReport, peer: str | None, name: str) -> None:
    """End with 7 if a node computed another output, with 6 if ``peer`` has announced none."""
    if report.disagreeing:
        raise click.exceptions.Exit(7)
    if peer is not None and peer not in report.agreeing:
        note(
            f"{clean(name)} has announced no output for key {short(report.resolve_key)}: "
            "resolve the group there as well, then ask again."
        )
        raise click.exceptions.Exit(6)


def _peer(client: Client, text: str) -> str:
    """Return the id of the peer with this name, or whose id begins so.

    Raises:
        NotFoundError: There is none, or more than one.
    """
    found = {
        peer.id
        for peer in client.peer_list()
        if text and (peer.name == text or peer.id.startswith(text.lower()))
    }
    if len(found) != 1:
        hint = "`crdt-merge-node peer list` shows what there is."
        if found:
            raise AmbiguousNameError(f'several peers are called "{text}".', hint=hint)
        raise NotFoundError(f'there is no peer "{text}".', hint=hint)
    return found.pop()


def _say_plan(invocation: Invocation, events: Iterable[object]) -> None:
    for event in events:
        if isinstance(event, ResolvePlan):
            if invocation.is_json:
                say_json("resolve/1", event="plan", plan=event)
            else:
                _show_plan(event)


def _show_plan(plan: ResolvePlan) -> None:
    inputs = count(len(plan.inputs), "contribution")
    say(f"resolving group {clean(plan.group_name)}: {plan.strategy} of {inputs}")
    most = f"{size(plan.peak_memory_bytes)} at the peak, {size(plan.memory_bytes)} allowed"
    need = f"{most}, {size(plan.free_memory_bytes)} free" if plan.free_memory_bytes else most
    passes = f"{count(plan.tensors, 'tensor')}, read {count(plan.passes, 'time')}"
    stand_in = f"{plan.effective_strategy}: {clean(plan.stand_in_reason)}" if plan.stand_in_reason else ""
    say(
        facts(
            (
                ("parameters", params(plan.params)),
                ("base", short(plan.base) if plan.base else ""),
                ("stand-in", stand_in),
                ("inputs", ", ".join(_label(item) for item in plan.inputs)),
                ("artefacts", ", ".join(f"{item.type} {_label(item)}" for item in plan.artefacts)),
                ("key", plan.resolve_key),
                ("reads", size(plan.read_bytes)),
                ("writes", size(plan.output_bytes)),
                ("memory", need),
                ("reuses", reused(plan.reused_tensors, plan.tensors, plan.reused_bytes)),
                ("work", f"{passes}, {by_workers(plan.workers)}, about {duration(plan.estimated_s)}"),
                ("numerics", plan.determinism),
            )
        )
    )
    _show_excluded(plan.excluded)


def show_report(report: ResolveReport) -> None:
    """Print what was written and who computed the same."""
    say(f"wrote {clean(report.path)}: {size(report.nbytes)} in {duration(report.duration_s)}")
    agreeing = ", ".join(short(node) for node in report.agreeing)
    say(
        facts(
            (
                ("strategy", f"{_worked(report)}, {count(len(report.inputs), 'input')}"),
                ("resolve key", report.resolve_key),
                ("digest", report.output_digest),
                ("sha-256", report.file_sha256),
                ("provenance", report.provenance_path),
                ("modulators", report.modulators_path),
                ("reused", reused(report.reused_tensors, None, report.reused_bytes)),
                ("same output", agreeing or "no other node announced one for this key yet"),
            )
        )
    )
    for warning in report.warnings:
        note(f"warning: {clean(warning)}")
    if report.disagreeing:
        nodes = ", ".join(short(node) for node in report.disagreeing)
        note(f"DIFFERENT OUTPUT for the same key on: {nodes}. One of these machines computes wrongly.")


def reused(tensors: int, of: int | None, nbytes: int) -> str:
    """Return how much comes from earlier outputs; empty if nothing does."""
    share = count(tensors, "tensor") if of is None else f"{tensors} of {count(of, 'tensor')}"
    return f"{share}, {size(nbytes)}, from earlier outputs" if tensors else ""


def _worked(report: ResolveReport) -> str:
    if report.effective_strategy in ("", report.strategy):
        return report.strategy
    return f"{report.effective_strategy} in place of {report.strategy}"


def _show_excluded(excluded: tuple[ContributionInfo, ...]) -> None:
    for item in excluded:
        # What would be used is only left out because --without names it.
        why = "left out by --without" if item.state == "used" else f"{item.state}: {clean(item.reason)}"
        note(f"not used: {_label(item)}, {why}")


def _label(item: ContributionInfo) -> str:
    return f"{short(item.tag)} by {item.author_name or short(item.author)}"
