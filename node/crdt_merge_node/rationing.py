"""How much a member may have others fetch that nobody here can use (SCENARIOS T19, PROTOCOL R19, R22).

A model must have the group's schema, and an artefact the shapes that follow from it; so what either may take
is known before its tensors are fetched. A contribution of a type that this release does not know can be of
any size, and there can be any number of them. They are fetched all the same, for newer releases to find them:

* Of every author, as many as together are no larger than one model of the group, and at most 16 of them.
* What is here whole counts first, then what was being fetched before, then the oldest. So nothing that is
  published later takes the place of what there is, and nothing published earlier that comes to light later.
* What is over that waits, for its author to remove another. It is part of the group as ever: it is relayed,
  counted in the root, and has no effect on any output, here or elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from crdt_merge_protocol.limits import MIB

from .contents import GroupContents, Item

UNKNOWN_PER_AUTHOR_MAX: Final = 16
"""Each has a manifest, whose size is not known before it is here; it has a cap of its own."""
ROOM_BYTES_MIN: Final = MIB
"""Where models are smaller than that."""


def ration(contents: GroupContents, before: Mapping[bytes, Item]) -> None:
    """Withhold, of types that are not known here, what is more than its author has room for.

    Args:
        contents: The comparison so far; what is withheld misses nothing afterwards, and says why.
        before: The items of the comparison before it, by tag.
    """
    if contents.schema is None:
        return
    by_author: dict[bytes, list[tuple[tuple[bool, bool, int, bytes], Item]]] = {}
    for tag, item in contents.items.items():
        if item.is_model or item.is_artefact or (item.problem and not item.is_withheld):
            continue
        was_granted = tag in before and not before[tag].is_withheld
        rank = (not item.is_judged, not was_granted, item.visible.depth, tag)
        by_author.setdefault(item.visible.author, []).append((rank, item))
    if not by_author:
        return
    room = max(sum(spec.nbytes for spec in contents.schema.specs), ROOM_BYTES_MIN)
    for ranked in by_author.values():
        _share(room, [item for _, item in sorted(ranked, key=lambda pair: pair[0])])


def _share(room: int, items: list[Item]) -> None:
    """Give one author's items room in this order, and withhold what finds none."""
    granted, left = 0, room
    for item in items:
        if item.is_judged or (granted < UNKNOWN_PER_AUTHOR_MAX and item.nbytes <= left):
            granted += 1
            left -= item.nbytes
        else:
            item.is_withheld = True
            item.problem = (
                f'its type "{item.visible.type}" is not known to this release, and its author has as much '
                f"of such types as is fetched: {UNKNOWN_PER_AUTHOR_MAX} contributions, {room} bytes"
            )
            item.missing.clear()
