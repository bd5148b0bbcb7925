"""What a merge must come to, by a few lines of numpy that share nothing with the strategies of the node.

Only for what the published formulas define without choices: the mean, and TIES with its default parameters
(Wortsman et al., arXiv:2203.05482; Yadav et al., arXiv:2306.01708 and the authors' code). Sums are in float64
and in the order of the contribution digests, as the protocol says: a mean of six float32 numbers often lies
exactly between two others, and then the last bit of a float64 decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
DENSITY: Final = 0.2
"""Of TIES, by default."""


def merge(
    strategy: str,
    inputs: Sequence[npt.NDArray[np.float32]],
    weights: Sequence[int],
    base: npt.NDArray[np.float32],
    params: Mapping[str, str],
) -> Array | None:
    """Return the merge of flat models, float64; None if there is no oracle for this strategy.

    Args:
        inputs: The distinct contributions, at least one, in the order of their digests.
        weights: One for each; only their ratios count.
        base: Where the models come from, for strategies that ask.
        params: Of the policy. Any makes TIES one that is not known here.
    """
    if strategy == "weight_average":
        return _mean(inputs, weights)
    if strategy == "ties" and not params and len(set(weights)) == 1:
        return _ties(inputs, base)
    return None


def _mean(inputs: Sequence[npt.NDArray[np.float32]], weights: Sequence[int]) -> Array:
    total = np.zeros(inputs[0].shape, np.float64)
    for values, weight in zip(inputs, weights, strict=True):
        total = total + float(Fraction(weight, sum(weights))) * values.astype(np.float64)
    return total


def _ties(inputs: Sequence[npt.NDArray[np.float32]], base: npt.NDArray[np.float32]) -> Array:
    changes = np.stack(inputs).astype(np.float64) - base
    kept = int(DENSITY * changes.shape[1]) + 1  # The authors' kthvalue keeps one more than it says.
    sizes = np.abs(changes)
    least = np.sort(sizes, axis=1)[:, max(0, changes.shape[1] - kept)][:, None]
    changes[sizes < least] = 0.0
    signs = np.sign(changes.sum(axis=0))
    majority = np.sign(signs.sum()) or 1.0
    signs[signs == 0] = majority
    agrees = (np.sign(changes) == signs) & (changes != 0)
    count = np.maximum(agrees.sum(axis=0), 1)
    return np.asarray(base + np.where(agrees, changes, 0.0).sum(axis=0) / count, np.float64)


def mean_distance(models: Sequence[Array], counts: Sequence[int]) -> float:
    """Return the mean L2 distance over all pairs of nodes, of whom ``counts[i]`` have model ``i``."""
    nodes = sum(counts)
    if nodes < 2:
        return 0.0
    total = sum(
        counts[i] * counts[j] * float(np.linalg.norm(models[i] - models[j]))
        for i in range(len(models))
        for j in range(i)
    )
    return total / (nodes * (nodes - 1) / 2)
