"""What a merge strategy is, and what whoever drives one must do.

Theory of operation. A strategy is a pure function of the contributions in canonical order, cut into steps so
that no model has to fit memory and blocks can be computed anywhere:

1. ``params = strategy.validate(texts)`` once, then a :class:`MergeContext`, then ``strategy.check(context)``.
2. ``state = None``. For each ``pass_no < strategy.pass_count(context)``: call ``observe`` on every block of
   every tensor, in any order and in any process, and hand all partial results, sorted by (tensor index,
   start), to ``end_pass``, which returns the next state. ``needs`` tells which tensors a pass can skip, and
   ``looks_at`` which ranges of one.
   ``compact`` may shrink any subset of the partial results at any time.
3. ``merge`` on every block, in any order and in any process; encode what it returns.
4. ``decisions`` for the manifest beside the output.

A block is a range of flat C-order elements of one tensor. Where ``granularity`` says ``elements`` it starts
at a multiple of 65,536 and ends at one or at the end of the tensor; ``rows`` are whole rows (ranges along the
last axis; a tensor of one axis is one row); ``tensor`` is all of it. Artefact tensors that ``wants`` names
come with the block. The result depends neither on the size of blocks nor on who computes them: sums go over
fixed leaves (``reductions.py``), selections are exact (``selection.py``), random numbers are
addressed by position (``randomness.py``). Nothing here calls BLAS, libm or a random generator's methods.

Source: STRATEGIES of this project's design, sections 1 and D; the paper's "Layer 2".
"""

# ruff: noqa: ARG002 - the methods here are defaults; what they ignore, strategies use.
from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt

from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.errors import BaseMissingError, EmptySetError, ParameterError
from crdt_merge_protocol.limits import WEIGHT_ONE

from . import delegation
from .artefacts import Artefact, ArtefactNeed
from .dependence import Dependence
from .parameters import Parameter, Scalar, Table, Value

Float64Array = npt.NDArray[np.float64]

LEAF_ELEMENTS: Final = 65_536
"""Sums run over leaves of this many elements, so blocks start at multiples of it. Part of the format."""
BLOCK_ELEMENTS: Final = 1 << 20
"""The usual block: 8 MiB per input in float64. Smaller multiples of a leaf stay in the cache longer."""

BaseUse = Literal["required", "optional", "unused"]
Granularity = Literal["elements", "rows", "tensor"]
Output = Literal["model", "modulators", "table"]
Determinism = Literal["bitwise", "bitwise_small", "fp_tolerant", "inherit"]
Key = tuple[int, int]
"""(tensor index, start) of a block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeContext:
    """Everything that a merge depends on besides the elements. Picklable."""

    strategy: str
    params: Mapping[str, Value]
    """As ``Strategy.validate`` returns them."""
    weights: tuple[Fraction, ...]
    """One per contribution, exact."""
    digests: tuple[bytes, ...]
    """Contribution digests, sorted and distinct: the canonical order (PROTOCOL R9)."""
    has_base: bool
    seed: bytes
    """What randomness is derived from (PROTOCOL R17)."""
    specs: tuple[TensorSpec, ...]
    """The tensors to merge, in byte order of their names. Integer tensors are not among them."""
    is_strict: bool = False
    """Refuse where a group would use the stand-in rule: ``merge`` sets it, ``resolve`` never does."""
    artefacts: tuple[Artefact, ...] = ()
    """The chosen ones, valid and of used contributions, sorted by (type, subject, digest)."""
    set_root: bytes = b""
    """Used root over ``digests``: what set-bound artefacts are bound to."""
    base_content: bytes = b""
    """Content id of the base, empty without one."""
    task: int | None = None
    """Write the model of this contribution's task instead of the common one (``output`` modulators)."""

    @property
    def k(self) -> int:
        """Number of contributions."""
        return len(self.digests)

    @property
    def numel(self) -> int:
        """Number of elements of all tensors together."""
        return sum(spec.numel for spec in self.specs)

    def value(self, name: str, tensor_index: int | None = None, contribution: int | None = None) -> Scalar:
        """Return a parameter for a tensor and a contribution, by their positions; None stands for all."""
        value = self.params[name]
        if not isinstance(value, Table):
            return value
        tensor = "" if tensor_index is None else self.specs[tensor_index].name
        return value.at(tensor, "" if contribution is None else self.digests[contribution].hex())

    def number(self, name: str, tensor_index: int | None = None, contribution: int | None = None) -> Fraction:
        """Return a numeric parameter as :meth:`value` does, exact."""
        value = self.value(name, tensor_index, contribution)
        if isinstance(value, Fraction):
            return value
        assert isinstance(value, int), name
        return Fraction(value)

    def weights_in(self, tensor_index: int) -> tuple[Fraction, ...]:
        """Return the weight of each contribution in a tensor: its own times the parameter ``weight``."""
        if self.params.get("weight", 1) == 1:
            return self.weights
        return tuple(w * self.number("weight", tensor_index, i) for i, w in enumerate(self.weights))

    def artefact(self, type_: str, contribution: int | None = None) -> int | None:
        """Return the position of the artefact of a type and subject in ``artefacts``, or None."""
        subject = b"" if contribution is None else self.digests[contribution]
        wanted = type_, subject
        position = bisect_left(self.artefacts, wanted, key=_sought_by)
        is_there = position < len(self.artefacts) and _sought_by(self.artefacts[position]) == wanted
        return position if is_there else None


