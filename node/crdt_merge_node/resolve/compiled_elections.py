"""Trimming and electing as loops: the operations of numpy, in its order."""

# ruff: noqa: C901, PLR0917 - compiled functions take their arguments by position, and those that make
# them for an element type hold all of them.
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from .compiled_emitted import (
    CHUNK,
    Array,
    bits,
    compiled,
    doubles,
    entry_for,
    from_bits,
    integers,
    load_f64,
    load_flag,
)
from .compiled_lanes import (
    either,
    lanes_f64,
    lanes_flag,
    magnitudes,
    numbers_of,
    ones_where,
    put,
    spread,
    spread_long,
    sum_of_longs,
)
from .compiled_sums import DIFFERING, LANES, LOADS

MEAN_COUNTED, MEAN_WEIGHTED, SUM, MAX = 0, 1, 2, 3
WIDTH: Final = 8 * CHUNK
"""Bytes of a chunk of float64."""
BELOW_ZERO: Final = -0x7FFFFFFFFFFFFFFF
"""Bits of the greatest number below zero."""


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
    for i in range(n):
        out[i] = 0.0
        shares[i] = 0.0
    for v in range(weights.size):
        mine = doubles(place + WIDTH * v, CHUNK)
        if merge == MAX:
            _outdo(mine, sign, n, out)
        else:
            weight = 1.0 if merge == MEAN_COUNTED else weights[v]
            _agree(mine, sign, weight, 1.0 if is_weighted else weights[v], n, out, shares)
    if merge in (MEAN_COUNTED, MEAN_WEIGHTED):
        for i in range(n):
            out[i] /= shares[i] + (1.0 if shares[i] == 0 else 0.0)


def _make_lanes_election(lanes: Any) -> tuple[Any, Any]:
    """Return the loops that merge and count eight elements at a time, for votes by values."""

    @compiled
    def vote(
        rows: Array, base: int, masks: Array, scales: Array, limits: Array, weights: Array,
        is_weighted: int, i: int, place: int,
    ) -> Any:  # fmt: skip
        """Write eight trimmed differences of each voter and return the sums of the votes."""
        origin, total = lanes_f64(base, i), spread(0.0)
        for v in range(rows.size):
            value = lanes(rows[v], i) - origin
            if masks[v] != 0:
                value = value * lanes_flag(masks[v], i)
            value = value * spread(scales[v])
            value = value * ones_where(magnitudes(value) >= spread(limits[v]))
            if is_weighted:
                value = value * spread(weights[v])
            put(place, 8 * v, value)
            total = total + value
        return total

    @compiled
    def merge_lanes(
        rows: Array, base: int, masks: Array, scales: Array, limits: Array, weights: Array,
        is_weighted: int, merge: int, majority: float, scale: float, start: int, n: int, out: int, place: int,
    ) -> None:  # fmt: skip
        # At least zero is above the greatest number below zero.
        bar = spread(from_bits(BELOW_ZERO) if majority > 0 else 0.0)
        zero, one, minus = spread(0.0), spread(1.0), spread(-1.0)
        for i in range(start, start + n, 8):
            total = vote(rows, base, masks, scales, limits, weights, is_weighted, i, place)
            sign = either(total > bar, one, minus)
            merged, shares = zero, zero
            for v in range(rows.size):
                value = lanes_f64(place, 8 * v)
                agrees = ones_where(value * sign > zero)
                value = value * agrees
                if merge != MEAN_COUNTED:
                    agrees = agrees * spread(weights[v])
                    if not is_weighted:
                        value = value * spread(weights[v])
                shares = shares + agrees
                merged = merged + value
            if merge != SUM:
                merged = merged / (shares + ones_where(shares == zero))
            put(out, i, merged * spread(scale) + lanes_f64(base, i))

    @compiled
    def balance_lanes(
        rows: Array, base: int, masks: Array, scales: Array, limits: Array, weights: Array,
        is_weighted: int, start: int, n: int, place: int,
    ) -> Any:  # fmt: skip
        zero, balance = spread(0.0), spread_long(0)
        for i in range(start, start + n, 8):
            total = vote(rows, base, masks, scales, limits, weights, is_weighted, i, place)
            balance = balance + numbers_of(total > zero) - numbers_of(total < zero)
        return sum_of_longs(balance)

    return merge_lanes, balance_lanes


