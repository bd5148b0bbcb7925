"""What the replicated state costs a resolve of a hundred contributions (TARGETS B9).

Everything that happens because contributions are a replicated set and not a list of files: the view as it is
after the last operation, what of it is used and in which order, the used root, the resolve key and the seed.
Tensors are not touched.
"""

from __future__ import annotations

from collections.abc import Iterator

from crdt_merge_node.contents import GroupContents, Item
from crdt_merge_protocol.resolve_key import seed_of

from tests.support.authors import Author, make_genesis

from .measure import Options, Row, best_s, ms, times

CONTRIBUTIONS = 100
ROUNDS = 200
"""The best of so many: one takes less than a turn of the scheduler."""


def measure(_options: Options) -> Iterator[Row]:
    """Yield one row."""
    author = Author(make_genesis(), 1)
    for number in range(CONTRIBUTIONS):
        author.add(f"content {number}", slot=f"s{number}")
    digests = [shown.digest for shown in author.state.view.visible]
    seconds = best_s(lambda: _names(author), ROUNDS)
    floor_s = best_s(lambda: sorted(set(digests)), ROUNDS)
    yield Row(
        what=f"the replicated state's part of a resolve, k = {CONTRIBUTIONS}",
        measured=ms(seconds),
        against=f"sorting as many digests {ms(floor_s)}",
        ratio=times(seconds / floor_s),
        target="< 0.5 ms (B9)",
    )


def _names(author: Author) -> tuple[bytes, bytes, bytes]:
    """Return used root, resolve key and seed, as a resolve works them out."""
    view = author.state.view
    contents = GroupContents(view)
    for shown in view.visible:
        contents.items[shown.tag] = Item(shown, is_pending=False, is_judged=True)
    root, key = contents.keys()
    return root, key, seed_of(item.visible.digest for item in contents.used)
