"""Eight elements at a time: vectors of LLVM as values of compiled loops.

The compiler finds vectors by itself in plain loops over arrays. It does not where a loop has many inputs (it
would have to prove that none overlaps the output) or gathers what it finds. Here a loop says it itself. Each
lane computes what a scalar would: the same operations in the same order, nothing contracted. Processors with
shorter vectors take two or four of theirs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.extending import overload, register_model

from .compiled_emitted import emitted

WIDTH: Final = 8
"""Lanes of a vector."""
_BIT, _OCTET, _SHORT, _WORD, _LONG = map(ir.IntType, (1, 8, 16, 32, 64))
_DOUBLES: Final = ir.VectorType(ir.DoubleType(), WIDTH)
_SINGLES: Final = ir.VectorType(ir.FloatType(), WIDTH)
_HALVES: Final = ir.VectorType(ir.HalfType(), WIDTH)
_LONGS: Final = ir.VectorType(_LONG, WIDTH)
_WORDS: Final = ir.VectorType(_WORD, WIDTH)
_SHORTS: Final = ir.VectorType(_SHORT, WIDTH)
_OCTETS: Final = ir.VectorType(_OCTET, WIDTH)
_FLAGS: Final = ir.VectorType(_BIT, WIDTH)
_ABSOLUTE: Final = ir.Constant(_LONGS, [0x7FFFFFFFFFFFFFFF] * WIDTH)


class _Vector(types.Type):
    """Base of the vectors' types; numba tells types by name."""


class _Doubles(_Vector):
    """Eight float64."""


class _Longs(_Vector):
    """Eight int64."""


class _Flags(_Vector):
    """Eight answers."""


class _Words(_Vector):
    """Eight int32."""


def _kind(class_: Any, vector: ir.VectorType) -> Any:
    """Return a type of numba's that is kept as a vector of LLVM's."""

    class Model(models.PrimitiveModel):
        def __init__(self, dmm: Any, fe_type: Any) -> None:
            super().__init__(dmm, fe_type, vector)  # type: ignore[no-untyped-call]

    register_model(class_)(Model)
    return class_(name=class_.__name__)


DOUBLES: Final = _kind(_Doubles, _DOUBLES)
LONGS: Final = _kind(_Longs, _LONGS)
FLAGS: Final = _kind(_Flags, _FLAGS)
WORDS: Final = _kind(_Words, _WORDS)


def _emit(result: Any, count: int, generate: Callable[..., Any]) -> Any:
    """Return a function of ``count`` arguments that becomes the instructions that ``generate`` writes."""

    def made(arguments: tuple[Any, ...]) -> Any:
        def write(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            return generate(builder, *values)

        return result(*arguments), write

    def one(_typing: Any, a: Any) -> Any:
        return made((a,))

    def two(_typing: Any, a: Any, b: Any) -> Any:
        return made((a, b))

    def three(_typing: Any, a: Any, b: Any, c: Any) -> Any:
        return made((a, b, c))

    return emitted((one, two, three)[count - 1])


def _spread(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, value, _WORD(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_WORDS, [0] * WIDTH))


spread = _emit(DOUBLES, 1, lambda b, x: _spread(b, x, _DOUBLES))
"""Returns a float64 in all lanes."""
spread_long = _emit(LONGS, 1, lambda b, x: _spread(b, x, _LONGS))
"""Returns an int64 in all lanes."""
count_up = _emit(LONGS, 1, lambda b, x: b.add(_spread(b, x, _LONGS), ir.Constant(_LONGS, list(range(WIDTH)))))
"""Returns an int64 and those that follow."""


def _pointer(builder: Any, address: Any, index: Any, vector: ir.VectorType) -> Any:
    """Return the pointer to the element of an index; other elements follow."""
    first = builder.inttoptr(address, vector.element.as_pointer())
    return builder.bitcast(builder.gep(first, [index]), vector.as_pointer())


def _load(vector: ir.VectorType, align: int, widen: Callable[[Any, Any], Any]) -> Any:
    """Return a function of (address, index) that reads eight elements and makes them float64, exactly."""

    def generate(builder: Any, address: Any, index: Any) -> Any:
        return widen(builder, builder.load(_pointer(builder, address, index, vector), align=align))

    return _emit(DOUBLES, 2, generate)


def _widen_brains(builder: Any, value: Any) -> Any:
    words = builder.shl(builder.zext(value, _WORDS), ir.Constant(_WORDS, [16] * WIDTH))
    return builder.fpext(builder.bitcast(words, _SINGLES), _DOUBLES)


lanes_f64 = _load(_DOUBLES, 8, lambda _, x: x)
lanes_f32 = _load(_SINGLES, 4, lambda b, x: b.fpext(x, _DOUBLES))
lanes_f16 = _load(_HALVES, 2, lambda b, x: b.fpext(x, _DOUBLES))
lanes_bf16 = _load(_SHORTS, 2, _widen_brains)
lanes_flag = _load(_OCTETS, 1, lambda b, x: b.uitofp(x, _DOUBLES))


def _put(builder: Any, address: Any, index: Any, value: Any) -> Any:
    builder.store(value, _pointer(builder, address, index, value.type), align=8)
    return _LONG(0)


put = _emit(types.int64, 3, _put)
"""Writes eight elements to (address, index)."""


def _compress(builder: Any, values: Any, flags: Any) -> Any:
    name = f"llvm.experimental.vector.compress.v{WIDTH}i64"
    kind = ir.FunctionType(_LONGS, [_LONGS, _FLAGS, _LONGS])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, [values, flags, ir.Constant(_LONGS, ir.Undefined)])


