"""Which contributions are set aside, and why (PROTOCOL R14).

A contribution is dropped for what *alone* breaks the schema, the weight cap or finiteness. Its digest fixes
its type, content and weight, hence its bytes, so this is a property of the digest: every node drops the same
ones, whatever arrived when. Failures that need two contributions are not judged here; each strategy states
its total rule for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from .blobs import FLOAT_DTYPES, Manifest, Schema, TensorSpec
from .errors import DTypeMismatchError, ResolveError, ShapeMismatchError, TensorMissingError
from .limits import WEIGHT_MAX, WEIGHT_ONE

PROBLEMS_MAX: Final = 16
"""A file of another model differs in every tensor; this many lines say so as well as thousands."""


_REMEDIES: Final[Mapping[type[ResolveError], str]] = {
    TensorMissingError: "Models are merged tensor by tensor: all need the same ones.",
    ShapeMismatchError: "Nothing is cut or padded: the models need one architecture and one vocabulary. "
    "Where only tokens differ, `vocabulary MODEL --to OTHER` gives one the tokens of the other.",
    DTypeMismatchError: "Convert them to one element type first.",
}


class _Problem(NamedTuple):
    error: type[ResolveError]
    text: str


def schema_problems(schema: Schema, specs: Iterable[TensorSpec], *, any_float: bool = False) -> list[str]:
    """Return what keeps tensors from having a schema, one sentence each; nothing if they have it.

    At most :data:`PROBLEMS_MAX` sentences, in byte order of the tensor names, and a count of the rest.

    Args:
        schema: What is expected.
        specs: What is there.
        any_float: Whether one float type is as good as another (``Policy.takes_any_float``).
    """
    return _texts(_problems(schema, specs, any_float))


def require_schema(schema: Schema, specs: Iterable[TensorSpec], *, who: str, any_float: bool = False) -> None:
    """Refuse tensors that do not have a schema; ``who`` begins the message, the rest as above.

    Raises:
        TensorMissingError, ShapeMismatchError, DTypeMismatchError: By the first problem; all are named.
    """
    problems = _problems(schema, specs, any_float)
    if problems:
        error = problems[0].error
        raise error(f"{who} does not fit the schema: {'; '.join(_texts(problems))}.", hint=_REMEDIES[error])


def judge(
    schema: Schema,
    weight_cap: int,
    manifest: Manifest,
    weight: int,
    is_finite: bool | None,
    *,
    any_float: bool = False,
) -> str | None:
    """Return why a contribution is quarantined, or None if it may be used.

    Args:
        schema: Of the group's policy.
        weight_cap: Of the group's policy, over 2^32; 0 for no cap but the format's.
        manifest: Of the contribution.
        weight: Of the contribution, over 2^32.
        is_finite: Whether its tensors were found free of NaN, infinity and impossible booleans; None while
            its bytes are not here, which condemns nothing.
        any_float: Whether the group's policy takes any float type for another.
    """
    if problem := weight_problem(weight_cap, weight):
        return problem
    problems = _texts(_problems(schema, (entry.spec for entry in manifest.entries), any_float))
    if problems:
        return problems[0] if len(problems) == 1 else f"{problems[0]} (and {len(problems) - 1} more problems)"
    if is_finite is False:
        return "it holds NaN, infinity or a boolean that is neither 0 nor 1"
    return None


def weight_problem(weight_cap: int, weight: int) -> str:
    """Return why a contribution cannot have a weight, both over 2^32; empty if it can."""
    cap = weight_cap or WEIGHT_MAX
    if weight <= 0:
        return f"its weight {weight / WEIGHT_ONE:g} is not positive"
    if weight > cap:
        return f"its weight {weight / WEIGHT_ONE:g} is over the group's cap {cap / WEIGHT_ONE:g}"
    return ""


def _problems(schema: Schema, specs: Iterable[TensorSpec], any_float: bool) -> list[_Problem]:
    expected = {spec.name: spec for spec in schema.specs}
    found = {spec.name: spec for spec in specs}
    problems = []
    for name in sorted(expected.keys() | found.keys(), key=str.encode):
        problem = _problem(expected.get(name), found.get(name), any_float)
        if problem is not None:
            problems.append(_Problem(problem.error, f"tensor {name} {problem.text}"))
    return problems


def _texts(problems: list[_Problem]) -> list[str]:
    texts = [problem.text for problem in problems[:PROBLEMS_MAX]]
    if len(problems) > PROBLEMS_MAX:
        texts.append(f"and {len(problems) - PROBLEMS_MAX} more tensors")
    return texts


def _problem(expected: TensorSpec | None, found: TensorSpec | None, any_float: bool) -> _Problem | None:
    if expected is None:
        return _Problem(TensorMissingError, "is not in the schema")
    if found is None:
        return _Problem(TensorMissingError, "is missing")
    if found.shape != expected.shape:
        return _Problem(ShapeMismatchError, f"has shape {list(found.shape)}, expected {list(expected.shape)}")
    if found.dtype != expected.dtype and not (any_float and {found.dtype, expected.dtype} <= FLOAT_DTYPES):
        return _Problem(DTypeMismatchError, f"has element type {found.dtype}, expected {expected.dtype}")
    return None
