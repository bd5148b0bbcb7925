"""Headers of artefacts: what binds them, and the tables of those that have no tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.strategies.artefacts import SCOPES


def bound_header(
    type_: str, fields: dict[str, Any], digests: Sequence[bytes], *, base: bytes = b"", note: str = ""
) -> dict[str, Any]:
    """Return a whole header: the fields of a type, and what it is bound to.

    Args:
        type_: Of the artefact.
        fields: As the type has them.
        digests: Contribution digests: one, or of a set-bound type those of the whole set.
        base: Content id of the base; empty: not said.
        note: Free text; empty: none.

    Raises:
        ParameterError: No such type, or the wrong number of digests.
    """
    if type_ not in SCOPES:
        raise ParameterError(f"There is no artefact type {type_!r}.", hint=f"Known: {', '.join(SCOPES)}.")
    header = {**fields, "artefact": f"{type_}/1"}
    if SCOPES[type_] == "set":
        if not digests:
            raise ParameterError(f"A {type_} is of a set of models: name them all.")
        header |= {"set_root": used_root(digests).hex(), "contributions": sorted({d.hex() for d in digests})}
    elif len(digests) == 1:
        header["subject"] = digests[0].hex()
    else:
        raise ParameterError(f"A {type_} is of one contribution, {len(digests)} are named.")
    if base:
        header["base"] = base.hex()
    if note:
        header["note"] = note
    return header


def lambda_rows(digests: Sequence[bytes], rows: Iterable[tuple[str, Sequence[str]]]) -> list[dict[str, Any]]:
    """Return the rows of a ``lambda_table`` in the order of the format.

    Args:
        digests: Of the contributions, as the numbers are given.
        rows: Pattern over tensor names, and one decimal text per contribution.

    Raises:
        ParameterError: Another number of coefficients, or a contribution twice.
    """
    order = sorted(range(len(digests)), key=lambda i: digests[i])
    if len(set(digests)) < len(digests):
        raise ParameterError("A contribution is named twice.", hint="Equal files are one contribution.")
    table = []
    for match, numbers in rows:
        if len(numbers) != len(digests):
            raise ParameterError(
                f"Row {match!r} has {len(numbers)} coefficients for {len(digests)} contributions.",
                hint="Give one for each --model or --contribution, in their order.",
            )
        table.append({"match": match, "lambda": [numbers[i].strip() for i in order]})
    return table