compressed = _emit(LONGS, 2, _compress)
"""Returns the values of the lanes that are chosen at the front; what follows is any."""


def _bits_of(builder: Any, flags: Any) -> Any:
    return builder.zext(builder.bitcast(flags, _OCTET), _LONG)


mask_of = _emit(types.int64, 1, _bits_of)
"""Returns answers as bits, that of the first lane lowest."""
how_many = _emit(types.int64, 1, lambda b, x: b.ctpop(_bits_of(b, x)))
"""Returns how many answers are yes."""
longs_of = _emit(LONGS, 1, lambda b, x: b.bitcast(x, _LONGS))
"""Returns the bits of float64."""
doubles_of = _emit(DOUBLES, 1, lambda b, x: b.bitcast(x, _DOUBLES))
"""Returns the float64 that have some bits."""
magnitudes = _emit(DOUBLES, 1, lambda b, x: b.bitcast(b.and_(b.bitcast(x, _LONGS), _ABSOLUTE), _DOUBLES))
"""Returns the absolute values."""
ones_where = _emit(
    DOUBLES,
    1,
    lambda b, x: b.select(x, ir.Constant(_DOUBLES, [1.0] * WIDTH), ir.Constant(_DOUBLES, [0.0] * WIDTH)),
)
"""Returns 1 for yes and 0 for no."""
numbers_of = _emit(LONGS, 1, lambda b, x: b.zext(x, _LONGS))
"""Returns 1 for yes and 0 for no, integers."""
either = _emit(DOUBLES, 3, lambda b, x, y, z: b.select(x, y, z))
"""Returns, by answers, one float64 or the other."""
is_below = _emit(FLAGS, 2, lambda b, x, y: b.icmp_unsigned("<", x, y))
"""Tells whether unsigned numbers are less than others."""


def _reduce(builder: Any, value: Any) -> Any:
    total = builder.extract_element(value, _WORD(0))
    for lane in range(1, WIDTH):
        total = builder.add(total, builder.extract_element(value, _WORD(lane)))
    return total


sum_of_longs = _emit(types.int64, 1, _reduce)
"""Returns the sum of the lanes."""


def _put_as(vector: ir.VectorType, align: int, narrow: Callable[[Any, Any], Any]) -> Any:
    """Return a function of (address, index, lanes) that narrows eight lanes and writes them."""

    def generate(builder: Any, address: Any, index: Any, value: Any) -> Any:
        builder.store(narrow(builder, value), _pointer(builder, address, index, vector), align=align)
        return _LONG(0)

    return _emit(types.int64, 3, generate)


def _all_words(value: int) -> Any:
    return ir.Constant(_WORDS, [value] * WIDTH)


def _brains(builder: Any, words: Any) -> Any:
    last = builder.and_(builder.lshr(words, _all_words(16)), _all_words(1))
    rounded = builder.add(builder.add(words, _all_words(0x7FFF)), last)
    return builder.trunc(builder.lshr(rounded, _all_words(16)), _SHORTS)


def _halves(builder: Any, words: Any) -> Any:
    return builder.bitcast(builder.fptrunc(builder.bitcast(words, _SINGLES), _HALVES), _SHORTS)


