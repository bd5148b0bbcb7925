"""Telling models that are stored as codes and scales from models that are numbers (STRATEGIES 1.3).

A code times its scale is a weight; the mean of codes times the mean of scales is none. Such files look like
any other, so the names that their writers give to codes and to scales are looked for. Names alone are no
sign, as a network may call any weight so: codes have to be integers, and scales have to stand beside elements
of eight bits. Integers alone are none either: counters and position ids are integers, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from .blobs import FLOAT_DTYPES, OUTPUT_DTYPES, TensorSpec
from .errors import DTypeMismatchError

_CODES: Final = {
    "GPTQ or AWQ": re.compile(r"(.*\.)?(qweight|qzeros)"),
    "packed integers": re.compile(r"(.*[._])?(weight_packed|W_q)"),
    "MXFP4": re.compile(r".*_proj_blocks"),
}
"""By format, names of its codes."""
_SCALES: Final = {
    "bitsandbytes": re.compile(r".*\.(SCB|absmax|quant_map|nested_absmax|quant_state\..+)"),
    "eight bits with scales": re.compile(
        r"(.*[._])?(weight_scale(_inv|_2)?|scale_weight|input_scale|[kv]_scale|scaled_fp8)"
    ),
}
"""By format, names of the scales of codes whose own names are those of plain weights."""
_EIGHT_BITS: Final = frozenset({"I8", "U8"}) | FLOAT_DTYPES - OUTPUT_DTYPES
_REMEDY: Final = (
    "Write the model as plain numbers first (transformers: `model.dequantize()`, then `save_pretrained`), or "
    "take the model that was quantised."
)


def quantised_as(specs: Iterable[TensorSpec]) -> tuple[str, str]:
    """Return how tensors are quantised and the name of one that tells; two empty texts if they are not."""
    every = tuple(specs)
    integers = [spec.name for spec in every if spec.dtype not in FLOAT_DTYPES]
    has_codes = any(spec.dtype in _EIGHT_BITS for spec in every)
    for patterns, names in (_CODES, integers), (_SCALES, [spec.name for spec in every] if has_codes else []):
        for form, pattern in patterns.items():
            for name in names:
                if pattern.fullmatch(name):
                    return form, name
    return "", ""


def require_plain(specs: Iterable[TensorSpec], *, who: str) -> None:
    """Refuse tensors that are codes and scales; ``who`` begins the message.

    Raises:
        DTypeMismatchError: They are quantised.
    """
    form, name = quantised_as(specs)
    if form:
        raise DTypeMismatchError(
            f"{who} is quantised ({form}; it has {name}), and codes cannot be merged.", hint=_REMEDY
        )
