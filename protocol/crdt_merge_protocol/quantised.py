"""Telling models that are stored as codes and scales from models that are numbers (STRATEGIES 1.3).

A code times its scale is a weight; the mean of codes times the mean of scales is none. Such files look like
any other, so the names that their writers give to scales and codes are looked for. Integers alone are no
sign: counters and position ids are integers, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from .blobs import FLOAT_DTYPES, OUTPUT_DTYPES, TensorSpec
from .errors import DTypeMismatchError

_CODES: Final = {
    "GPTQ or AWQ": re.compile(r"(.*\.)?(qweight|qzeros)"),
    "bitsandbytes": re.compile(r".*\.(SCB|absmax|quant_map|nested_absmax|quant_state\..+)"),
    "packed integers": re.compile(r".*[._](weight_packed|W_q)"),
    "MXFP4": re.compile(r".*_proj_blocks"),
}
"""By format, names of what holds its codes, or its scales, and nothing else does."""
_SCALE: Final = re.compile(
    r"(.*[._])?(weight_scale(_inv|_2)?|scale_weight|weight_scale_inv|input_scale|[kv]_scale|scaled_fp8)"
)
"""Names of scales of codes whose own names are those of plain weights."""
_REMEDY: Final = (
    "Write the model as plain numbers first (transformers: `model.dequantize()`, then `save_pretrained`), or "
    "take the model that was quantised."
)


def quantised_as(specs: Iterable[TensorSpec]) -> tuple[str, str]:
    """Return how tensors are quantised and the name of one that tells; two empty texts if they are not."""
    every = tuple(specs)
    for form, pattern in _CODES.items():
        for spec in every:
            if pattern.fullmatch(spec.name):
                return form, spec.name
    has_codes = any(spec.dtype in {*(FLOAT_DTYPES - OUTPUT_DTYPES), "I8", "U8"} for spec in every)
    scale = next((spec.name for spec in every if _SCALE.fullmatch(spec.name)), "") if has_codes else ""
    return ("eight bits with scales", scale) if scale else ("", "")


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