singles_of = _emit(WORDS, 1, lambda b, x: b.bitcast(b.fptrunc(x, _SINGLES), _WORDS))
"""Returns float64, rounded to float32, as bits."""
put_singles = _put_as(_WORDS, 4, lambda _, x: x)
"""Writes float32, given as bits, to (address, index)."""
put_brains = _put_as(_SHORTS, 2, _brains)
"""Writes float32, given as bits, to (address, index), rounded to bfloat16; NaN becomes anything."""
put_halves = _put_as(_SHORTS, 2, _halves)
"""Writes float32, given as bits, to (address, index), rounded to float16."""
singles_of_halves = _emit(
    WORDS,
    1,
    lambda b, x: b.bitcast(b.fpext(b.fptrunc(b.bitcast(x, _SINGLES), _HALVES), _SINGLES), _WORDS),
)
"""Returns float32, given as bits, rounded to float16, as bits of float32."""


def _larger(builder: Any, worst: Any, words: Any) -> Any:
    magnitude = builder.and_(words, _all_words(0x7FFFFFFF))
    return builder.select(builder.icmp_signed(">", magnitude, worst), magnitude, worst)


larger_words = _emit(WORDS, 2, _larger)
"""Returns the larger of what was the largest so far and the magnitudes of float32, given as bits."""
spread_word = _emit(WORDS, 1, lambda b, x: _spread(b, b.trunc(x, _WORD), _WORDS))
"""Returns the low half of an int64 in all lanes."""


def _largest(builder: Any, value: Any) -> Any:
    found = builder.extract_element(value, _WORD(0))
    for lane in range(1, WIDTH):
        other = builder.extract_element(value, _WORD(lane))
        found = builder.select(builder.icmp_signed(">", other, found), other, found)
    return builder.sext(found, _LONG)


largest_word = _emit(types.int64, 1, _largest)
"""Returns the largest lane."""


def _interleave(places: list[int]) -> Any:
    mask = ir.Constant(_WORDS, places)
    return _emit(DOUBLES, 2, lambda b, x, y: b.shuffle_vector(x, y, mask))


first_singles = _interleave([0, 8, 1, 9, 2, 10, 3, 11])
"""Returns the first lanes of two vectors by turns."""
last_singles = _interleave([4, 12, 5, 13, 6, 14, 7, 15])
"""Returns the last lanes of two vectors by turns."""
first_pairs = _interleave([0, 1, 8, 9, 2, 3, 10, 11])
"""Returns the first pairs of lanes of two vectors by turns."""
last_pairs = _interleave([4, 5, 12, 13, 6, 7, 14, 15])
"""Returns the last pairs of lanes of two vectors by turns."""


def _operate(which: Any, kind: Any, result: Any, generate: Callable[[Any, Any, Any], Any]) -> None:
    """Make an operator work on two vectors of a kind."""
    function = _emit(result, 2, generate)

    def is_fit(a: Any, b: Any) -> bool:
        return isinstance(a, kind) and isinstance(b, kind)

    # Lambdas, because numba compares the signatures of both, and theirs have no annotations.
    overload(which)(lambda a, b: (lambda a, b: function(a, b)) if is_fit(a, b) else None)  # noqa: PLW0108


_operate(operator.add, _Doubles, DOUBLES, lambda b, x, y: b.fadd(x, y))
_operate(operator.sub, _Doubles, DOUBLES, lambda b, x, y: b.fsub(x, y))
_operate(operator.mul, _Doubles, DOUBLES, lambda b, x, y: b.fmul(x, y))
_operate(operator.truediv, _Doubles, DOUBLES, lambda b, x, y: b.fdiv(x, y))
_operate(operator.gt, _Doubles, FLAGS, lambda b, x, y: b.fcmp_ordered(">", x, y))
_operate(operator.ge, _Doubles, FLAGS, lambda b, x, y: b.fcmp_ordered(">=", x, y))
_operate(operator.lt, _Doubles, FLAGS, lambda b, x, y: b.fcmp_ordered("<", x, y))
_operate(operator.eq, _Doubles, FLAGS, lambda b, x, y: b.fcmp_ordered("==", x, y))
_operate(operator.ne, _Doubles, FLAGS, lambda b, x, y: b.fcmp_unordered("!=", x, y))
_operate(operator.add, _Longs, LONGS, lambda b, x, y: b.add(x, y))
_operate(operator.sub, _Longs, LONGS, lambda b, x, y: b.sub(x, y))
_operate(operator.mul, _Longs, LONGS, lambda b, x, y: b.mul(x, y))
_operate(operator.and_, _Longs, LONGS, lambda b, x, y: b.and_(x, y))
_operate(operator.or_, _Longs, LONGS, lambda b, x, y: b.or_(x, y))
_operate(operator.xor, _Longs, LONGS, lambda b, x, y: b.xor(x, y))
_operate(operator.rshift, _Longs, LONGS, lambda b, x, y: b.lshr(x, y))
_operate(operator.ge, _Longs, FLAGS, lambda b, x, y: b.icmp_signed(">=", x, y))
