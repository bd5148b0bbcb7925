"""Representation surgery: a common model, and for each task a small adapter on the encoder's output.

The adapter, z' = z - up relu(down z), was trained on top of one merge of one set of models. It changes
activations, never weights, and no change of weights could stand for it. So the output is the inner merge,
and the adapters are handed through; whoever runs the model applies them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

from crdt_merge_protocol.errors import ResolveError

from .artefacts import Artefact, ArtefactNeed
from .contract import BaseUse, Block, MergeContext, Output, Strategy
from .delegation import INNER, fallback_parameter, inner_parameter, parameters_of
from .inner import Delegating
from .parameters import Value
from .set_bound import SetBound, artefact_parameter

SURGERY: Final = "surgery_adapter"
_DEFAULT: Final = "task_arithmetic"
_DEFAULT_LAMBDA: Final = "0.3"
"""What the authors' code merges with before it operates."""


class RepresentationSurgery(Delegating, SetBound):
    """The merge of the inner strategy, with one trained adapter per task beside it."""

    id = "representation_surgery"
    title = "Representation Surgery"
    paper = "Yang et al., Representation Surgery for Multi-Task Model Merging, ICML 2024, arXiv:2402.02705"
    doc = (
        "The merge of an inner strategy, and for each task an adapter, trained on unlabelled inputs, that "
        "corrects the features. There is no version without data: without adapters it is the inner merge."
    )
    formula = "model = inner merge;   of task i: z' = z - up_i relu(down_i z) on its encoder's output"
    base: ClassVar[BaseUse] = "optional"
    output: ClassVar[Output] = "modulators"
    allows_negative_weights = True
    artefacts = (ArtefactNeed(SURGERY),)
    parameters = (
        inner_parameter(_DEFAULT, "Strategy of the common model; by default with lambda 0.3."),
        artefact_parameter(),
        fallback_parameter(),
    )

    def validate(self, params: Mapping[str, str]) -> dict[str, Value]:
        """Return all parameters, with the authors' lambda unless an inner strategy is named.

        Raises:
            ParameterError: As every strategy.
        """
        is_default = params.get(INNER, _DEFAULT) == _DEFAULT and INNER not in params
        lambda_name = f"{INNER}.lambda"
        return super().validate({lambda_name: _DEFAULT_LAMBDA, **params} if is_default else params)

    def misfit(self, context: MergeContext, artefact: Artefact) -> str | None:
        """Return why adapters do not belong on this merge."""
        strategy, within = self.inner(context)
        try:
            trained_on = strategy.validate(artefact.header["params"])
            strategy.check(within)
        except ResolveError as error:
            return f"the {SURGERY} does not go with {strategy.id} here: {error.message.removesuffix('.')}"
        if artefact.header["inner"] != strategy.id or trained_on != within.params:
            return f"the {SURGERY} was trained on another merge of these models"
        return strategy.unmet(within)

    def inner(self, context: MergeContext) -> tuple[Strategy, MergeContext]:
        """Return the strategy of the common model."""
        from .registry import get  # Late: this module's strategy is in the registry.

        strategy = get(str(context.params[INNER]))
        params = parameters_of(context.params, INNER)
        return strategy, replace(context, strategy=strategy.id, params=params, task=None)

    def modulate(self, context: MergeContext, state: Any, block: Block, contribution: int) -> bytes:  # noqa: ARG002
        """Return nothing: a task's model has the weights of the common one, and :meth:`adapter` besides."""
        return b""

    def adapter(self, context: MergeContext, contribution: int) -> tuple[int, dict[str, str]] | None:
        """Return the tensors ``down`` and ``up`` of a task; None if the contribution has no adapter."""
        position = self.position(context)
        if position is None:
            return None
        tensors = {side: f"{contribution}/{side}" for side in ("down", "up")}
        artefact = context.artefacts[position]
        return (position, tensors) if all(artefact.spec(name) for name in tensors.values()) else None

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Say of a task's model that its adapter is not in it."""
        found = super().warnings(context, state)
        if context.task is not None:
            found.append(
                "The weights are those of the common model: the adapter that corrects this task's features "
                "is in the modulators that are written without --task."
            )
        return found

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return which contributions have an adapter as well."""
        tasks = [
            digest.hex() for i, digest in enumerate(context.digests) if self.adapter(context, i) is not None
        ]
        return {**super().decisions(context, state), "adapters": tasks}


SURGERY_STRATEGIES: Final = (RepresentationSurgery(),)
