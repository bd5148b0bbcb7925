"""How a group merges adapters: the part of its policy that groups of whole models do not have.

It stands among the policy's parameters under names that begin with ``lora.``, so it is in the recipe and in
the resolve key. A policy that has any is of a group of adapters: a whole model in it is quarantined, and an
adapter in any other group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from .errors import ParameterError
from .limits import ADAPTER_RANK_MAX
from .strategies.artefact_fields import decimal_of

FAMILY: Final = "lora."
OUTPUTS: Final = ("adapter", "delta", "model")
"""What a resolve writes: an adapter, the whole differences, or the base with them added."""
RANK_CAP: Final = 256
"""Up to this rank a sum is kept as it is unless another rule is given; and the cap of one adapter's rank."""
RANK_RULES: Final = ("auto", "sum", "max", "min", "mean", "energy:SHARE", "NUMBER")
DEFAULTS: Final = {"base": "", "output": "adapter", "rank": "auto", "rank_max": str(RANK_CAP)}
"""The rules by their names without the family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRules:
    """What a policy says of adapters."""

    output: str = "adapter"
    """One of :data:`OUTPUTS`."""
    rank: str = "auto"
    """One of :data:`RANK_RULES`: the rank of the adapter that is written."""
    rank_max: int = RANK_CAP
    """The largest rank that a contribution may have."""
    base_name: str = ""
    """What adapters have to call their base; empty: it does not matter."""


def split_params(params: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return (those of the strategy, those of adapters without the family)."""
    own = {name: text for name, text in params.items() if not name.startswith(FAMILY)}
    return own, {n.removeprefix(FAMILY): t for n, t in params.items() if n.startswith(FAMILY)}


def adapter_rules(params: Mapping[str, str]) -> AdapterRules | None:
    """Return what the parameters of a policy say of adapters; None if it is of whole models.

    Raises:
        ParameterError: This release cannot read them.
    """
    texts = split_params(params)[1]
    if not texts:
        return None
    if unknown := sorted(texts.keys() - DEFAULTS.keys()):
        raise ParameterError(
            f"Adapters have no parameter {FAMILY}{unknown[0][:64]}.",
            hint=f"Known: {', '.join(FAMILY + name for name in DEFAULTS)}.",
        )
    texts = DEFAULTS | texts
    if texts["output"] not in OUTPUTS:
        raise ParameterError(f"{FAMILY}output is one of {', '.join(OUTPUTS)}, not {texts['output'][:64]!r}.")
    parse_rank(texts["rank"])
    rank_max = texts["rank_max"]
    if not _is_count(rank_max) or not 0 < int(rank_max) <= ADAPTER_RANK_MAX:
        raise ParameterError(
            f"{FAMILY}rank_max is a number from 1 to {ADAPTER_RANK_MAX}, not {rank_max[:64]!r}."
        )
    return AdapterRules(
        output=texts["output"], rank=texts["rank"], rank_max=int(rank_max), base_name=texts["base"]
    )


def write_rules(texts: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters of a policy with these rules: an empty text, or none, is the default.

    The output and the rank are always written, so that any policy of adapters says that it is one.

    Args:
        texts: By name without the family.

    Raises:
        ParameterError: No such rule.
    """
    found = {
        name: text
        for name, text in texts.items()
        if text and (text != DEFAULTS.get(name) or name in ("output", "rank"))
    }
    kept = {"output": DEFAULTS["output"], "rank": DEFAULTS["rank"]} | found
    params = {f"{FAMILY}{name}": text for name, text in kept.items()}
    adapter_rules(params)
    return params


def parse_rank(rule: str) -> str | int | Fraction:
    """Return what a rank rule means: its name, a number, or the share of the squared norm to keep.

    Raises:
        ParameterError: No such rule.
    """
    if rule in RANK_RULES[:5]:
        return rule
    if rule.startswith("energy:"):
        share = decimal_of(rule.removeprefix("energy:"))
        if share is not None and 0 < share <= 1:
            return share
    elif _is_count(rule) and int(rule) > 0:
        return int(rule)
    raise ParameterError(f"A rank is one of {', '.join(RANK_RULES)}, not {rule[:64]!r}.")


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9
