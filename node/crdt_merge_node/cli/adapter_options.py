"""Options of groups that merge adapters: parameters of the policy, so they are part of the resolve key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from crdt_merge_protocol.adapter_rules import FAMILY, OUTPUTS, AdapterRules, adapter_rules, parse_rank
from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.limits import ADAPTER_RANK_MAX

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class RankRule(click.ParamType[str]):
    """A rank rule; what it means is checked before anybody is asked."""

    name = "rank"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read one rule."""
        try:
            parse_rank(str(value))
        except ParameterError as error:
            self.fail(error.message, param, ctx)
        return str(value)


def adapter_options(function: FunctionT) -> FunctionT:
    """Add the options; the command gets ``rank``, ``resolve_to``, ``max_rank`` and ``base_name``."""
    options = (
        click.option(
            "--rank",
            type=RankRule(),
            help="Of the merged adapter: auto, sum, max, min, mean, energy:SHARE, N.",
        ),
        click.option(
            "--resolve-to",
            type=click.Choice(OUTPUTS),
            help="What resolve writes of adapters; model needs --base.",
        ),
        click.option(
            "--max-rank",
            type=click.IntRange(1, ADAPTER_RANK_MAX),
            help="Largest rank of a contributed adapter.",
        ),
        click.option(
            "--base-name", metavar="NAME", help="What adapters have to call their base; '' for anything."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def adapter_params(
    *, rank: str | None, resolve_to: str | None, max_rank: int | None, base_name: str | None
) -> dict[str, str]:
    """Return the options that were given as parameters of a policy."""
    given = {"rank": rank, "output": resolve_to, "rank_max": max_rank, "base": base_name}
    return {f"{FAMILY}{name}": str(value) for name, value in given.items() if value is not None}


def rules_in(params: Mapping[str, str]) -> AdapterRules | None:
    """Return how a policy merges adapters; None if it does not, or if this release cannot read it."""
    try:
        return adapter_rules(params)
    except ParameterError:
        return None
