"""The policy of a group, and the counting of administrators' signatures (PROTOCOL R12, R17).

A policy says how a group's contributions are merged: strategy, parameters, schema, base, element type, caps.
Everything but its version is the *recipe*, which enters the resolve key: two nodes with different recipes
never claim to have written the same file (SCENARIOS S7).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final, Self

from .blobs import ANY_FLOAT
from .canonical import decode, digest, encode
from .errors import BadSignatureError, LocalProtocolError, MalformedMessageError, RemoteProtocolError
from .fields import U32_MAX, U64_MAX, Fields
from .identity import NodeKey, verify
from .limits import (
    OPERATION_BYTES_MAX,
    POLICY_PARAMS_MAX,
    POLICY_TEXT_CHARS_MAX,
    WEIGHT_MAX,
    WEIGHT_ONE,
)

FIRST_VERSION: Final = 1
"""Version of the policy that a genesis carries."""
NONCE_BYTES: Final = 16
DEFAULT_WEIGHT_CAP: Final = 1024 * WEIGHT_ONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a group's contributions become one model. Immutable; a change is a new version."""

    strategy: str
    """Id of a merge strategy. Unknown ids are readable: resolving says that a newer release is needed."""
    schema: bytes
    """Id of the schema that contributions must have, 32 bytes."""
    version: int = FIRST_VERSION
    strategy_version: int = 1
    params: tuple[tuple[str, str], ...] = ()
    """(name, value as text), sorted by name, unique. Numbers are decimal text, so none is ever rounded."""
    base: bytes | None = None
    """Content id of the common base model, if there is one."""
    dtype: str = ""
    """Element type of the output; empty: that of the base, else the widest of the inputs.

    With ``any`` or ``any:`` in front of it, float tensors of contributions may have any float type.
    """
    weight_cap: int = DEFAULT_WEIGHT_CAP
    """Largest weight of one contribution, over 2^32."""
    holders: int = 0
    """How many other authors must hold a contribution before it is visible."""
    seed_rule: str = "root"
    """Where randomness comes from."""

    def encode(self) -> bytes:
        """Return the canonical bytes.

        Raises:
            LocalProtocolError: No node could read them.
        """
        data = encode([self.version, *self._recipe_fields()])
        try:
            if self.decode(data) == self:
                return data
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"this policy cannot be encoded: {error}") from None
        raise LocalProtocolError("this policy cannot be encoded: it does not read back as itself.")

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the policy in canonical bytes.

        Raises:
            RemoteProtocolError: Not a policy within the limits.
        """
        fields = Fields(decode(data, bytes_max=OPERATION_BYTES_MAX), what="policy")
        policy = cls(
            version=fields.integer(low=FIRST_VERSION),
            strategy=fields.name(),
            strategy_version=fields.integer(high=U32_MAX),
            params=_read_params(fields),
            schema=fields.id(),
            base=fields.optional_id(),
            dtype=fields.text(size_max=16),
            weight_cap=fields.integer(high=WEIGHT_MAX),
            holders=fields.integer(high=U32_MAX),
            seed_rule=fields.text(size_max=64),
        )
        fields.end()
        return policy

    @property
    def takes_any_float(self) -> bool:
        """Whether float tensors of contributions may have other float types than the schema says."""
        return self.dtype.partition(":")[0] == ANY_FLOAT

    @property
    def out_dtype(self) -> str:
        """Element type that the output is to have; empty: that of the base, else the widest input's."""
        return self.dtype.partition(":")[2] if self.takes_any_float else self.dtype

    def recipe(self) -> bytes:
        """Return the canonical bytes of everything that decides the output: all but the version."""
        return encode(self._recipe_fields())

    def next(self, **changes: Any) -> Policy:
        """Return the next version with some fields changed; ``params`` may be a mapping.

        Raises:
            LocalProtocolError: No such field, or the version would leave its range.
        """
        unknown = changes.keys() - {field.name for field in dataclasses.fields(self)} | {"version"} & {
            *changes
        }
        if unknown or self.version >= U64_MAX:
            raise LocalProtocolError(f"a policy has no changeable {', '.join(sorted(unknown)) or 'version'}.")
        if "params" in changes:
            changes["params"] = sorted_params(dict(changes["params"]))
        return dataclasses.replace(self, version=self.version + 1, **changes)

    def _recipe_fields(self) -> list[Any]:
        return [
            self.strategy,
            self.strategy_version,
            [list(pair) for pair in self.params],
            self.schema,
            self.base,
            self.dtype,
            self.weight_cap,
            self.holders,
            self.seed_rule,
        ]


def sorted_params(params: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Return parameters in the one order that a policy has them in."""
    return tuple(sorted(params.items(), key=lambda pair: pair[0].encode()))


def act_digest(group: bytes, kind: int, action: bytes, nonce: bytes) -> bytes:
    """Return what administrators sign to let ``action`` happen in ``group`` (PROTOCOL R12), 32 bytes."""
    return digest("crdt-merge/act/1", group, bytes([kind]), action, nonce)


def sign_act(key: NodeKey, act: bytes) -> tuple[bytes, bytes]:
    """Return (administrator, signature) over an act digest."""
    return key.node_id, key.sign(act)


def count_signers(
    act: bytes,
    signatures: Iterable[tuple[bytes, bytes]],
    admins: Collection[bytes],
    *,
    enough: int | None = None,
) -> int:
    """Return how many distinct administrators validly signed an act digest.

    One who signed twice counts once; strangers and wrong signatures count nothing.

    Args:
        act: The digest of :func:`act_digest`.
        signatures: (administrator, signature) pairs in any order.
        admins: The administrators that the genesis names.
        enough: Stop counting here, to spend no verification on more.
    """
    signers: set[bytes] = set()
    for admin, signature in signatures:
        if enough is not None and len(signers) >= enough:
            break
        if admin not in admins or admin in signers:
            continue
        try:
            verify(admin, signature, act)
        except BadSignatureError:
            continue
        signers.add(admin)
    return len(signers)


def _read_params(fields: Fields) -> tuple[tuple[str, str], ...]:
    params = []
    for record in fields.records(count_max=POLICY_PARAMS_MAX):
        params.append((record.name(), record.text(size_max=POLICY_TEXT_CHARS_MAX)))
        record.end()
    names = [name.encode() for name, _ in params]
    if any(first >= second for first, second in itertools.pairwise(names)):
        raise MalformedMessageError("parameters of a policy are not sorted and unique.")
    return tuple(params)
