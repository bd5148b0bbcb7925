"""Counting, trimming and electing as loops: the operations of numpy, in its order."""

# ruff: noqa: PLR0917 - compiled functions take their arguments by position.
from __future__ import annotations

from typing import Any, Final

from .compiled_emitted import (
    CHUNK,
    Array,
    bits,
    compiled,
    doubles,
    entry,
    from_bits,
    integers,
    load_bf16,
    load_f32,
    load_f64,
    load_flag,
)
from .compiled_sums import AS_BF16, AS_F16, AS_F32, HAS_HALF

MEAN_COUNTED, MEAN_WEIGHTED, SUM, MAX = 0, 1, 2, 3
WIDTH: Final = 8 * CHUNK
"""Bytes of a chunk of float64."""
ALL: Final = 63
ABSOLUTE: Final = 0x7FFFFFFFFFFFFFFF

if HAS_HALF:
    from .compiled_emitted import load_f16
else:
    load_f16 = load_bf16  # Nobody asks for it: see ``compiled.py``.


def _make_patterns(load: Any) -> Any:
    """Return the loop that writes the bits of the magnitudes of one chunk's differences."""

    @compiled
    def patterns_of(row: int, base: int, mask: int, scale: float, start: int, n: int, out: Array) -> None:
        if base == 0:
            for i in range(n):
                out[i] = bits(load(row, start + i)) & ABSOLUTE
        elif mask == 0:
            for i in range(n):
                value = load(row, start + i) - load_f64(base, start + i)
                out[i] = bits(value * scale) & ABSOLUTE
        else:
            for i in range(n):
                value = load(row, start + i) - load_f64(base, start + i)
                out[i] = bits(value * load_flag(mask, start + i) * scale) & ABSOLUTE

    return patterns_of


_patterns_f64, _patterns_f32 = _make_patterns(load_f64), _make_patterns(load_f32)
_patterns_bf16, _patterns_f16 = _make_patterns(load_bf16), _make_patterns(load_f16)


@compiled
def _patterns(
    kind: int, row: int, base: int, mask: int, scale: float, start: int, n: int, out: Array
) -> None:
    if kind == AS_F32:
        _patterns_f32(row, base, mask, scale, start, n, out)
    elif kind == AS_BF16:
        _patterns_bf16(row, base, mask, scale, start, n, out)
    elif kind == AS_F16:
        _patterns_f16(row, base, mask, scale, start, n, out)
    else:
        _patterns_f64(row, base, mask, scale, start, n, out)


@compiled
def _narrow(patterns: Array, prefix: int, above: int, n: int) -> int:
    """Move those whose bits from ``above`` on are ``prefix`` to the front; return how many there are."""
    found = 0
    for i in range(n):
        pattern = patterns[i]
        patterns[found] = pattern
        found += 1 if (pattern >> above) == prefix else 0
    return found


@entry("iiiidiiiiiiiii")
def count(
    row: int,
    kind: int,
    base: int,
    mask: int,
    scale: float,
    size: int,
    prefix: int,
    above: int,
    shift: int,
    histogram: int,
    bins: int,
    gathered: int,
    room: int,
    scratch: int,
) -> int:
    """Count, by digit, the magnitudes of differences whose bits from ``above`` on are ``prefix``.

    ``above`` 63: all are candidates. The first of them are gathered as well. Returns how many there are.
    """
    patterns = integers(scratch, CHUNK)
    counts, first = integers(histogram, bins), integers(gathered, room)
    digit_mask = bins - 1
    found = 0
    for start in range(0, size, CHUNK):
        candidates = min(CHUNK, size - start)
        _patterns(kind, row, base, mask, scale, start, candidates, patterns)
        if above != ALL:
            candidates = _narrow(patterns, prefix, above, candidates)
        for i in range(candidates):
            counts[(patterns[i] >> shift) & digit_mask] += 1
        for i in range(min(candidates, room - found)):
            first[found + i] = patterns[i]
        found += candidates
    return found