def _make_plain_election(lanes: Any) -> tuple[Any, Any]:
    """Return the same loops for up to four voters that are alike, whose values stay in registers.

    Nothing is dropped or scaled before, and what agrees is averaged. What is trimmed becomes +0, not -0,
    which no sum can tell apart.
    """

    @compiled
    def trimmed(row: int, i: int, origin: Any, limit: Any) -> Any:
        value = lanes(row, i) - origin
        return either(magnitudes(value) >= limit, value, spread(0.0))

    @compiled
    def limit_of(limits: Array, v: int) -> Any:
        """Return what a voter's magnitudes have to reach; of who is not there, nothing does."""
        return spread(limits[v] if v < limits.size else np.inf)

    @compiled
    def merge_plain(
        rows: Array, base: int, limits: Array, majority: float, scale: float, start: int, n: int, out: int
    ) -> None:
        last, zero, one, minus = rows.size - 1, spread(0.0), spread(1.0), spread(-1.0)
        a, b, c, d = rows[0], rows[min(1, last)], rows[min(2, last)], rows[min(3, last)]
        e, f, g, h = limit_of(limits, 0), limit_of(limits, 1), limit_of(limits, 2), limit_of(limits, 3)
        # At least zero is above the greatest number below zero.
        bar, factor = spread(from_bits(BELOW_ZERO) if majority > 0 else 0.0), spread(scale)
        for i in range(start, start + n, 8):
            origin = lanes_f64(base, i)
            p, q = trimmed(a, i, origin, e), trimmed(b, i, origin, f)
            r, s = trimmed(c, i, origin, g), trimmed(d, i, origin, h)
            sign = either(((p + q) + r) + s > bar, one, minus)
            does, shares, merged = p * sign > zero, zero, zero
            shares, merged = either(does, one, zero), either(does, p, zero)
            does = q * sign > zero
            shares, merged = either(does, shares + one, shares), either(does, merged + q, merged)
            does = r * sign > zero
            shares, merged = either(does, shares + one, shares), either(does, merged + r, merged)
            does = s * sign > zero
            shares, merged = either(does, shares + one, shares), either(does, merged + s, merged)
            # One of the rest: an element that nobody has a say in is divided by one.
            merged = merged / either(shares > one, shares, one)
            put(out, i, merged * factor + origin)

    @compiled
    def balance_plain(rows: Array, base: int, limits: Array, start: int, n: int) -> Any:
        last, zero, balance = rows.size - 1, spread(0.0), spread_long(0)
        a, b, c, d = rows[0], rows[min(1, last)], rows[min(2, last)], rows[min(3, last)]
        e, f, g, h = limit_of(limits, 0), limit_of(limits, 1), limit_of(limits, 2), limit_of(limits, 3)
        for i in range(start, start + n, 8):
            origin = lanes_f64(base, i)
            p, q = trimmed(a, i, origin, e), trimmed(b, i, origin, f)
            r, s = trimmed(c, i, origin, g), trimmed(d, i, origin, h)
            total = ((p + q) + r) + s
            balance = balance + numbers_of(total > zero) - numbers_of(total < zero)
        return sum_of_longs(balance)

    return merge_plain, balance_plain


@compiled
def _is_plain(masks: Array, scales: Array, merge: int) -> bool:
    """Tell whether the loops for a few voters that are alike will do."""
    is_plain = masks.size <= 4 and merge == MEAN_COUNTED
    for v in range(masks.size):
        is_plain = is_plain and masks[v] == 0 and scales[v] == 1.0
    return is_plain


def _make_ballots(load: Any) -> Any:
    """Return the loop that makes voters' trimmed differences of a chunk and adds up the votes."""

    @compiled
    def ballots(
        rows: Array, base: int, masks: Array, scales: Array, limits: Array, start: int, n: int, place: int,
        total: Array,
    ) -> None:  # fmt: skip
        for v in range(rows.size):
            values, row, mask, scale, limit = (
                doubles(place + WIDTH * v, CHUNK), rows[v], masks[v], scales[v], limits[v],
            )  # fmt: skip
            for i in range(n):
                value = load(row, start + i) - load_f64(base, start + i)
                if mask != 0:
                    value *= load_flag(mask, start + i)
                value *= scale
                value *= 1.0 if abs(value) >= limit else 0.0
                values[i] = value
                total[i] = total[i] + value if v else value

    return ballots


