"""Artefacts: contributions that are no models but what some strategies need besides models (STRATEGIES 1.10).

An artefact is a set of tensors like any contribution, so it is hashed, signed, fetched and stored like one.
One of its tensors is the *header*: named ``artefact``, element type U8, one axis, the bytes of a JSON object
in canonical form (sorted keys, no blanks, real numbers as decimal text). It says what the artefact is of:
``subject``, the digest of one model contribution, which stays true whatever else joins the set; or
``set_root``, the used root of the one set of models that it was trained for, which is stale after any change.
The digest of a model never covers artefacts, so there is no circle (PROTOCOL R9).
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.errors import ArtefactInvalidError

HEADER_TENSOR: Final = "artefact"
HEADER_BYTES_MAX: Final = 1 << 20
Scope = Literal["contribution", "set"]

SCOPES: Final[dict[str, Scope]] = {
    "fisher_diag": "contribution",
    "gram": "contribution",
    "snip_score": "contribution",
    "role": "contribution",
    "lora_meta": "contribution",
    "weight_scope": "contribution",
    "lambda_table": "set",
    "rank_masks": "set",
    "dam_coeff": "set",
    "surgery_adapter": "set",
    "genome": "set",
}
"""Types of artefacts, also the ``type`` of the contributions that carry them, and what binds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """What is known of an artefact without its large tensors. Picklable."""

    digest: bytes
    """Contribution digest."""
    type: str
    """A key of :data:`SCOPES`."""
    header: Mapping[str, Any]
    specs: tuple[TensorSpec, ...]
    """Its tensors but the header, in byte order of their names."""

    @property
    def scope(self) -> Scope:
        """What it is bound to."""
        return SCOPES[self.type]

    @property
    def subject(self) -> bytes:
        """Digest of the model contribution that it describes; empty for a set-bound one."""
        return bytes.fromhex(self.header.get("subject", ""))

    @property
    def set_root(self) -> bytes:
        """Used root of the models that it was made for; empty for one of a contribution."""
        return bytes.fromhex(self.header.get("set_root", ""))

    @property
    def base(self) -> bytes:
        """Content id of the base that it was made for; empty if it does not say."""
        return bytes.fromhex(self.header.get("base", ""))

    def spec(self, tensor: str) -> TensorSpec | None:
        """Return the spec of one of its tensors, or None."""
        wanted = tensor.encode()
        at = bisect_left(self.specs, wanted, key=lambda spec: spec.name.encode())
        return self.specs[at] if at < len(self.specs) and self.specs[at].name == tensor else None


@dataclass(frozen=True, slots=True)
class ArtefactNeed:
    """A type of artefact that a strategy works with."""

    type: str
    is_optional: bool = False

    @property
    def scope(self) -> Scope:
        """What such artefacts are bound to."""
        return SCOPES[self.type]

    def missing_in(
        self, artefacts: Sequence[Artefact], digests: Sequence[bytes], set_root: bytes
    ) -> str | None:
        """Return what keeps the need unmet, in words, or None.

        Args:
            artefacts: The chosen ones.
            digests: Of the model contributions.
            set_root: Their used root.
        """
        if self.is_optional:
            return None
        mine = [artefact for artefact in artefacts if artefact.type == self.type]
        if self.scope == "set":
            if any(artefact.set_root == set_root for artefact in mine):
                return None
            return f"the {self.type} is of another set of models" if mine else f"there is no {self.type}"
        lacking = set(digests) - {artefact.subject for artefact in mine}
        if not lacking:
            return None
        return f"no {self.type} for contribution {', '.join(sorted(d.hex()[:12] for d in lacking))}"


def encode_header(header: Mapping[str, Any]) -> bytes:
    """Return a header's canonical JSON."""
    return json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def read_header(type_: str, data: bytes) -> dict[str, Any]:
    """Return the header in canonical JSON, with what binds the artefact checked.

    Args:
        type_: The contribution's type.
        data: Bytes of the header tensor.

    Raises:
        ArtefactInvalidError: Not such a header.
    """
    if type_ not in SCOPES:
        raise ArtefactInvalidError(
            f"There is no artefact type {type_!r}.", hint=f"Known: {', '.join(SCOPES)}."
        )
    if len(data) > HEADER_BYTES_MAX:
        raise ArtefactInvalidError(f"The header of a {type_} has {len(data)} bytes, over {HEADER_BYTES_MAX}.")
    try:
        header = json.loads(data, parse_constant=_refuse_constant, parse_float=_refuse_constant)
        is_canonical = isinstance(header, dict) and encode_header(header) == data
        # Half a surrogate pair can be escaped in JSON but not be written, shown or sent as text.
        json.dumps(header, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ArtefactInvalidError(f"The header of a {type_} is not JSON: {error}.") from None
    if not is_canonical:
        raise ArtefactInvalidError(f"The header of a {type_} is not an object in canonical JSON.")
    if header.get("artefact") != f"{type_}/1":
        raise ArtefactInvalidError(
            f"The header says {header.get('artefact')!r}, the contribution says {type_}/1."
        )
    bond = "subject" if SCOPES[type_] == "contribution" else "set_root"
    for name in (bond, *(("base",) if "base" in header else ())):
        if not _is_digest(header.get(name)):
            raise ArtefactInvalidError(f"The header of a {type_} needs {name!r}: 64 lower-case hex digits.")
    if {"subject", "set_root"} <= header.keys():
        raise ArtefactInvalidError(f"The header of a {type_} has both a subject and a set_root.")
    return dict(header)


def in_order(artefacts: Iterable[Artefact]) -> tuple[Artefact, ...]:
    """Return artefacts in their canonical order: by type, subject, digest."""
    return tuple(sorted(artefacts, key=lambda a: (a.type, a.subject, a.digest)))


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"real numbers are decimal text, not {text}")


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")
