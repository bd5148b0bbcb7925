"""Artefacts come from strangers: whatever a header says, it is judged, and what passes can be used."""

import json

import numpy as np
import pytest
from crdt_merge_protocol.blobs import Schema, TensorSpec
from crdt_merge_protocol.errors import ArtefactInvalidError, ArtefactMissingError, ResolveError
from crdt_merge_protocol.strategies.artefact_checks import check_artefact
from crdt_merge_protocol.strategies.artefacts import SCOPES, encode_header, read_header
from crdt_merge_protocol.strategies.genome import decode
from crdt_merge_protocol.strategies.reference import merge_arrays
from hypothesis import given
from hypothesis import strategies as st
from support.artefacts import artefact, bond_of
from support.profile import examples

PROFILE = examples(60)
DIGESTS = [bytes([i]) * 32 for i in (1, 2)]
SCHEMA = Schema.of(
    [TensorSpec(name="b", dtype="F32", shape=(3,)), TensorSpec(name="w", dtype="F16", shape=(3, 4))]
)
FIELDS = (
    "n_samples", "label_mode", "loss", "n_tokens", "inputs", "transposed", "form", "role", "r", "alpha",
    "use_rslora", "fan_in_fan_out", "target_modules", "rank_pattern", "alpha_pattern", "scopes", "rows",
    "origin", "initial_ratio", "inner", "params", "layer_groups", "search", "note", "contributions",
)  # fmt: skip
WORDS = st.sampled_from(
    ["match", "lambda", "values", "mean", "variance", "count", "b", "w", "*", "0.5", "1", "[", "density", ""]
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-(10**20), 10**20), WORDS, st.text(max_size=9))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["b", "w", "base/w", "self/w", "0/w", "1/w", "0/b", "00/w", "-1/w", "0/down", "1/up", "x"]
)
SPECS = st.lists(
    st.builds(
        lambda name, dtype, shape: TensorSpec(name=name, dtype=dtype, shape=tuple(shape)),
        NAMES,
        st.sampled_from(["F32", "BF16", "F64", "U8"]),
        st.lists(st.integers(0, 12), max_size=3),
    ),
    max_size=4,
    unique_by=lambda spec: spec.name,
)


@pytest.mark.parametrize("type_", SCOPES)
@PROFILE
@given(fields=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6), specs=SPECS)
def test_every_header_is_judged_without_an_exception(type_, fields, specs):
    bond = {"subject": "ab" * 32} if SCOPES[type_] == "contribution" else bond_of(DIGESTS)
    header = {"artefact": f"{type_}/1", **bond, **fields}

    read = read_header(type_, encode_header(header))

    found = check_artefact(type_, read, specs, SCHEMA)
    assert all(isinstance(problem, str) and problem.isascii() for problem in found)
    assert len(found) <= 16


@PROFILE
@given(data=st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_bytes_that_are_no_header_are_refused(data):
    for type_ in SCOPES:
        with pytest.raises(ArtefactInvalidError):
            read_header(type_, data)


@PROFILE
@given(
    inner=st.sampled_from(["ties", "linear", "dam", "slerp", "x", ""]),
    params=st.dictionaries(
        st.sampled_from(["density", "weight", "scope", "inner.x"]), st.text(max_size=6), max_size=2
    ),
    match=st.text(min_size=1, max_size=5),
    values=st.dictionaries(
        st.sampled_from(["density", "weight", "lambda"]),
        st.one_of(st.text("0.5;#=*", max_size=4), st.lists(st.sampled_from(["0.5", "1", "x"]), max_size=3)),
        max_size=2,
    ),
)
def test_a_genome_that_passes_is_run_or_refused(inner, params, match, values):
    header = {"inner": inner, "params": params, "layer_groups": [{"match": match, "values": values}]}
    item = artefact("genome", header, models=DIGESTS)
    if check_artefact("genome", item.artefact.header, (), SCHEMA):
        return
    models = [{"b": np.full(3, float(i)), "w": np.full((3, 4), float(i))} for i in (1, 2)]
    try:
        decode(item.artefact.header, DIGESTS)
    except ResolveError:
        with pytest.raises(ArtefactMissingError, match="cannot be run"):
            merge_arrays("genetic_merge", models, models[0], digests=DIGESTS, artefacts=[item])
        return
    out = merge_arrays("genetic_merge", models, models[0], digests=DIGESTS, artefacts=[item])
    assert np.isfinite(out.tensors["w"]).all()
