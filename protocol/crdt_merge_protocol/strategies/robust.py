"""Aggregators that a few liars cannot steer, by whole models: krum, geometric median, clipped mean.

What each can bear is its *breakdown point*: the share of liars, or of their weight, below which the result
stays within a bound set by the honest ones, whatever the liars send. A mean has none: one is enough. See
``coordinates.py`` for the ones that judge element by element.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import ClassVar, Final, cast

from .contract import BaseUse, MergeContext
from .delegation import fallback_parameter
from .distances import (
    EVERYTHING_FAR,
    FEW,
    ByDistance,
    Table,
    Verdict,
    distance,
    from_point,
    scope_parameter,
    spread_out,
    total,
    weighted_median,
)
from .parameters import Parameter
from .trimming import voters as voters_of

AUTO: Final = "auto"


def liars_parameter() -> Parameter:
    """Return the parameter that says how many liars are reckoned with."""
    return Parameter(
        name="f",
        type="integer",
        default="1",
        low="0",
        high="1000000",
        choices=(AUTO,),
        doc="How many contributions may be of liars; auto: the most that can be borne.",
    )


class Krum(ByDistance):
    """The model with the least sum of squared distances to the n - f - 2 models nearest to it.

    Bears ``f`` liars among at least ``2 f + 3`` models, whatever their weights; with fewer the stand-in is
    used. A model of weight zero is not one of the n. Models that tie with the last chosen one are chosen too:
    a choice by digest could be arranged. Weights only weigh the mean of several chosen.
    """

    id = "krum"
    title = "Krum"
    paper = "Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, arXiv:1703.02757"
    doc = "Takes the one model that is closest to most others; bears f liars among 2f + 3."
    formula = (
        "score_i = sum of |X_i - X_j|^2 over the n - f - 2 nearest j, out = the X_i of the least score\n"
        "m > 1: the weighted mean of the m least"
    )
    base: ClassVar[BaseUse] = "unused"
    k_min = 3
    parameters: ClassVar[tuple[Parameter, ...]] = (
        liars_parameter(),
        Parameter(
            name="m", type="integer", default="1", low="1", high="1000000", choices=(AUTO,),
            doc="How many of the best are averaged, at most n - f - 2; auto: as many.",
        ),
        scope_parameter(),
        fallback_parameter(),
    )  # fmt: skip

    def unmet(self, context: MergeContext) -> str | None:
        """Return what keeps it from bearing as many liars as asked for."""
        count, least = len(voters_of(context)), 2 * self._liars(context) + 3
        if count < least:
            return f"{self.id} with f = {self._liars(context)} needs {least} models, there are {count}"
        return super().unmet(context)

    def decide(self, context: MergeContext, table: Table) -> Verdict:
        """Return equal shares, times weights, of the best models."""
        voters = voters_of(context)
        near = len(voters) - self._liars(context) - 2
        scores = []
        for i in range(len(voters)):
            others = sorted(distance(table, i, j) for j in range(len(voters)) if j != i)
            scores.append(total(others[:near]))
        wanted = context.params["m"]
        count = near if wanted == AUTO else min(cast(int, wanted), near)
        limit = sorted(scores)[count - 1]
        chosen = [i for i, score in enumerate(scores) if score <= limit]
        weight = sum(context.weights[voters[i]] for i in chosen)
        found = {i: float(context.weights[voters[i]] / weight) for i in chosen}
        return Verdict(spread_out(context, found), "" if math.isfinite(limit) else EVERYTHING_FAR)

    def _liars(self, context: MergeContext) -> int:
        asked = context.params["f"]
        return max((len(voters_of(context)) - 3) // 2, 0) if asked == AUTO else cast(int, asked)


class MultiKrum(Krum):
    """The weighted mean of the models that Krum likes best: less noise than one of them alone."""

    id = "multi_krum"
    title = "Multi-Krum"
    doc = "Averages the models that are closest to most others; bears f liars among 2f + 3."
    parameters: ClassVar[tuple[Parameter, ...]] = (
        liars_parameter(),
        Parameter(
            name="m", type="integer", default=AUTO, low="1", high="1000000", choices=(AUTO,),
            doc="How many of the best are averaged, at most n - f - 2; auto: as many.",
        ),
        scope_parameter(),
        fallback_parameter(),
    )  # fmt: skip


class GeometricMedian(ByDistance):
    """The point with the least weighted sum of distances to the models.

    Smoothed Weiszfeld steps from the weighted mean. Weights are votes: it bears liars of less than half of
    the weight. With one model it is that model, with two of equal weight their mean, and protects from
    nothing; it never needs a stand-in.
    """

    id = "geometric_median"
    title = "geometric median (RFA)"
    paper = "Pillutla, Kakade, Harchaoui, Robust Aggregation for Federated Learning, 2022, arXiv:1912.13445"
    doc = "The point nearest to all models by plain distance; bears liars of less than half of the weight."
    formula = (
        "out = argmin over v of sum w_i |X_i - v|\n"
        "by steps v <- sum b_i X_i / sum b_i, b_i = w_i / max(nu, |X_i - v|)"
    )
    base: ClassVar[BaseUse] = "unused"
    parameters = (
        scope_parameter(),
        Parameter(
            name="max_iter", type="integer", default="200", low="1", high="10000",
            doc="Steps; the paper takes 3 because each is a round of messages there.",
        ),
        Parameter(
            name="tol", type="decimal", default="1e-10", low="1e-15", high="1e-2",
            doc="The search ends when no share changes by more than this.",
        ),
        Parameter(
            name="smoothing", type="decimal", default="1e-6", low="1e-12", high="1",
            doc="nu over the least distance of two different models: nearer than nu does not attract more.",
        ),
    )  # fmt: skip

    def decide(self, context: MergeContext, table: Table) -> Verdict:
        """Return the shares that the steps end at."""
        voters = voters_of(context)
        inside = _reachable(len(voters), table)
        note = FEW if len(voters) < 3 else ""
        if not inside:
            inside, note = list(range(len(voters))), EVERYTHING_FAR
        weight = sum(context.weights[voters[i]] for i in inside)
        shares = {i: float(context.weights[voters[i]] / weight) for i in inside}
        if note == EVERYTHING_FAR:
            return Verdict(spread_out(context, shares), note)
        apart = [distance(table, i, j) for i, j in itertools.combinations(inside, 2)]
        least = min((each for each in apart if each > 0), default=0.0)
        if not least:
            return Verdict(spread_out(context, shares), note)
        nu = float(cast(Fraction, context.params["smoothing"])) * math.sqrt(least)
        tolerance = float(cast(Fraction, context.params["tol"]))
        place = shares
        for _ in range(cast(int, context.params["max_iter"])):
            pulls = {i: share / max(nu, from_point(table, place, i)) for i, share in shares.items()}
            whole = math.fsum(pulls.values())
            moved = {i: pull / whole for i, pull in pulls.items()}
            change = max(abs(moved[i] - place[i]) for i in place)
            place = moved
            if change < tolerance:
                break
        return Verdict(spread_out(context, place), note)


def _reachable(count: int, table: Table) -> list[int]:
    """Return the points that remain when those farthest beyond the range of float64 are left out."""
    inside = list(range(count))
    while True:
        beyond = {i: [math.isinf(distance(table, i, j)) for j in inside].count(True) for i in inside}
        worst = max(beyond.values(), default=0)
        if not worst:
            return inside
        inside = [i for i in inside if beyond[i] < worst]


class NormClippedMean(ByDistance):
    """The base plus the weighted mean of differences, none longer than a limit.

    With more rounds, centred clipping: each clips around the result of the one before. Weights weigh the
    mean, so a liar moves the result by at most its share times the limit. ``auto`` takes the weighted median
    of the lengths for the limit, which liars of less than half of the weight cannot inflate. It never needs a
    stand-in.
    """

    id = "norm_clipped_mean"
    title = "norm-clipped mean"
    paper = (
        "Sun et al., Can You Really Backdoor Federated Learning?, 2019, arXiv:1911.07963; rounds: "
        "Karimireddy, He, Jaggi, Learning from History, ICML 2021, arXiv:2012.10333"
    )
    doc = (
        "Averages the differences from the base with long ones shortened; a liar moves it by a bounded step."
    )
    formula = "v = B, each round: v <- v + sum s_i (X_i - v) min(1, max_norm / |X_i - v|), s_i = w_i / sum w"
    base: ClassVar[BaseUse] = "required"
    parameters = (
        Parameter(
            name="max_norm", type="decimal", default=AUTO, low="0", high="1000000000000", choices=(AUTO,),
            doc="Longest difference that counts in full; auto: the weighted median of their lengths.",
        ),
        Parameter(
            name="rounds", type="integer", default="1", low="1", high="100",
            doc="Clip so many times, each time around the last result.",
        ),
        scope_parameter(),
    )  # fmt: skip

    def point_pairs(self, context: MergeContext) -> list[tuple[int, int]]:
        """Return the pairs with the base; more rounds need all of them."""
        every = super().point_pairs(context)
        base = len(voters_of(context))
        return every if context.params["rounds"] != 1 else [pair for pair in every if pair[1] == base]

    def decide(self, context: MergeContext, table: Table) -> Verdict:
        """Return the share of each difference that is left."""
        voters = voters_of(context)
        base, whole = len(voters), sum(context.weights[i] for i in voters)
        inside = [i for i in range(base) if math.isfinite(distance(table, i, base))]
        place = {base: 1.0}
        for _ in range(cast(int, context.params["rounds"])):
            far = {i: from_point(table, place, i) for i in inside}
            lengths = [far.get(i, math.inf) for i in range(base)]
            asked = context.params["max_norm"]
            limit = (
                weighted_median(lengths, [context.weights[i] for i in voters])
                if asked == AUTO
                else float(cast(Fraction, asked))
            )
            steps = {
                i: float(context.weights[voters[i]] / whole) * (limit / far[i] if far[i] > limit else 1.0)
                for i in inside
            }
            rest = 1.0 - math.fsum(steps.values())
            place = {i: rest * place.get(i, 0.0) + steps.get(i, 0.0) for i in (*inside, base)}
        return Verdict(spread_out(context, place))
