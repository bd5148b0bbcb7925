"""The error tree. Every error has a stable code, says what failed with which value, and carries a remedy.

The classes below are all that the deterministic core raises. The daemon adds its own branches in
``crdt_merge_node.errors``. One rule matters to security: whatever bytes a peer sends, the only exception
that may escape the code reading them is :class:`RemoteProtocolError`.
"""

from __future__ import annotations

from typing import ClassVar


class CrdtMergeError(Exception):
    """Base of every error this project raises on purpose."""

    code: ClassVar[str] = "E1000"
    """Stable and documented; shown as ``error E1203: …``."""
    exit_code: ClassVar[int] = 1
    """The exit status of a command that ends with this error."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ProtocolError(CrdtMergeError):
    """A rule of the protocol was broken."""

    code = "E1100"


class LocalProtocolError(ProtocolError):
    """We broke a rule: a bug on our side or a request that cannot be carried out."""

    code = "E1101"


class RemoteProtocolError(ProtocolError):
    """A peer broke a rule. Counted, perhaps disconnected; never a crash."""

    code = "E1200"


class MalformedMessageError(RemoteProtocolError):
    """Bytes that are not what they claim to be."""

    code = "E1201"


class LimitExceededError(RemoteProtocolError):
    """Larger, deeper or more than ``limits.py`` allows."""

    code = "E1202"


class ClusterMismatchError(RemoteProtocolError):
    """The peer belongs to another cluster."""

    code = "E1203"
    exit_code = 5


class BadSignatureError(RemoteProtocolError):
    """A signature does not verify, or the key is not an acceptable Ed25519 point."""

    code = "E1204"


class VersionMismatchError(RemoteProtocolError):
    """No wire version in common."""

    code = "E1205"


class ResolveError(CrdtMergeError):
    """Merged tensors cannot be computed from these inputs."""

    code = "E1300"


class EmptySetError(ResolveError):
    """There is no usable contribution, hence nothing to resolve."""

    code = "E1301"


class ShapeMismatchError(ResolveError):
    """A tensor has another shape than the schema, the base or another input."""

    code = "E1302"


class DTypeMismatchError(ResolveError):
    """A tensor has another element type than it must have."""

    code = "E1303"


class NonFiniteError(ResolveError):
    """A tensor holds NaN or infinity."""

    code = "E1304"
    exit_code = 7


class ParameterError(ResolveError):
    """An unknown strategy, an unknown parameter, or a value outside its range."""

    code = "E1305"
    exit_code = 2


class BaseMissingError(ResolveError):
    """The strategy works on differences from a base model and none is given."""

    code = "E1306"


class TensorMissingError(ResolveError):
    """A tensor that the schema names is absent, or one is present that it does not name."""

    code = "E1307"


class IntegerTensorDiffersError(ResolveError):
    """An integer or boolean tensor is not the same in all inputs; such tensors are never merged."""

    code = "E1308"


class OverflowRefusedError(ResolveError):
    """A merged value does not fit the output element type."""

    code = "E1309"


class MalformedTensorFileError(ResolveError):
    """A file is not the strict safetensors subset that contributions are made of."""

    code = "E1310"
    exit_code = 7


class MissingBlobError(ResolveError):
    """Bytes that the result depends on are not on this node yet."""

    code = "E1311"
    exit_code = 6


class ArtefactMissingError(ResolveError):
    """A strategy needs an artefact (Fisher diagonal, Gram matrices, masks ...) that is not there."""

    code = "E1313"
    exit_code = 6


class ArtefactStaleError(ResolveError):
    """An artefact was made for another set of contributions, or another base, than is merged now."""

    code = "E1314"
    exit_code = 6


class ArtefactInvalidError(ResolveError):
    """An artefact's header or tensors are not what its type requires."""

    code = "E1315"
    exit_code = 7


class RoleMissingError(ResolveError):
    """A strategy needs a contribution in a role (aligned, safety, forget ...) that nobody has."""

    code = "E1316"
    exit_code = 6


class UnsupportedCountError(ResolveError):
    """The strategy cannot merge this many contributions."""

    code = "E1317"
    exit_code = 2


class MalformedCheckpointError(MalformedTensorFileError):
    """A directory of shards and its index contradict each other, or something is missing."""

    code = "E1318"