def _make_ballot(load: Any) -> Any:
    """Return the loop that makes one voter's trimmed differences of a chunk and adds up the votes."""

    @compiled
    def ballot(
        row: int,
        base: int,
        mask: int,
        scale: float,
        threshold: float,
        start: int,
        n: int,
        values: Array,
        is_first: bool,
        total: Array,
    ) -> None:
        if mask != 0:
            for i in range(n):
                value = load(row, start + i) - load_f64(base, start + i)
                value = value * load_flag(mask, start + i) * scale
                value *= 1.0 if abs(value) >= threshold else 0.0
                values[i] = value
                total[i] = value if is_first else total[i] + value
        elif is_first:
            for i in range(n):
                value = (load(row, start + i) - load_f64(base, start + i)) * scale
                value *= 1.0 if abs(value) >= threshold else 0.0
                values[i] = value
                total[i] = value
        else:
            for i in range(n):
                value = (load(row, start + i) - load_f64(base, start + i)) * scale
                value *= 1.0 if abs(value) >= threshold else 0.0
                values[i] = value
                total[i] += value

    return ballot


_ballot_f64, _ballot_f32, _ballot_bf16 = map(_make_ballot, (load_f64, load_f32, load_bf16))
_ballot_f16 = _make_ballot(load_f16)


@compiled
def _ballot(
    kind: int,
    row: int,
    base: int,
    mask: int,
    scale: float,
    threshold: float,
    start: int,
    n: int,
    values: Array,
    is_first: bool,
    total: Array,
) -> None:
    if kind == AS_F32:
        _ballot_f32(row, base, mask, scale, threshold, start, n, values, is_first, total)
    elif kind == AS_BF16:
        _ballot_bf16(row, base, mask, scale, threshold, start, n, values, is_first, total)
    elif kind == AS_F16:
        _ballot_f16(row, base, mask, scale, threshold, start, n, values, is_first, total)
    else:
        _ballot_f64(row, base, mask, scale, threshold, start, n, values, is_first, total)


@compiled
def _above(threshold: float) -> Any:
    """Return the least number above a threshold that is not negative."""
    return from_bits(bits(threshold) + 1)


@compiled
def _revote(values: Array, weight: float, by_count: bool, is_first: bool, total: Array, n: int) -> None:
    """Weigh the values, and vote with them or with their signs."""
    for i in range(n):
        values[i] *= weight
    for i in range(n):
        vote = values[i]
        if by_count:
            vote = 1.0 if vote > 0 else (-1.0 if vote < 0 else 0.0)
        total[i] = vote if is_first else total[i] + vote


@compiled
def _elected(total: Array, majority: float, n: int) -> None:
    """Replace the votes by the sign that they elect."""
    if majority > 0:
        for i in range(n):
            total[i] = 1.0 if total[i] >= 0 else -1.0
    else:
        for i in range(n):
            total[i] = 1.0 if total[i] > 0 else -1.0


@compiled
def _agree(
    values: Array, sign: Array, weight: float, factor: float, n: int, out: Array, shares: Array
) -> None:
    """Add one voter's values, where they have the elected sign, to ``out`` and its weight to ``shares``."""
    for i in range(n):
        agrees = 1.0 if values[i] * sign[i] > 0 else 0.0
        shares[i] += agrees * weight
        out[i] += values[i] * agrees * factor


@compiled
def _agree_alike(values: Array, others: Array, sign: Array, n: int, out: Array, shares: Array) -> None:
    """Do so for two voters whose weights are one."""
    for i in range(n):
        one = 1.0 if values[i] * sign[i] > 0 else 0.0
        other = 1.0 if others[i] * sign[i] > 0 else 0.0
        shares[i] = (shares[i] + one) + other
        out[i] = (out[i] + values[i] * one) + others[i] * other


@compiled
def _outdo(values: Array, sign: Array, n: int, out: Array) -> None:
    """Replace by one voter's values, where they have the elected sign, what is smaller."""
    for i in range(n):
        term = values[i] * (1.0 if values[i] * sign[i] > 0 else 0.0)
        out[i] = term if abs(term) > abs(out[i]) else out[i]


