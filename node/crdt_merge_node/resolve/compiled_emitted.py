"""What compiled loops are made of that numba's types cannot say: elements at addresses, and bits.

A loop gets nothing but integers and float64, addresses among them; then it can be called without numba, and
one compilation serves any number of contributions. Whoever calls keeps what is at the addresses alive.
Nothing is contracted or reassociated (fast math is off), so the bits are those of the numpy definitions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])
Array = npt.NDArray[Any]

carray: Final[Callable[..., Any]] = vars(numba)["carray"]  # Numba's own stubs forget it.
CHUNK: Final = 512
"""Elements in hand: several times 4 KiB of float64 stay in the first-level cache."""
ENTRIES: Final[dict[str, tuple[Callable[..., Any], str]]] = {}
"""By name: a function that can be called from outside, and its arguments, ``i`` or ``d`` each."""
_KINDS: Final = {"i": types.int64, "d": types.float64}


def compiled(function: F) -> F:
    """Compile for other loops to call."""
    return cast(F, numba.njit(nogil=True, error_model="numpy")(function))


def entry(arguments: str) -> Callable[[F], F]:
    """Make a function an entry of the compiled code, under its own name; it returns an integer.

    Args:
        arguments: ``i`` for int64 and addresses, ``d`` for float64, in the order of the parameters.
    """

    def register(function: F) -> F:
        ENTRIES[function.__name__] = function, arguments
        return function

    return register


def entry_for(name: str, arguments: str, function: Callable[..., Any]) -> None:
    """Make a function an entry under a name that it does not have itself."""
    ENTRIES[name] = function, arguments


def signature(arguments: str) -> Any:
    """Return numba's form of the signature of an entry."""
    return types.int64(*(_KINDS[kind] for kind in arguments))


def emitted(function: Callable[..., Any]) -> Any:
    """Make a function of LLVM instructions, which numba's own types cannot describe."""
    return intrinsic(function)


@emitted
def at(_typing: Any, address: Any) -> Any:
    """Return an address as a pointer, for ``numba.carray``."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


@compiled
def doubles(address: int, size: int) -> Any:
    """Return the float64 at an address."""
    return carray(at(address), size, np.float64)


@compiled
def integers(address: int, size: int) -> Any:
    """Return the int64 at an address."""
    return carray(at(address), size, np.int64)


@compiled
def words(address: int, size: int) -> Any:
    """Return the int32 at an address."""
    return carray(at(address), size, np.int32)


@compiled
def halves(address: int, size: int) -> Any:
    """Return the uint16 at an address."""
    return carray(at(address), size, np.uint16)


@compiled
def octets(address: int, size: int) -> Any:
    """Return the uint8 at an address."""
    return carray(at(address), size, np.uint8)


def _loads(name: str, element: Any, widen: Callable[[Any, Any], Any]) -> Any:
    """Return a function of (address, index) that reads one element and makes it float64, exactly."""

    def load(_typing: Any, address: Any, index: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], element.as_pointer())
            return widen(builder, builder.load(builder.gep(pointer, [arguments[1]])))

        return types.float64(address, index), generate

    load.__name__ = load.__qualname__ = name
    return emitted(load)


def _widen_brain(builder: Any, value: Any) -> Any:
    word = builder.shl(builder.zext(value, ir.IntType(32)), ir.IntType(32)(16))
    return builder.fpext(builder.bitcast(word, ir.FloatType()), ir.DoubleType())


load_f64 = _loads("load_f64", ir.DoubleType(), lambda _builder, value: value)
load_f32 = _loads("load_f32", ir.FloatType(), lambda builder, value: builder.fpext(value, ir.DoubleType()))
load_f16 = _loads("load_f16", ir.HalfType(), lambda builder, value: builder.fpext(value, ir.DoubleType()))
load_bf16 = _loads("load_bf16", ir.IntType(16), _widen_brain)
load_flag = _loads("load_flag", ir.IntType(8), lambda builder, value: builder.uitofp(value, ir.DoubleType()))


@emitted
def single(_typing: Any, value: Any) -> Any:
    """Return the bits of a float64 rounded to float32."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.FloatType()), ir.IntType(32))

    return types.int32(value), generate


@emitted
def bits(_typing: Any, value: Any) -> Any:
    """Return the bits of a float64."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(value), generate


@emitted
def root(_typing: Any, value: Any) -> Any:
    """Return the square root of a float64, correctly rounded: an instruction, no library's."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        function = builder.module.declare_intrinsic("llvm.sqrt", [ir.DoubleType()])
        return builder.call(function, arguments)

    return types.float64(value), generate


@emitted
def from_bits(_typing: Any, pattern: Any) -> Any:
    """Return the float64 that has some bits."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(pattern), generate


@emitted
def brain(_typing: Any, value: Any) -> Any:
    """Return the bits of a float32 rounded to bfloat16, in the upper half; wrong for NaN."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        last = builder.and_(builder.lshr(arguments[0], word(16)), word(1))
        rounded = builder.add(builder.add(arguments[0], word(0x7FFF)), last)
        return builder.and_(rounded, word(0xFFFF0000))

    return types.int32(value), generate


@emitted
def upper(_typing: Any, value: Any) -> Any:
    """Return the upper half of 32 bits."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.trunc(builder.lshr(arguments[0], ir.IntType(32)(16)), ir.IntType(16))

    return types.uint16(value), generate


@emitted
def half(_typing: Any, value: Any) -> Any:
    """Return the bits of a float64 rounded to float32, then float16."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        narrowed = builder.fptrunc(builder.fptrunc(arguments[0], ir.FloatType()), ir.HalfType())
        return builder.bitcast(narrowed, ir.IntType(16))

    return types.uint16(value), generate


@emitted
def single_of_half(_typing: Any, value: Any) -> Any:
    """Return the bits of float16, given as bits, as float32: infinity stays infinity."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        widened = builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())
        return builder.bitcast(widened, ir.IntType(32))

    return types.int32(value), generate
