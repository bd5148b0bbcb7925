"""Which contributions are set aside, and why (PROTOCOL R14).

A contribution is dropped for what *alone* breaks the schema, the weight cap or finiteness. Its digest fixes
its type, content and weight, hence its bytes, so this is a property of the digest: every node drops the same
ones, whatever arrived when. Failures that need two contributions are not judged here; each strategy states
its total rule for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .blobs import Manifest, Schema, TensorSpec
from .limits import WEIGHT_MAX, WEIGHT_ONE

PROBLEMS_MAX: Final = 16
"""A file of another model differs in every tensor; this many lines say so as well as thousands."""


def schema_problems(schema: Schema, specs: Iterable[TensorSpec]) -> list[str]:
    """Return what keeps tensors from having a schema, one sentence each; nothing if they have it.

    At most :data:`PROBLEMS_MAX` sentences, in byte order of the tensor names, and a count of the rest.
    """
    expected = {spec.name: spec for spec in schema.specs}
    found = {spec.name: spec for spec in specs}
    problems = []
    for name in sorted(expected.keys() | found.keys(), key=str.encode):
        problem = _problem(expected.get(name), found.get(name))
        if problem:
            problems.append(f"tensor {name}: {problem}")
    if len(problems) > PROBLEMS_MAX:
        problems[PROBLEMS_MAX:] = [f"and {len(problems) - PROBLEMS_MAX} more tensors"]
    return problems


def judge(
    schema: Schema, weight_cap: int, manifest: Manifest, weight: int, is_finite: bool | None
) -> str | None:
    """Return why a contribution is quarantined, or None if it may be used.

    Args:
        schema: Of the group's policy.
        weight_cap: Of the group's policy, over 2^32; 0 for no cap but the format's.
        manifest: Of the contribution.
        weight: Of the contribution, over 2^32.
        is_finite: Whether its tensors were found free of NaN, infinity and impossible booleans; None while
            its bytes are not here, which condemns nothing.
    """
    cap = weight_cap or WEIGHT_MAX
    if weight <= 0:
        return f"its weight {weight / WEIGHT_ONE:g} is not positive"
    if weight > cap:
        return f"its weight {weight / WEIGHT_ONE:g} is over the group's cap {cap / WEIGHT_ONE:g}"
    problems = schema_problems(schema, (entry.spec for entry in manifest.entries))
    if problems:
        return problems[0] if len(problems) == 1 else f"{problems[0]} (and {len(problems) - 1} more problems)"
    if is_finite is False:
        return "it holds NaN, infinity or a boolean that is neither 0 nor 1"
    return None


def _problem(expected: TensorSpec | None, found: TensorSpec | None) -> str:
    if expected is None:
        return "is not in the schema"
    if found is None:
        return "is missing"
    if found.shape != expected.shape:
        return f"has shape {list(found.shape)}, expected {list(expected.shape)}"
    if found.dtype != expected.dtype:
        return f"has element type {found.dtype}, expected {expected.dtype}"
    return ""
