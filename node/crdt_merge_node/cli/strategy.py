"""``strategy list|explain``: what can be computed, from what, and how surely alike everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .app import SuggestingGroup
from .options import Invocation, command
from .output import duration, facts, say, say_json, table

if TYPE_CHECKING:
    from crdt_merge_protocol.strategies.contract import Strategy
    from crdt_merge_protocol.strategies.parameters import Parameter

_DETERMINISM = {
    "bitwise": "the same bits on every machine",
    "bitwise_small": "the same bits on every machine up to a size; beyond it as fp_tolerant",
    "fp_tolerant": "the same up to rounding; bits may differ between processors and libraries",
    "inherit": "as the strategy it is built on",
}


_ROWS = """What differs is written as rows with `;` between; the first that fits counts, the last is the rest:
  by tensor            --param 'NAME=*.mlp.*=0.5;embed*=1;0.2'
  by contribution      --param 'NAME=#3604483cb938=0.5;0.2', the first digits of its digest
  by both              --param 'NAME=*.mlp.*#3604483cb938=0.5;0.2'
`merge` and `lora merge` also take inputs by their files: --param 'NAME=#finance.safetensors=0.5;0.2'"""


@click.group(cls=SuggestingGroup)
def strategy() -> None:
    """List the ways to merge, and explain one. Needs no daemon."""


@strategy.command("list")
@command
def list_(invocation: Invocation) -> None:
    """List the strategies: those of the paper first, then the others."""
    from crdt_merge_protocol.strategies.registry import get, names

    found = [get(name) for name in names()]
    if invocation.is_json:
        say_json("strategy-list/1", strategies=[_describe(each) for each in found])
        return
    rows = [
        (
            each.id,
            "yes" if each.base == "required" else each.base.replace("unused", "-"),
            _needs(each),
            _first_sentence(each.doc),
        )
        for each in found
    ]
    say(table(("strategy", "base", "needs", ""), rows))


@strategy.command()
@click.argument("name")
@command
def explain(invocation: Invocation, name: str) -> None:
    """Explain strategy NAME: formula, paper, parameters, needs, determinism and cost."""
    from crdt_merge_protocol.strategies.registry import get

    found = get(name)
    if invocation.is_json:
        say_json("strategy-explain/1", strategy=_describe(found))
        return
    say(f"{found.id} - {found.title}\n{found.doc}\n")
    if found.formula:
        say("\n".join(f"  {line}" for line in found.formula.strip().splitlines()) + "\n")
    k_max = "any number" if found.k_max is None else str(found.k_max)
    say(
        facts(
            (
                ("paper", found.paper),
                ("base", found.base),
                ("artefacts", _needs(found) if found.artefacts else "none"),
                ("models", f"{found.k_min} to {k_max}"),
                ("random", "yes, from the seed of the resolve" if found.is_random else "no"),
                ("negative weights", "allowed" if found.allows_negative_weights else "refused"),
                ("order of inputs", "does not matter" if found.is_symmetric else "canonical, and it matters"),
                ("output", _output(found)),
                ("determinism", f"{found.determinism}: {_DETERMINISM[found.determinism]}"),
                ("cost", _cost(found)),
                ("version", str(found.version)),
            )
        )
    )
    if found.parameters:
        say("\n" + table(("parameter", "values", "default", "differs by", ""), map(_row, found.parameters)))
    if any(parameter.per for parameter in found.parameters):
        say(f"\n{_ROWS}")


def _first_sentence(text: str) -> str:
    head, dot, _ = text.partition(". ")
    return head + dot.strip()


def _row(parameter: Parameter) -> tuple[str, ...]:
    default = parameter.default or '""'
    if parameter.mergekit_default is not None:
        default += f" (mergekit: {parameter.mergekit_default})"
    per = ", ".join(sorted(parameter.per, reverse=True)) or "-"
    unit = f" [{parameter.unit}]" if parameter.unit else ""
    return parameter.name, parameter.values(), default, per, parameter.doc + unit


def _needs(found: Strategy) -> str:
    needs = [f"{need.type}{' (optional)' if need.is_optional else ''}" for need in found.artefacts]
    return ", ".join(needs) or "-"


def _output(found: Strategy) -> str:
    return {
        "model": "one model",
        "modulators": "a common model, and what turns it into that of each task (resolve --task)",
        "table": "a table in the provenance; the model beside it is the average",
    }[found.output]


def _cost(found: Strategy) -> str:
    """Return the estimate for a matrix of 4096 x 4096 and three models, on one core."""
    if found.determinism == "inherit":
        return "that of the strategy it is built on"
    seconds = _seconds(found)
    time = f"{seconds:.2g} s" if seconds < 10 else duration(seconds)
    return f"about {time} for a 4096 x 4096 matrix and 3 models on one core, reading aside"


def _seconds(found: Strategy) -> float:
    from fractions import Fraction

    from crdt_merge_protocol.blobs import TensorSpec
    from crdt_merge_protocol.strategies.contract import MergeContext

    context = MergeContext(
        strategy=found.id,
        params=found.validate({}),
        weights=(Fraction(1),) * 3,
        digests=tuple(bytes([i]) * 32 for i in range(3)),
        has_base=found.base != "unused",
        seed=b"",
        specs=(TensorSpec(name="model.layers.0.mlp.up_proj.weight", dtype="F32", shape=(4096, 4096)),),
    )
    return found.nanoseconds(context, 0) / 1e9


def _describe(found: Strategy) -> dict[str, Any]:
    return {
        "id": found.id,
        "version": found.version,
        "title": found.title,
        "doc": found.doc,
        "paper": found.paper,
        "formula": found.formula,
        "base": found.base,
        "artefacts": [{"type": need.type, "optional": need.is_optional} for need in found.artefacts],
        "k_min": found.k_min,
        "k_max": found.k_max,
        "random": found.is_random,
        "symmetric": found.is_symmetric,
        "extra": found.is_extra,
        "output": found.output,
        "determinism": found.determinism,
        "parameters": [
            {
                "name": parameter.name,
                "type": parameter.type,
                "values": parameter.values(),
                "default": parameter.default,
                "mergekit_default": parameter.mergekit_default,
                "profile": parameter.profile,
                "per": sorted(parameter.per),
                "unit": parameter.unit,
                "doc": parameter.doc,
            }
            for parameter in found.parameters
        ],
    }
