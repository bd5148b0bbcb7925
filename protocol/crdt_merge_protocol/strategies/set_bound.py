"""What strategies share whose artefact was made for one exact set of models: any change makes it stale."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from .artefacts import Artefact
from .contract import MergeContext, Strategy
from .parameters import Parameter


def artefact_parameter() -> Parameter:
    """Return the parameter that names the artefact to apply (``choosing.ARTEFACT_PARAMETER``)."""
    return Parameter(
        name="artefact",
        type="text",
        default="",
        doc="Contribution digest, hex, of the artefact to apply; else the newest that an administrator "
        "contributed.",
    )


class SetBound(Strategy):
    """A strategy that applies one artefact of the whole set; the first of ``artefacts`` says which type."""

    def position(self, context: MergeContext) -> int | None:
        """Return where the artefact of this very set and base is, or None."""
        for position, artefact in enumerate(context.artefacts):
            is_mine = artefact.type == self.artefacts[0].type and artefact.set_root == context.set_root
            if is_mine and not _is_of_other_base(context, artefact):
                return position
        return None

    def header(self, context: MergeContext) -> Mapping[str, Any]:
        """Return the header of that artefact, which ``unmet`` has found to be there."""
        position = self.position(context)
        assert position is not None, f"{self.id} ran without its artefact"
        return context.artefacts[position].header

    def unmet(self, context: MergeContext) -> str | None:
        """Return why there is no artefact of this set, of this base, that fits."""
        reason = super().unmet(context)
        if reason is not None:
            return reason
        position = self.position(context)
        if position is None:
            return f"{self.id}: the {self.artefacts[0].type} was made for another base"
        problem = self.misfit(context, context.artefacts[position])
        return None if problem is None else f"{self.id}: {problem}"

    @abstractmethod
    def misfit(self, context: MergeContext, artefact: Artefact) -> str | None:
        """Return why an artefact of the right set cannot be applied to it, or None."""

    def decisions(self, context: MergeContext, state: Any) -> dict[str, Any]:
        """Return which artefact was applied as well."""
        position = self.position(context)
        used = None if position is None else context.artefacts[position].digest.hex()
        return {**super().decisions(context, state), "artefact": used}


def _is_of_other_base(context: MergeContext, artefact: Artefact) -> bool:
    """Tell whether both the artefact and the merge name a base, and not the same."""
    return bool(artefact.base and context.base_content and artefact.base != context.base_content)
