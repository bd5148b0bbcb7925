"""Weight scope alignment: models whose tensors have like means and deviations average well.

The published method is a regulariser: during *training* it pulls the scope of every tensor, its mean and
standard deviation, towards a target. There is no published edit afterwards. So there are three modes:

``average``: the contributions were trained towards a target and say so with an artefact ``weight_scope``.
What it says is compared with their elements, then they are averaged.
``target``: the fused scope of the contributions, for the next round of training, goes into the decisions. The
model beside it is their plain average.
``posthoc_affine``: an adaptation, not in the paper. Every tensor is shifted and scaled to the fused scope
before averaging, which changes what each model computes.

Only matrices have a scope here; norm gains, biases and embeddings are averaged (``align``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np

from crdt_merge_protocol.errors import ArtefactMissingError, ParameterError

from .artefact_fields import decimal_of
from .artefacts import ArtefactNeed
from .averages import weight_parameter
from .contract import BaseUse, Block, Float64Array, Granularity, Key, MergeContext, Strategy
from .delegation import fallback_parameter
from .dependence import Dependence, depends
from .kernels import combine
from .parameters import Parameter, Value
from .reductions import add_leaves, leaf_products, leaf_sums
from .rows import row_chunks, row_length, row_products, row_sums

WEIGHT_SCOPE: Final = "weight_scope"
AVERAGE: Final = "average"
TARGET: Final = "target"
POSTHOC: Final = "posthoc_affine"
_EMBEDDINGS: Final = ("embed", "lm_head", "wte", "wpe")
_NAMED_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Scopes:
    """What the passes found, by tensor index: a number per contribution."""

    means: dict[int, tuple[float, ...]] = field(default_factory=dict)
    deviations: dict[int, tuple[float, ...]] = field(default_factory=dict)


class WeightScopeAlignment(Strategy):
    """The average of models trained towards one scope, the scope for the next round, or alignment now."""

    id = "weight_scope_alignment"
    title = "Weight Scope Alignment"
    paper = "Xu, Li, Gan, Zhan, Weight Scope Alignment, ECAI 2024, arXiv:2408.12237"
    doc = (
        "Averages models that were trained towards common means and deviations of their tensors, or tells "
        "the scope to train towards next. Aligning afterwards (posthoc_affine) is an adaptation."
    )
    formula = (
        "m_i, s_i = mean and standard deviation of a tensor of X_i; m = sum_i w_i m_i, s = sum_i w_i s_i\n"
        "average: sum_i w_i X_i, m_i and s_i compared with what was declared; target: m and s themselves\n"
        "posthoc_affine: sum_i w_i ((X_i - m_i) s / s_i + m)"
    )
    base: ClassVar[BaseUse] = "unused"
    artefacts = (ArtefactNeed(WEIGHT_SCOPE, is_optional=True),)
    parameters = (
        Parameter(
            name="mode", type="choice", default=AVERAGE, choices=(AVERAGE, TARGET, POSTHOC),
            doc="Average what was trained towards a scope, tell the scope to train towards, or align now.",
        ),
        weight_parameter(),
        Parameter(
            name="scope_fusion", type="choice", default="mean_std", choices=("mean_std", "pooled"),
            doc="mean_std: the mean of the deviations. pooled: the deviation of all elements together.",
        ),
        Parameter(
            name="granularity", type="choice", default="tensor", choices=("tensor", "row"),
            doc="Align whole tensors, or each row by itself (posthoc_affine).",
        ),
        Parameter(
            name="tolerance", type="decimal", default="0.1", low="0", high="10",
            doc="How far a mean, in deviations, and a deviation, as a share, may be from what was declared.",
        ),
        Parameter(
            name="misfit", type="choice", default="warn", choices=("warn", "exclude"),
            doc="What happens to a tensor of a contribution that differs more.",
        ),
        Parameter(
            name="align", type="choice", default="auto", choices=("auto", "always", "never"),
            per=frozenset({"tensor"}),
            doc="Which tensors have a scope; auto: matrices that are no embeddings, by their names.",
        ),
        fallback_parameter(),
    )  # fmt: skip

    def validate(self, params: Mapping[str, str]) -> dict[str, Value]:
        """Return all parameters, typed; only ``posthoc_affine`` knows rows.

        Raises:
            ParameterError: As every strategy, and for rows in another mode.
        """
        values = super().validate(params)
        if values["granularity"] == "row" and values["mode"] != POSTHOC:
            raise ParameterError(f"granularity=row means something with mode={POSTHOC} only.")
        return values

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and offline to set contributions aside.

        Raises:
            ArtefactMissingError: Some, but not all, declare their scope.
        """
        super().check(context)
        aside = _aside(context)
        if context.is_strict and 0 < len(aside) < context.k:
            raise ArtefactMissingError(
                f"{self.id}: no {WEIGHT_SCOPE} for contribution {_some([d.hex()[:12] for d in aside])}.",
                hint="Leave it out, or declare the scope that it was trained towards.",
            )

    def unmet(self, context: MergeContext) -> str | None:
        """Return why nothing can be averaged: nobody declares a scope."""
        reason = super().unmet(context)
        if reason is not None or len(_aside(context)) < context.k:
            return reason
        return f"{self.id}: no contribution declares its scope; without one this is weight_average"

    def granularity(self, context: MergeContext, tensor_index: int) -> Granularity:
        """Return rows where each row is aligned by itself."""
        return "rows" if _is_by_row(context) and has_scope(context, tensor_index) else "elements"

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return the memory of aligning a few rows."""
        return 32 * row_length(context.specs[tensor_index].shape) * max(context.k, 1)

    def pass_count(self, context: MergeContext) -> int:
        """Return 2: means, then squares around them. Rows are measured as they are merged."""
        return 0 if _is_by_row(context) else 2

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:  # noqa: ARG002
        """Tell whether a tensor has a scope."""
        return has_scope(context, tensor_index)

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:
        """Return the leaf sums of every contribution, or of its squares around the mean, ``(k, leaves)``."""
        if not has_scope(context, block.tensor_index):
            return None
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            if pass_no == 0:
                return np.stack([leaf_sums(values) for values in block.inputs])
            means = state.means[block.tensor_index]
            centred = (values - mean for values, mean in zip(block.inputs, means, strict=True))
            return np.stack([leaf_products(values, values) for values in centred])

    def end_pass(
        self, context: MergeContext, state: Any, pass_no: int, partials: Sequence[tuple[Key, Any]]
    ) -> Scopes:
        """Return the means, then the deviations as well."""
        found: dict[int, tuple[float, ...]] = {}
        for index, group in itertools.groupby(partials, key=lambda item: item[0][0]):
            sums = [partial for _, partial in group if partial is not None]
            if sums:
                with np.errstate(over="ignore", invalid="ignore"):
                    totals = [add_leaves(row) for row in np.concatenate(sums, axis=1)]
                found[index] = tuple(total / context.specs[index].numel for total in totals)
        if pass_no == 0:
            return Scopes(means=found)
        deviations = {index: tuple(map(math.sqrt, squares)) for index, squares in found.items()}
        return Scopes((state or Scopes()).means, deviations)

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor: that tensor alone."""
        return depends(self, context, tensor_index)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return a block of the average, of aligned tensors if asked."""
        index = block.tensor_index
        weights = [float(share) for share in _shares(context, state, index)]
        voting = [i for i, weight in enumerate(weights) if weight]
        if context.params["mode"] != POSTHOC or len(voting) < 2 or not has_scope(context, index):
            return combine(block, weights)
        if _is_by_row(context):
            return _align_rows(context, block, weights, voting)
        fused = fuse(context, state, index)
        deviations = state.deviations[index]
        if fused is None or not all(deviations[i] for i in voting):
            return combine(block, weights)
        scales = [w * fused[1] / d if w else 0.0 for w, d in zip(weights, deviations, strict=True)]
        shift = fused[0] - _add(c * m for c, m in zip(scales, state.means[index], strict=True) if c)
        out = combine(block, scales)
        out += shift
        return out

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return the fused scopes, or who misses what it declared, and where scopes are from, as well.

        ``source`` is ``artefact`` where contributions are held against what artefacts declare, which
        ``declared_in`` names, and ``computed`` where scopes are those of the elements and nothing else.
        """
        known = state or Scopes()
        is_declared = context.params["mode"] == AVERAGE
        facts: dict[str, Any] = {
            "mode": context.params["mode"],
            "source": "artefact" if is_declared else "computed",
        }
        if is_declared:
            declared = {d.hex(): context.artefact(WEIGHT_SCOPE, i) for i, d in enumerate(context.digests)}
            facts["declared_in"] = {
                subject: context.artefacts[position].digest.hex()
                for subject, position in declared.items()
                if position is not None
            }
            facts["misfits"] = {
                spec.name: [context.digests[i].hex() for i in _misfits(context, known, index)]
                for index, spec in enumerate(context.specs)
                if _misfits(context, known, index)
            }
        else:
            fused = {context.specs[index].name: fuse(context, known, index) for index in known.deviations}
            facts["target_scopes"] = {
                name: {"mean": scope[0], "deviation": scope[1]} for name, scope in fused.items() if scope
            }
        return {**super().decisions(context, state), **facts}

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Say what the mode leaves undone, who was set aside and which tensors miss their scope."""
        mode = context.params["mode"]
        if mode == TARGET:
            return ["The result of mode target is the scopes in the decisions; the model is a plain average."]
        if mode == POSTHOC:
            return ["posthoc_affine is not in the paper: it changes what each model computes."]
        aside = [digest.hex()[:12] for digest in _aside(context)]
        told = [f"contribution {_some(aside)}: declares no scope, set aside."] if aside else []
        known = state or Scopes()
        names = [spec.name for i, spec in enumerate(context.specs) if _misfits(context, known, i)]
        if names:
            told.append(f"{_some(names)}: not in the scope that was declared ({context.params['misfit']}).")
        return told


def has_scope(context: MergeContext, tensor_index: int) -> bool:
    """Tell whether a tensor is one whose scope matters."""
    spec, choice = context.specs[tensor_index], context.value("align", tensor_index)
    if choice != "auto" or not spec.numel:
        return choice == "always" and bool(spec.numel)
    return len(spec.shape) >= 2 and not any(word in spec.name for word in _EMBEDDINGS)


def fuse(context: MergeContext, state: Scopes, tensor_index: int) -> tuple[float, float] | None:
    """Return mean and deviation of the fused scope of a tensor; None beyond the range of float64."""
    weights = [float(share) for share in _shares(context, state, tensor_index)]
    scopes = zip(weights, state.means[tensor_index], state.deviations[tensor_index], strict=True)
    terms = [(w, m, d) for w, m, d in scopes if w]
    if not all(map(math.isfinite, itertools.chain.from_iterable(terms))):
        return None
    mean = _add(w * m for w, m, _ in terms)
    if context.params["scope_fusion"] == "mean_std":
        deviation = _add(w * d for w, _, d in terms)
    else:
        deviation = math.sqrt(_add(w * (d * d + (m - mean) * (m - mean)) for w, m, d in terms))
    return (mean, deviation) if math.isfinite(mean) and math.isfinite(deviation) else None


def _add(values: Iterable[float]) -> float:
    """Return the sum from left to right. The built-in one compensates from Python 3.12 on."""
    total = 0.0
    for value in values:
        total += value
    return total


def _is_by_row(context: MergeContext) -> bool:
    return context.params["granularity"] == "row"


def _aside(context: MergeContext) -> list[bytes]:
    """Return the contributions that declare no scope, where they have to."""
    if context.params["mode"] != AVERAGE:
        return []
    return [d for i, d in enumerate(context.digests) if context.artefact(WEIGHT_SCOPE, i) is None]


def _shares(context: MergeContext, state: Scopes | None, tensor_index: int) -> list[Fraction]:
    """Return the share of every contribution in a tensor, exact; 0 for those set aside or excluded.

    Where nothing is left, all that were not set aside share by their own weights.
    """
    aside = {i for i, digest in enumerate(context.digests) if digest in set(_aside(context))}
    kept = [Fraction(0) if i in aside else w for i, w in enumerate(context.weights_in(tensor_index))]
    if context.params["misfit"] == "exclude":
        for i in _misfits(context, state or Scopes(), tensor_index):
            kept[i] = Fraction(0)
    if not sum(kept):
        kept = [Fraction(0) if i in aside else weight for i, weight in enumerate(context.weights)]
    total = sum(kept) or Fraction(1)
    return [weight / total for weight in kept]


def _misfits(context: MergeContext, state: Scopes, tensor_index: int) -> list[int]:
    """Return the contributions whose tensor is not in the scope that they declare."""
    if context.params["mode"] != AVERAGE or tensor_index not in state.deviations:
        return []
    tolerance = float(context.number("tolerance"))
    found = []
    for i, (mean, deviation) in enumerate(
        zip(state.means[tensor_index], state.deviations[tensor_index], strict=True)
    ):
        declared = _declared(context, tensor_index, i)
        if declared is None:
            continue
        least, most = sorted((deviation, declared[1]))
        if abs(mean - declared[0]) > tolerance * declared[1] or most > least * (1 + tolerance):
            found.append(i)
    return found


def _declared(context: MergeContext, tensor_index: int, contribution: int) -> tuple[float, float] | None:
    """Return the mean and deviation that a contribution declares for a tensor, or None."""
    position = context.artefact(WEIGHT_SCOPE, contribution)
    if position is None:
        return None
    scope = context.artefacts[position].header["scopes"].get(context.specs[tensor_index].name)
    if scope is None:
        return None
    mean, variance = decimal_of(scope["mean"]), decimal_of(scope["variance"])
    assert mean is not None
    assert variance is not None
    return float(mean), math.sqrt(variance)


def _align_rows(
    context: MergeContext, block: Block, weights: Sequence[float], voting: Sequence[int]
) -> Float64Array:
    """Return the average of rows that were each shifted and scaled to their fused scope.

    Rows that are constant in some model are averaged as they are.
    """
    width = row_length(context.specs[block.tensor_index].shape)
    out = combine(block, weights).reshape(-1, width)
    inputs = [block.inputs[i].reshape(-1, width) for i in voting]
    shares = [weights[i] for i in voting]
    for part in row_chunks(out.shape[0], width):
        means = [row_sums(values[part]) / width for values in inputs]
        centred = [values[part] - mean[:, None] for values, mean in zip(inputs, means, strict=True)]
        deviations = [np.sqrt(row_products(values, values) / width) for values in centred]
        mean, deviation = _fuse_rows(context, shares, means, deviations)
        is_flat = np.zeros(mean.shape, np.bool_)
        aligned = np.zeros_like(centred[0])
        for share, values, own in zip(shares, centred, deviations, strict=True):
            is_flat |= own == 0
            aligned += values * (share * deviation / np.where(own == 0, 1.0, own))[:, None]
        aligned += mean[:, None]
        np.copyto(out[part], aligned, where=~is_flat[:, None])
    return out.reshape(-1)


def _fuse_rows(
    context: MergeContext,
    weights: Sequence[float],
    means: Sequence[Float64Array],
    deviations: Sequence[Float64Array],
) -> tuple[Float64Array, Float64Array]:
    """Return mean and deviation of the fused scope of each row."""
    mean = np.zeros_like(means[0])
    for weight, own in zip(weights, means, strict=True):
        mean += weight * own
    spread = np.zeros_like(mean)
    is_pooled = context.params["scope_fusion"] == "pooled"
    for weight, own, deviation in zip(weights, means, deviations, strict=True):
        square = deviation * deviation + (own - mean) * (own - mean)
        spread += weight * (square if is_pooled else deviation)
    return mean, np.sqrt(spread) if is_pooled else spread


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return f"{', '.join(names[:_NAMED_MAX])}{more}"


WEIGHT_SCOPE_STRATEGIES: Final = (WeightScopeAlignment(),)