@compiled
def _merge_agreeing(
    place: int, weights: Array, is_weighted: int, merge: int, sign: Array, n: int, out: Array, shares: Array
) -> None:
    """Write the merged values, of which a voter's chunk is at every CHUNK float64 from ``place`` on."""
    k = weights.size
    for i in range(n):
        out[i] = 0.0
        shares[i] = 0.0
    first = k - k % 2 if merge == MEAN_COUNTED else 0
    for v in range(0, first, 2):
        mine, others = doubles(place + WIDTH * v, CHUNK), doubles(place + WIDTH * (v + 1), CHUNK)
        _agree_alike(mine, others, sign, n, out, shares)
    for v in range(first, k):
        mine = doubles(place + WIDTH * v, CHUNK)
        if merge == MAX:
            _outdo(mine, sign, n, out)
        else:
            weight = 1.0 if merge == MEAN_COUNTED else weights[v]
            _agree(mine, sign, weight, 1.0 if is_weighted else weights[v], n, out, shares)
    if merge in (MEAN_COUNTED, MEAN_WEIGHTED):
        for i in range(n):
            out[i] /= shares[i] + (1.0 if shares[i] == 0 else 0.0)


@compiled
def _ballots(
    kind: int,
    rows: Array,
    base: int,
    masks: Array,
    scales: Array,
    thresholds: Array,
    beyond: Array,
    start: int,
    n: int,
    place: int,
    total: Array,
) -> None:
    """Write what voters' chunks are after dropping and trimming, and the sums of their votes."""
    for v in range(rows.size):
        mine, is_first = doubles(place + WIDTH * v, CHUNK), v == 0
        row, mask, scale, limit = rows[v], masks[v], scales[v], thresholds[v]
        # Up to ``cut`` stays what equals the threshold, behind it what is above.
        cut = min(max(beyond[v] - start, 0), n) if limit >= 0 else n
        _ballot(kind, row, base, mask, scale, limit, start, cut, mine, is_first, total)
        if cut < n:
            limit = _above(limit)
            behind, votes = mine[cut:], total[cut:]
            _ballot(kind, row, base, mask, scale, limit, start + cut, n - cut, behind, is_first, votes)


@entry("iiiiiiiiiiiiddiiii")
def elect(
    rows: int,
    k: int,
    kind: int,
    base: int,
    masks: int,
    scales: int,
    thresholds: int,
    beyond: int,
    weights: int,
    is_weighted: int,
    by_count: int,
    merge: int,
    majority: float,
    scale: float,
    is_counting: int,
    out: int,
    size: int,
    scratch: int,
) -> int:
    """Trim, elect signs and merge what agrees, for one block; or only count the elected signs.

    Args:
        rows: Where the addresses of the voters' elements are.
        k: Number of voters.
        kind: Of their elements.
        base: Address of the base, float64.
        masks: Where the addresses are of what dropping leaves, one byte per element; 0: all.
        scales: Where is what differences are multiplied by, float64.
        thresholds: Where the K-th magnitudes are, float64; below zero: nothing is trimmed.
        beyond: Where is, per voter, from which element on what equals the threshold goes too.
        weights: Where they are, float64, positive.
        is_weighted: Weights count in the election.
        by_count: One vote each, instead of the values.
        merge: How what agrees is merged.
        majority: The sign where votes cancel out.
        scale: Of the merged difference.
        is_counting: Only count.
        out: Address of ``size`` float64.
        size: Elements.
        scratch: Room for (k + 2) * CHUNK float64.

    Returns:
        How many more elements were elected positive than negative.
    """
    addresses, dropped, lasts = integers(rows, k), integers(masks, k), integers(beyond, k)
    factors, limits, shares_of = doubles(scales, k), doubles(thresholds, k), doubles(weights, k)
    total, shares, place = doubles(scratch, CHUNK), doubles(scratch + WIDTH, CHUNK), scratch + 2 * WIDTH
    balance = 0
    for start in range(0, size, CHUNK):
        n = min(CHUNK, size - start)
        _ballots(kind, addresses, base, dropped, factors, limits, lasts, start, n, place, total)
        if by_count or is_weighted:
            for v in range(k):
                weight = shares_of[v] if is_weighted else 1.0
                _revote(doubles(place + WIDTH * v, CHUNK), weight, by_count != 0, v == 0, total, n)
        if is_counting:
            for i in range(n):
                balance += (1 if total[i] > 0 else 0) - (1 if total[i] < 0 else 0)
            continue
        _elected(total, majority, n)
        merged = doubles(out + 8 * start, n)
        _merge_agreeing(place, shares_of, is_weighted, merge, total, n, merged, shares)
        for i in range(n):
            merged[i] = merged[i] * scale + load_f64(base, start + i)
    return balance
