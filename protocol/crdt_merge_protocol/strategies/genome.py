"""Evolved merges: the search ran elsewhere, its result is applied here.

A search needs a fitness, hence models that answer questions; it is no merge. What it finds is a *genome*: an
inner strategy and its parameters per layer group and contribution, bound to the set it was evolved for.
Whether a genome is any good cannot be verified here; a group that uses one trusts whoever evolved it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from crdt_merge_protocol.errors import ArtefactMissingError, ParameterError, ResolveError

from . import delegation
from .artefacts import Artefact, ArtefactNeed
from .contract import BaseUse, MergeContext, Strategy
from .inner import Delegating
from .parameters import Value
from .set_bound import SetBound, artefact_parameter

GENOME: Final = "genome"
_REMEMBERED_MAX: Final = 8
_SEPARATORS: Final = frozenset(";#=")


@dataclass(frozen=True, slots=True)
class Decoded:
    """A genome as the inner strategy understands it."""

    header: Mapping[str, Any]
    strategy: Strategy
    params: Mapping[str, Value]


_decoded: Final[dict[bytes, Decoded]] = {}
"""The most recent by digest: decoding a large one for every block would cost more than the merge."""


class GenomeMerge(Delegating, SetBound):
    """Runs the inner strategy of a genome with its parameters."""

    base: ClassVar[BaseUse] = "optional"
    allows_negative_weights = True
    artefacts = (ArtefactNeed(GENOME),)
    parameters = (artefact_parameter(), delegation.fallback_parameter())
    formula = "out = inner strategy of the genome, with its parameters per layer group and contribution"

    def misfit(self, context: MergeContext, artefact: Artefact) -> str | None:
        """Return why a genome cannot be run on these inputs."""
        try:
            strategy, within = self._enter(context, artefact)
            strategy.check(within)
        except ResolveError as error:
            return f"the {GENOME} cannot be run: {error.message.removesuffix('.')}"
        return strategy.unmet(within)

    def inner(self, context: MergeContext) -> tuple[Strategy, MergeContext]:
        """Return what the genome names.

        Raises:
            ArtefactMissingError: There is no genome of this set; ``unmet`` says so before.
        """
        position = self.position(context)
        if position is None:
            raise ArtefactMissingError(f"{self.id}: there is no {GENOME} of this set of models.")
        return self._enter(context, context.artefacts[position])

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return how the genome was found, as its author says, as well."""
        return {**super().decisions(context, state), "search": dict(self.header(context).get("search", {}))}

    def _enter(self, context: MergeContext, artefact: Artefact) -> tuple[Strategy, MergeContext]:
        found = _decoded.get(artefact.digest)
        if found is None or found.header != artefact.header:
            found = decode(artefact.header, context.digests)
            while len(_decoded) >= _REMEMBERED_MAX:
                _decoded.pop(next(iter(_decoded)), None)
            _decoded[artefact.digest] = found
        return found.strategy, replace(context, strategy=found.strategy.id, params=found.params)


def decode(header: Mapping[str, Any], digests: Sequence[bytes]) -> Decoded:
    """Return the inner strategy of a genome and its parameters, layer groups as tables.

    Args:
        header: Of the genome.
        digests: Of the contributions, in the order of the genome's lists.

    Raises:
        ParameterError: An unknown strategy, one that needs more than models, or parameters that it refuses.
    """
    from .registry import get, plain_names  # Late: this module's strategies are in the registry.

    strategy = get(str(header["inner"]))
    if strategy.id not in plain_names() or strategy.output != "model" or not strategy.is_symmetric:
        raise ParameterError(
            f"{strategy.id} cannot be an inner strategy.", hint="Name one that needs models alone."
        )
    cells: dict[str, list[str]] = {}
    for group in header["layer_groups"]:
        for name, value in group["values"].items():
            texts = value if isinstance(value, list) else [value]
            owners = [f"#{digest.hex()}" for digest in digests] if isinstance(value, list) else [""]
            if len(owners) != len(texts):
                raise ParameterError(f"{name} has {len(texts)} values for {len(owners)} contributions.")
            for owner, text in zip(owners, texts, strict=True):
                _refuse_separators(group["match"], text)
                cells.setdefault(name, []).append(f"{group['match']}{owner}={text}")
    params = dict(header["params"])
    for name, rows in cells.items():
        params[name] = ";".join([*rows, params[name]] if name in params else rows)
    return Decoded(header, strategy, strategy.validate(params))


def _refuse_separators(*texts: str) -> None:
    for text in texts:
        if not _SEPARATORS.isdisjoint(text):
            raise ParameterError(f"{text[:64]!a} holds one of {' '.join(sorted(_SEPARATORS))}.")


class EvolutionaryMerge(GenomeMerge):
    """The merge that an evolution strategy found, with a benchmark as its fitness."""

    id = "evolutionary_merge"
    title = "evolutionary merging"
    paper = "Akiba et al., Evolutionary Optimization of Model Merging Recipes, 2025, arXiv:2403.13187"
    doc = (
        "Applies merge parameters per layer group that a search (CMA-ES) found elsewhere. Without a fitness "
        "there is nothing to evolve, so there is no version without data."
    )


class GeneticMerge(GenomeMerge):
    """The merge that a genetic algorithm found; the same applier."""

    id = "genetic_merge"
    title = "genetic merging"
    paper = "Minut et al., Mergenetic, ACL 2025 demonstrations, arXiv:2505.11427"
    doc = (
        "Applies merge parameters per layer group that a genetic algorithm found elsewhere, exactly as "
        "evolutionary_merge does. There is no version without data."
    )


GENOME_STRATEGIES: Final = (EvolutionaryMerge(), GeneticMerge())
