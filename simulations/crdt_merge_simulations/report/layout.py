"""Where the nodes of a topology are drawn: on a circle, a circle for each site, or where springs pull them.

The force layout is that of Fruchterman and Reingold 1991 (doi:10.1002/spe.4380211102): neighbours attract,
all repel, and a falling temperature bounds each step. It starts from a circle, so it draws no random number
and equal topologies look equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

STEPS: Final = 120
FORCE_NODES_MAX: Final = 400
"""Above, a step over all pairs takes too long, and nobody sees single nodes any more."""
DENSE_SHARE: Final = 0.5
"""Share of all pairs that are linked from which on springs show nothing: a ball of wool."""
Positions = npt.NDArray[np.float64]


def positions(count: int, links: Sequence[tuple[int, int]], sites: Sequence[int] = ()) -> Positions:
    """Return the place of each node, ``(count, 2)`` float64 within the unit square."""
    if len(set(sites)) > 1:
        return _circles(count, sites)
    circle = _circle(count, sites)
    pairs = count * (count - 1) / 2
    if count < 3 or count > FORCE_NODES_MAX or not links or len(links) > DENSE_SHARE * pairs:
        return circle
    return _into_unit_square(_springs(circle, links))


def _circle(count: int, sites: Sequence[int]) -> Positions:
    """Return places on a circle, nodes of one site side by side."""
    order = sorted(range(count), key=lambda node: (sites[node] if node < len(sites) else 0, node))
    places = np.empty((count, 2))
    angles = np.arange(count) * (2 * np.pi / max(count, 1)) - np.pi / 2
    places[order] = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 0.5 + 0.5
    return places


def _circles(count: int, sites: Sequence[int]) -> Positions:
    """Return places on a circle of circles, one for each site."""
    names = sorted(set(sites))
    # As large as neighbours on the great circle leave room for.
    share = np.sin(np.pi / len(names))
    radius = 0.5 * share / (1 + share)
    centres = 0.5 + (_circle(len(names), ()) - 0.5) * (1 - 2 * radius)
    places = np.empty((count, 2))
    for centre, name in zip(centres, names, strict=True):
        members = [node for node in range(count) if sites[node] == name]
        places[members] = centre + (_circle(len(members), ()) - 0.5) * 2 * radius * 0.85
    return places


def _springs(places: Positions, links: Sequence[tuple[int, int]]) -> Positions:
    places = places.copy()
    count = len(places)
    ends = np.asarray(links, dtype=np.intp)
    length = np.sqrt(1.0 / count)
    for step in range(STEPS):
        apart = places[:, None, :] - places[None, :, :]
        distance = np.maximum(np.sqrt((apart**2).sum(axis=2)), 1e-3)
        push = (apart * (length**2 / distance**2)[:, :, None]).sum(axis=1)
        along = places[ends[:, 0]] - places[ends[:, 1]]
        pull = along * (np.maximum(np.sqrt((along**2).sum(axis=1)), 1e-3) / length)[:, None]
        np.add.at(push, ends[:, 0], -pull)
        np.add.at(push, ends[:, 1], pull)
        strength = np.maximum(np.sqrt((push**2).sum(axis=1)), 1e-9)
        temperature = 0.1 * (1 - step / STEPS)
        places += push / strength[:, None] * np.minimum(strength, temperature)[:, None]
    return places


def _into_unit_square(places: Positions) -> Positions:
    low, high = places.min(axis=0), places.max(axis=0)
    scaled: Positions = (places - low) / max(float((high - low).max()), 1e-9)
    centred: Positions = scaled + (1 - scaled.max(axis=0)) / 2
    return centred