def _sought_by(artefact: Artefact) -> tuple[str, bytes]:
    return artefact.type, artefact.subject


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tensor of an artefact that blocks must carry."""

    artefact: int
    """Position in ``MergeContext.artefacts``."""
    tensor: str
    is_aligned: bool
    """True: of the shape of the model's tensor, cut like the block. False: always all of it, flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The same range of one tensor from every contribution, decoded."""

    tensor_index: int
    """Position in ``MergeContext.specs``."""
    start: int
    """First flat element: see the top of this module for what it is a multiple of."""
    stop: int
    """One past the last flat element."""
    inputs: Sequence[Float64Array]
    """Per contribution in canonical order, ``(stop - start,)`` float64, finite. Never written to."""
    base: Float64Array | None = None
    """``(stop - start,)`` float64; None exactly if ``uses_base`` says no."""
    artefacts: Sequence[Float64Array] = ()
    """One per entry of ``Strategy.wants``, in its order, flat float64. Never written to."""

    @property
    def key(self) -> Key:
        """What partial results are sorted by."""
        return self.tensor_index, self.start


class Strategy(ABC):
    """A named, versioned resolve function. Instances hold no state."""

    id: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised with any change of output bits; part of the recipe."""
    title: ClassVar[str]
    paper: ClassVar[str]
    """Authors, title, venue, arXiv number."""
    doc: ClassVar[str]
    """One sentence for ``strategy list``."""
    base: ClassVar[BaseUse]
    determinism: ClassVar[Determinism] = "bitwise"
    """bitwise: same bits on every IEEE 754 machine; ``bitwise_small``: up to a size (``determinism_in``)."""
    output: ClassVar[Output] = "model"
    """modulators: a common model and, per contribution, what turns it into the model of that task."""
    artefacts: ClassVar[tuple[ArtefactNeed, ...]] = ()
    """What it needs besides models (STRATEGIES 1.10)."""
    roles: ClassVar[tuple[str, ...]] = ()
    """Roles of the contributions that it works with (``roles.py``); empty: it asks for none."""
    k_min: ClassVar[int] = 1
    k_max: ClassVar[int | None] = None
    formula: ClassVar[str] = ""
    """The method in a few lines of plain text, for ``strategy explain``."""
    is_extra: ClassVar[bool] = False
    """Not one of the 26 of the paper."""
    is_symmetric: ClassVar[bool] = True
    is_random: ClassVar[bool] = False
    allows_negative_weights: ClassVar[bool] = False
    parameters: ClassVar[tuple[Parameter, ...]] = ()

    def validate(self, params: Mapping[str, str]) -> dict[str, Value]:
        """Return all parameters, typed, defaults filled in, from the texts that were given.

        Those of a strategy that a parameter names (``fallback``, ``inner``) are among them, dotted.

        Raises:
            ParameterError: An unknown name or a value outside its range; the message names every problem.
        """
        return delegation.validate(self.id, self.parameters, params)

    def normalise(self, params: Mapping[str, str]) -> dict[str, str]:
        """Return the given parameters in their one canonical spelling, so that equal recipes hash equally.

        Raises:
            ParameterError: As :meth:`validate`.
        """
        return delegation.normalise(self.id, self.parameters, params)

    def uses_base(self, context: MergeContext) -> bool:
        """Tell whether blocks must carry the base."""
        return context.has_base and self.base != "unused"

    def check(self, context: MergeContext) -> None:
        """Refuse what cannot be merged, before a tensor is read. In a group only an empty set can fail here.

        Raises:
            EmptySetError: No contributions.
            BaseMissingError: The strategy works on differences from a base.
            ParameterError: Weights that this strategy cannot use.
        """
        if context.k == 0:
            raise EmptySetError("There is no usable contribution.", hint="Add one, or see `why`.")
        if self.base == "required" and not context.has_base:
            raise BaseMissingError(
                f"Strategy {self.id} merges differences from a base model and no base is given.",
                hint="Name the model that the contributions were fine-tuned from with --base.",
            )
        if len(context.weights) != context.k:
            raise ParameterError(f"{len(context.weights)} weights for {context.k} contributions.")
        if not self.allows_negative_weights and min(context.weights) < 0:
            raise ParameterError(
                f"Strategy {self.id} takes no negative weight, got {float(min(context.weights))}.",
                hint="Use linear or task_arithmetic for signed weights.",
            )
        if not any(context.weights) or (self.divides_by_weights(context) and not sum(context.weights)):
            raise ParameterError("The weights add up to zero.", hint="Give at least one positive weight.")

    def unmet(self, context: MergeContext) -> str | None:
        """Return why this strategy cannot merge these inputs and its stand-in must; None: it can.

        The driver asks after it has chosen artefacts. Offline the answer is an error unless the parameter
        ``fallback`` names a stand-in; in a group the policy must name one (STRATEGIES 1.12).
        """
        if context.k < self.k_min or (self.k_max is not None and context.k > self.k_max):
            most = "" if self.k_max is None else f" and at most {self.k_max}"
            return f"{self.id} merges at least {self.k_min}{most} models, there are {context.k}"
        for need in self.artefacts:
            reason = need.missing_in(context.artefacts, context.digests, context.set_root)
            if reason is not None:
                return f"{self.id}: {reason}"
        return None

    def artefacts_for(self, params: Mapping[str, Any]) -> tuple[ArtefactNeed, ...]:
        """Return what it needs besides models under these parameters, texts or values."""
        return self.artefacts

    def determinism_in(self, context: MergeContext) -> Determinism:
        """Return the class of this very merge, which may depend on sizes and parameters."""
        return self.determinism

    def granularity(self, context: MergeContext, tensor_index: int) -> Granularity:
        """Return what blocks of a tensor are made of, in all passes and the merge."""
        return "elements"

    def wants(self, context: MergeContext, tensor_index: int) -> tuple[Wanted, ...]:
        """Return the artefact tensors that come with every block of a tensor, in all passes and the merge."""
        return ()

    def scratch_bytes(self, context: MergeContext, tensor_index: int) -> int:
        """Return the memory that merging one block takes besides inputs, base and output, in bytes.

        Only asked for granularities other than ``elements``, whose blocks can be large.
        """
        return 8 * context.specs[tensor_index].numel

    def nanoseconds(self, context: MergeContext, tensor_index: int) -> float:
        """Return an estimate of the arithmetic on one tensor on one core, for ``resolve --plan``."""
        return 2.0 * context.specs[tensor_index].numel * (context.k + 1)

    def modulate(self, context: MergeContext, state: Any, block: Block, contribution: int) -> bytes:
        """Return what turns a block of the common model into that of a task: packed, for ``modulators``."""
        raise NotImplementedError(f"{self.id} has no modulators")

    def adapter(self, context: MergeContext, contribution: int) -> tuple[int, dict[str, str]] | None:
        """Return tensors of an artefact that go beside the model of a task unchanged, for ``modulators``.

        Returns:
            None: nothing. Else (position in ``context.artefacts``, {name in the file beside the output:
            tensor of the artefact}).
        """
        return None

    def divides_by_weights(self, context: MergeContext) -> bool:
        """Tell whether the sum of the weights is a divisor."""
        return True

    def pass_count(self, context: MergeContext) -> int:
        """Return the greatest number of statistics passes before the merge."""
        return 0

    def needs(self, context: MergeContext, state: Any, pass_no: int, tensor_index: int) -> bool:
        """Tell whether a pass has to see a tensor. A driver that shows it anyway gets the same result."""
        return True

    def reads_models(self, context: MergeContext, pass_no: int) -> bool:
        """Tell whether a pass looks at models and base; if not, its blocks hold artefacts and no inputs."""
        return True

    def looks_at(
        self,
        context: MergeContext,
        state: Any,
        pass_no: int,
        tensor_index: int,
        span: tuple[int, int],
    ) -> Iterable[tuple[int, int]]:
        """Yield the ranges between two elements of a tensor that a pass has to see, in order.

        Asked only where blocks are elements, with borders of blocks, and answered with such. A driver that
        shows more gets the same result.
        """
        yield span

    def observe(self, context: MergeContext, state: Any, pass_no: int, block: Block) -> Any:
        """Return what a pass needs to know of a block: small and picklable. Pure."""
        return None

    def compact(
        self, context: MergeContext, pass_no: int, partials: list[tuple[Key, Any]]
    ) -> list[tuple[Key, Any]]:
        """Return fewer partial results that stand for these. Any subset, any time, any nesting."""
        return partials

    def end_pass(
        self,
        context: MergeContext,
        state: Any,
        pass_no: int,
        partials: Sequence[tuple[Key, Any]],
    ) -> Any:
        """Return the state after a pass: small and picklable.

        Args:
            partials: What ``observe`` returned for every block that was shown, sorted by key.
        """
        return state

    def linear_form(self, context: MergeContext, state: Any, tensor_index: int) -> Sequence[float] | None:
        """Return coefficients if the merge of every block of a tensor is ``kernels.combine`` with them.

        Then a driver may compute that sum by itself, straight from stored to stored elements. A subclass
        with a ``merge`` of its own has to say here, too, what it does.

        Returns:
            One per contribution; None: ask ``merge``.
        """
        return None

    def dependence(self, context: MergeContext, tensor_index: int) -> Dependence | None:
        """Return what decides an output tensor besides that tensor of the inputs; None: other tensors, too.

        With a dependence, passes may skip a tensor whose result is there already, and everything that the
        state holds of a tensor stands under its index or (index, ...), so that it can be kept with it.
        """
        return None

    @abstractmethod
    def merge(self, context: MergeContext, state: Any, block: Block) -> Float64Array:
        """Return the merged elements of a block, ``(stop - start,)`` float64, in a new array. Pure."""

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return what the manifest should say of how it was decided. JSON-able; always has ``warnings``."""
        return {
            "strategy": self.id,
            "version": self.version,
            "determinism": self.determinism_in(context),
            "profile": context.params.get("profile", "paper"),
            "warnings": self.warnings(context, state),
        }

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Return sentences for the user, in a fixed order."""
        return []


def exact_weights(units: Sequence[int]) -> tuple[Fraction, ...]:
    """Return weights as they travel, integers over 2^32, as exact numbers."""
    return tuple(Fraction(unit, WEIGHT_ONE) for unit in units)
