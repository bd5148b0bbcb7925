"""What a contribution is for: artefacts of type ``role``, and strategies that work with certain roles only.

Offline, contributions without the role are refused. In a group nobody can stop the others by leaving a role
out, or by having another: such contributions are set aside and the manifest says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from crdt_merge_protocol.errors import RoleMissingError
from crdt_merge_protocol.resolve_key import used_root

from .artefacts import ArtefactNeed
from .contract import Block, MergeContext, Strategy

ROLE: Final = "role"
_NAMED_MAX: Final = 3


def role_of(context: MergeContext, contribution: int) -> str | None:
    """Return the role of a contribution, or None if nobody gave it one."""
    return _field(context, contribution, "role")


def attribute_of(context: MergeContext, contribution: int) -> str | None:
    """Return what the role is about, in its author's words, or None."""
    return _field(context, contribution, "attribute")


def _field(context: MergeContext, contribution: int, name: str) -> str | None:
    position = context.artefact(ROLE, contribution)
    value = None if position is None else context.artefacts[position].header.get(name)
    return value if isinstance(value, str) else None


class ByRole(Strategy):
    """A strategy that merges the contributions of its ``roles`` and sets the others aside."""

    artefacts = (ArtefactNeed(ROLE, is_optional=True),)

    def taken(self, context: MergeContext) -> list[int]:
        """Return the contributions that take part, by position."""
        return [i for i in range(context.k) if role_of(context, i) in self.roles]

    def check(self, context: MergeContext) -> None:
        """Refuse as every strategy, and offline to set contributions aside.

        Raises:
            RoleMissingError: Some, but not all, have the role.
        """
        super().check(context)
        taken = self.taken(context)
        if context.is_strict and 0 < len(taken) < context.k:
            rest = _shorten([context.digests[i] for i in range(context.k) if i not in taken])
            raise RoleMissingError(
                f"Strategy {self.id} takes contributions in the role {' or '.join(self.roles)}; not {rest}.",
                hint="Leave them out, or give them the role with an artefact of type role.",
            )

    def unmet(self, context: MergeContext) -> str | None:
        """Return why nothing can be merged: nobody has the role."""
        reason = super().unmet(context)
        if reason is not None or self.taken(context):
            return reason
        return f"{self.id}: no contribution has the role {' or '.join(self.roles)}"

    def warnings(self, context: MergeContext, state: Any) -> list[str]:
        """Say who was set aside."""
        aside = [d for i, d in enumerate(context.digests) if i not in set(self.taken(context))]
        if not aside:
            return super().warnings(context, state)
        told = f"{_shorten(aside)}: not in the role {' or '.join(self.roles)}, set aside."
        return [told, *super().warnings(context, state)]


def narrowed(context: MergeContext, taken: Sequence[int]) -> MergeContext:
    """Return the context with some contributions only."""
    if len(taken) == context.k:
        return context
    digests = tuple(context.digests[i] for i in taken)
    return replace(
        context,
        digests=digests,
        weights=tuple(context.weights[i] for i in taken),
        set_root=used_root(digests),
        task=taken.index(context.task) if context.task in taken else None,
    )


def narrowed_block(block: Block, taken: Sequence[int]) -> Block:
    """Return the block with the inputs of some contributions only."""
    return replace(block, inputs=[block.inputs[i] for i in taken])


def _shorten(digests: Sequence[bytes]) -> str:
    more = f" and {len(digests) - _NAMED_MAX} more" if len(digests) > _NAMED_MAX else ""
    return f"contribution {', '.join(digest.hex()[:12] for digest in digests[:_NAMED_MAX])}{more}"