@compiled
def _limits_from(thresholds: Array, beyond: Array, position: int, size: int, limits: Array) -> int:
    """Write what each voter's magnitudes have to reach from a position on; return where that changes."""
    stop = size
    for v in range(limits.size):
        limit = thresholds[v]
        if limit >= 0 and beyond[v] <= position:
            limit = _above(limit)  # What equals the threshold goes, too.
        elif limit >= 0:
            stop = min(stop, beyond[v])
        limits[v] = limit
    return stop


def _make_elect(load: Any, lanes: Any) -> Callable[..., int]:
    """Return the loop that trims, elects signs and merges what agrees, for inputs of one element type.

    Its arguments: where the addresses of the voters' elements are; their number; the address of the base,
    float64; where the addresses are of what dropping leaves, one byte per element, 0 for all; where is what
    differences are multiplied by; where the K-th magnitudes are, below zero where nothing is trimmed; where
    is, per voter, from which element on what equals the threshold goes too; where the weights are; whether
    they count in the election; one vote each instead of the values; how what agrees is merged; the sign where
    votes cancel out; the scale of the merged difference; whether to count only; the address of the result;
    its size; room for (k + 3) * CHUNK float64.

    It returns how many more elements were elected positive than negative, if it only counts.
    """
    merge_lanes, balance_lanes = _make_lanes_election(lanes)
    merge_plain, balance_plain = _make_plain_election(lanes)
    ballots = _make_ballots(load)

    @compiled
    def elect_chunk(
        rows: Array, base: int, masks: Array, scales: Array, limits: Array, weights: Array,
        is_weighted: int, by_count: int, merge: int, majority: float, scale: float, is_counting: int,
        out: int, start: int, n: int, scratch: int,
    ) -> Any:  # fmt: skip
        total, shares, place = doubles(scratch, CHUNK), doubles(scratch + WIDTH, CHUNK), scratch + 2 * WIDTH
        ballots(rows, base, masks, scales, limits, start, n, place, total)
        if by_count or is_weighted:
            for v in range(rows.size):
                weight = weights[v] if is_weighted else 1.0
                _revote(doubles(place + WIDTH * v, CHUNK), weight, by_count != 0, v == 0, total, n)
        balance = 0
        if is_counting:
            for i in range(n):
                balance += (1 if total[i] > 0 else 0) - (1 if total[i] < 0 else 0)
            return balance
        _elected(total, majority, n)
        merged = doubles(out + 8 * start, n)
        _merge_agreeing(place, weights, is_weighted, merge, total, n, merged, shares)
        for i in range(n):
            merged[i] = merged[i] * scale + load_f64(base, start + i)
        return balance

    def elect(
        rows: int, k: int, base: int, masks: int, scales: int, thresholds: int, beyond: int, weights: int,
        is_weighted: int, by_count: int, merge: int, majority: float, scale: float, is_counting: int,
        out: int, size: int, scratch: int,
    ) -> int:  # fmt: skip
        addresses, dropped, lasts = integers(rows, k), integers(masks, k), integers(beyond, k)
        factors, shares_of = doubles(scales, k), doubles(weights, k)
        limits, room = doubles(scratch, k), scratch + WIDTH
        balance = position = 0
        while position < size:
            stop = _limits_from(doubles(thresholds, k), lasts, position, size, limits)
            if by_count == 0 and merge != MAX:
                whole = (stop - position) - (stop - position) % 8
                is_plain = _is_plain(dropped, factors, merge)
                if is_plain and is_counting:
                    balance += balance_plain(addresses, base, limits, position, whole)
                elif is_plain:
                    merge_plain(addresses, base, limits, majority, scale, position, whole, out)
                elif is_counting:
                    balance += balance_lanes(
                        addresses,
                        base,
                        dropped,
                        factors,
                        limits,
                        shares_of,
                        is_weighted,
                        position,
                        whole,
                        room,
                    )
                else:
                    merge_lanes(
                        addresses, base, dropped, factors, limits, shares_of, is_weighted, merge, majority,
                        scale, position, whole, out, room,
                    )  # fmt: skip
                position += whole
            for start in range(position, stop, CHUNK):
                balance += elect_chunk(
                    addresses, base, dropped, factors, limits, shares_of, is_weighted, by_count, merge,
                    majority, scale, is_counting, out, start, min(CHUNK, stop - start), room,
                )  # fmt: skip
            position = stop
        return balance

    return elect


for _name in DIFFERING:
    entry_for(f"elect_{_name}", "iiiiiiiiiiiddiiii", _make_elect(LOADS[_name], LANES[_name]))
