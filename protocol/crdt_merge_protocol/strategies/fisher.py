"""Fisher-weighted averaging: every parameter is averaged by how much each contribution's data depends on it.

The diagonal of the Fisher information comes from whoever trained a model, so it is not to be trusted with
its scale: a factor of 10^9 would take the merge over. Unless asked otherwise each is first divided by its
root mean square (``model_l2``) or by its mean in each tensor. The floor is added after that, and counts the
same for all. (Code of the literature adds it before: then a Fisher diagonal of zeros, divided by next to
nothing, would win.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, cast

import numpy as np

from crdt_merge_protocol.errors import ArtefactInvalidError

from .acceleration import Gain, current
from .artefact_checks import LABEL_MODES
from .artefacts import ArtefactNeed
from .contract import LEAF_ELEMENTS, BaseUse, Block, Float64Array, Key, MergeContext, Strategy, Wanted
from .delegation import fallback_parameter
from .dependence import Dependence, depends
from .kernels import CHUNK_ELEMENTS, chunks
from .parameters import Parameter
from .reductions import add_leaves, leaf_products, leaf_sums

FISHER: Final = "fisher_diag"
SAME: Final = "same"
_MEAN_OF_OTHERS: Final = "mean_of_others"
_WHOLE_MODEL: Final = -1


@dataclass(frozen=True, slots=True)
class FisherScales:
    """What each Fisher diagonal is multiplied with; absent: 1."""

    by_scope: dict[tuple[int, int], float]
    """By (tensor index, or -1 for the whole model; contribution)."""

    def of(self, tensor_index: int, contribution: int) -> float:
        """Return the factor for a tensor of a contribution."""
        whole = self.by_scope.get((_WHOLE_MODEL, contribution))
        return self.by_scope.get((tensor_index, contribution), 1.0) if whole is None else whole


class FisherMerge(Strategy):
    """The mean of the models, each parameter weighted by its Fisher information in each model."""

    id = "fisher_merge"
    title = "Fisher-weighted averaging"
    paper = "Matena and Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022, arXiv:2111.09832"
    doc = (
        "The mean of the models, each parameter weighted by its Fisher information, which every contributor "
        "computes on its data. There is no version without data: equal weights are weight_average."
    )
    formula = (
        "out = sum_i w_i g(F_i) X_i / sum_i w_i g(F_i)\n"
        "g(F) = min(F s, cap)^fisher_power + floor;  s = 1 / rms(F) over the model (model_l2),\n"
        "1 / mean(F) of the tensor (tensor_mean) or 1 (none)"
    )
    base: ClassVar[BaseUse] = "unused"
    artefacts = (ArtefactNeed(FISHER),)
    parameters = (
        Parameter(
            name="normalize", type="choice", default="model_l2", choices=("none", "model_l2", "tensor_mean"),
            doc="What the scale of each Fisher diagonal is taken out by; none trusts every contributor.",
        ),
        Parameter(
            name="floor", type="decimal", default="0.000001", low="0", high="1000",
            doc="Added to every Fisher value after normalising; what nobody knows anything of is averaged.",
        ),
        Parameter(
            name="cap", type="decimal", default="none", low="0.000001", high="1000000", choices=("none",),
            doc="Greatest Fisher value after normalising, in units of the typical one: bounds what a "
            "diagonal that is large in a few places decides there.",
        ),
        Parameter(
            name="fisher_power", type="choice", default="1", choices=("0", "0.5", "1", "2"),
            doc="Exponent of the Fisher values; 0 is the plain mean.",
        ),
        Parameter(
            name="missing_fisher", type="choice", default="error", choices=("error", _MEAN_OF_OTHERS),
            doc="Contributions without a Fisher diagonal: not used, or given the mean of the others'.",
        ),
        Parameter(
            name="label_mode", type="choice", default=SAME, choices=(SAME, *LABEL_MODES),
            doc="How the labels were had; of another mode it counts as missing. same: whichever, but one.",
        ),
        fallback_parameter(),
    )  # fmt: skip

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and offline Fisher diagonals of different kinds.

        Raises:
            ArtefactInvalidError: Their label modes differ.
        """
        super().check(context)
        modes = _modes(context)
        if context.is_strict and len(modes) > 1:
            raise ArtefactInvalidError(
                f"Fisher diagonals of label modes {' and '.join(modes)} are different quantities.",
                hint="Compute them alike, or name the mode to use with label_mode.",
            )

    def artefacts_for(self, params: Mapping[str, Any]) -> tuple[ArtefactNeed, ...]:
        """Return that a Fisher diagonal is optional where others can stand for it."""
        return (ArtefactNeed(FISHER, is_optional=str(params.get("missing_fisher")) == _MEAN_OF_OTHERS),)

    def unmet(self, context: MergeContext) -> str | None:
        """Return whose Fisher diagonal is missing.

        With ``mean_of_others`` one of all is enough; in a group nobody can stop the others by one of another
        label mode.
        """
        absent = [i for i in range(context.k) if context.artefact(FISHER, i) is None]
        unusable = [i for i in range(context.k) if _position(context, i) is None]
        required = unusable if context.is_strict else absent
        if len(unusable) == context.k:
            required = unusable
        elif context.params["missing_fisher"] == _MEAN_OF_OTHERS:
            required = []
        if not required:
            return None
        who = ", ".join(context.digests[i].hex()[:12] for i in required)
        mode = context.params["label_mode"]
        kind = FISHER if mode == SAME else f"{FISHER} of label mode {mode}"
        return f"{self.id}: no {kind} for contribution {who}"

    def wants(self, context: MergeContext, tensor_index: int) -> tuple[Wanted, ...]:
        """Return the Fisher diagonals of a tensor; a frozen tensor has none."""
        name = context.specs[tensor_index].name
        return tuple(Wanted(position, name, True) for _, position in _holders(context, tensor_index))

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return an estimate: six passes over cached memory per contribution, and the norms."""
        return 6.0 * context.specs[tensor_index].numel * (context.k + 1)

    def pass_count(self, context: MergeContext) -> int:
        """Return one pass for the scales, if there are any."""
        return 0 if context.params["normalize"] == "none" or _is_plain(context) else 1

    def reads_models(self, context: MergeContext, pass_no: int) -> bool:  # noqa: ARG002
        """Tell that scales are those of Fisher diagonals."""
        return False

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> list[Float64Array]:  # noqa: ARG002
        """Return the sums over leaves of each Fisher diagonal, squared for ``model_l2``."""
        if context.params["normalize"] == "tensor_mean":
            return [leaf_sums(values) for values in block.artefacts]
        return [leaf_products(values, values) for values in block.artefacts]

    def end_pass(
        self,
        context: MergeContext,
        state: Any,  # noqa: ARG002 - nothing came before.
        pass_no: int,  # noqa: ARG002 - there is one.
        partials: Sequence[tuple[Key, Any]],
    ) -> FisherScales:
        """Return the scales."""
        is_model = context.params["normalize"] == "model_l2"
        leaves: dict[tuple[int, int], list[Float64Array]] = {}
        for (tensor_index, _), sums in partials:
            scope = _WHOLE_MODEL if is_model else tensor_index
            for (i, _), part in zip(_holders(context, tensor_index), sums, strict=True):
                leaves.setdefault((scope, i), []).append(part)
        scales = {}
        for (scope, i), parts in leaves.items():
            total = add_leaves(np.concatenate(parts))
            size = context.numel if is_model else context.specs[scope].numel
            typical = math.sqrt(total / size) if is_model and size else total / max(size, 1)
            scales[scope, i] = 1.0 / typical if typical > 0 else 0.0
        return FisherScales(scales)

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides a tensor, unless scales are those of whole models."""
        is_scaled_as_part = context.params["normalize"] == "model_l2" and not _is_plain(context)
        return None if is_scaled_as_part else depends(self, context, tensor_index)

    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return the Fisher-weighted mean of a block."""
        if context.k == 1:
            return block.inputs[0].copy()
        work = _Work(context, state or FisherScales({}), block)
        out = np.empty(block.stop - block.start, np.float64)
        for part in chunks(out.size, work.step):
            work.merge(part, out[part])
        return out

    def warnings(self, context: MergeContext, state: Any) -> list[str]:  # noqa: ARG002
        """Name those who have no Fisher diagonal, and kinds that do not go together."""
        found = []
        modes = _modes(context)
        if len(modes) > 1:
            found.append(f"Fisher diagonals of label modes {' and '.join(modes)} were mixed.")
        lacking = [context.digests[i].hex()[:12] for i in range(context.k) if _position(context, i) is None]
        if lacking:
            found.append(f"No usable {FISHER} for {', '.join(lacking)}: the mean of the others' was used.")
        if context.params["normalize"] == "none" and context.k > 1:
            found.append("Fisher diagonals were used as they came: whoever scales one up decides the merge.")
        return found


class _Work:
    """Buffers for one block, used again for every chunk."""

    def __init__(self, context: MergeContext, scales: FisherScales, block: Block) -> None:
        self._block = block
        self._weights = [float(weight) for weight in context.weights]
        self._power = str(context.params["fisher_power"])
        self._floor = float(context.number("floor"))
        cap = context.params["cap"]
        self._cap = None if cap == "none" else float(context.number("cap"))
        held = [i for i, _ in _holders(context, block.tensor_index)]
        self._fishers = dict(zip(held, block.artefacts, strict=True))
        self._scales = {i: scales.of(block.tensor_index, i) for i in held}
        self._informed = [i for i in range(context.k) if _position(context, i) is not None]
        self._lacking = [i for i in range(context.k) if i not in set(self._informed)]
        share = sum(self._weights[i] for i in self._informed)
        self._shares = {i: self._weights[i] / share if share else 0.0 for i in self._informed}
        # A compiled loop needs no small chunks, and few calls.
        self.step = CHUNK_ELEMENTS if current() is None else LEAF_ELEMENTS
        size = min(self.step, block.stop - block.start)
        self._gain, self._term, self._total, self._mean = (np.empty(size, np.float64) for _ in range(4))

    def merge(self, part: slice, out: Float64Array) -> None:
        """Write the mean of one chunk into ``out``."""
        size = out.size
        total, mean, gain, term = (
            buffer[:size] for buffer in (self._total, self._mean, self._gain, self._term)
        )
        if self._lacking:
            mean[:] = 0.0
        is_first = current() is None
        if not is_first:
            total[:] = out[:] = 0.0
        for i in self._informed:
            if self._add_compiled(i, part, total, out):
                continue
            into = total if is_first else gain
            self._write_gain(i, part, into)
            if self._lacking:
                mean += np.multiply(into, self._shares[i], out=term)
            self._add(i, part, into, out, is_first=is_first)
            is_first = False
        for i in self._lacking:
            np.copyto(gain, mean)
            self._add(i, part, gain, out)
        # Gains are not negative, so one number mostly says that all is known.
        if not total.min() > 0.0:
            unknown = total == 0
            self._average(part, unknown, out)
            total[unknown] = 1.0
        out /= total

    def _add_compiled(self, i: int, part: slice, total: Float64Array, out: Float64Array) -> bool:
        """Add one contribution's share by a compiled loop; tell if that was done."""
        accelerator, fisher = current(), self._fishers.get(i)
        if accelerator is None or fisher is None or self._lacking or self._power == "0":
            return False
        gain = Gain(
            scale=self._scales[i],
            cap=math.inf if self._cap is None else self._cap,
            power=cast(Literal["0.5", "1", "2"], self._power),
            floor=self._floor,
            weight=self._weights[i],
        )
        return accelerator.add_gain(self._block.inputs[i][part], fisher[part], gain, total, out)

    def _write_gain(self, i: int, part: slice, gain: Float64Array) -> None:
        """Write g(F) of one contribution."""
        fisher = self._fishers.get(i)
        if self._power == "0":
            gain[:] = 1.0
            return
        if fisher is None:
            gain[:] = self._floor
            return
        np.multiply(fisher[part], self._scales[i], out=gain)
        if self._cap is not None:
            np.minimum(gain, self._cap, out=gain)
        if self._power == "0.5":
            np.sqrt(gain, out=gain)
        elif self._power == "2":
            gain *= gain
        gain += self._floor

    def _add(
        self, i: int, part: slice, gain: Float64Array, out: Float64Array, *, is_first: bool = False
    ) -> None:
        """Add gains to the total, where the first ones already are, and the weighted values to ``out``."""
        if self._weights[i] != 1.0:
            gain *= self._weights[i]
        if is_first:
            np.multiply(gain, self._block.inputs[i][part], out=out)
            out += 0.0  # As if added to zero: there is no -0.
            return
        self._total[: gain.size] += gain
        out += np.multiply(gain, self._block.inputs[i][part], out=self._term[: gain.size])

    def _average(self, part: slice, chosen: Any, out: Float64Array) -> None:
        """Write the plain mean where nobody's Fisher information is above zero and there is no floor."""
        total = sum(self._weights)
        out[chosen] = 0.0
        for weight, values in zip(self._weights, self._block.inputs, strict=True):
            out[chosen] += values[part][chosen] * (weight / total)


def _position(context: MergeContext, contribution: int) -> int | None:
    """Return the position of a contribution's Fisher diagonal of an acceptable kind."""
    position = context.artefact(FISHER, contribution)
    if position is None:
        return None
    mode = context.params["label_mode"]
    return position if mode in (SAME, context.artefacts[position].header.get("label_mode")) else None


def _holders(context: MergeContext, tensor_index: int) -> list[tuple[int, int]]:
    """Return (contribution, position of its artefact) of those that have a Fisher diagonal of a tensor."""
    if _is_plain(context):
        return []
    name = context.specs[tensor_index].name
    found = ((i, _position(context, i)) for i in range(context.k))
    return [(i, at) for i, at in found if at is not None and context.artefacts[at].spec(name) is not None]


def _is_plain(context: MergeContext) -> bool:
    return context.k == 1 or context.params["fisher_power"] == "0"


def _modes(context: MergeContext) -> list[str]:
    """Return the label modes of the Fisher diagonals that are used, in a fixed order."""
    found = [_position(context, i) for i in range(context.k)]
    return sorted({str(context.artefacts[at].header.get("label_mode")) for at in found if at is not None})


FISHER_STRATEGIES: Final = (FisherMerge(),)
