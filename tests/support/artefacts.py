"""Artefacts for tests, as a producer would make them, and their places in a merge of arrays in memory."""

from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.canonical import digest, encode
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.strategies.artefacts import SCOPES, Artefact, encode_header
from crdt_merge_protocol.strategies.reference import ArtefactArrays

DTYPES = {"f8": "F64", "f4": "F32", "f2": "F16"}


def artefact(type_, header=None, tensors=None, *, subject=None, models=None):
    """Return an artefact of a contribution or of a set of them, whose digest follows from what it holds."""
    arrays = dict(tensors or {})
    bond = {"subject": subject.hex()} if SCOPES[type_] == "contribution" else bond_of(models)
    full = {"artefact": f"{type_}/1", **bond, **(header or {})}
    specs = specs_of(arrays)
    parts = [encode([name, array.dtype.str, list(array.shape)]) for name, array in sorted(arrays.items())]
    parts += [array.tobytes() for _, array in sorted(arrays.items())]
    name = digest("test/artefact", encode_header(full), *parts)
    return ArtefactArrays(Artefact(digest=name, type=type_, header=full, specs=specs), arrays)


def bond_of(models):
    """Return the header fields that bind an artefact to a set of contribution digests."""
    return {"set_root": used_root(models).hex(), "contributions": sorted(name.hex() for name in models)}


def specs_of(arrays):
    """Return the specs of arrays in byte order of their names."""
    return tuple(
        TensorSpec(name=name, dtype=DTYPES[arrays[name].dtype.str[1:]], shape=arrays[name].shape)
        for name in sorted(arrays, key=str.encode)
    )
