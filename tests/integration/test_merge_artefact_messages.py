"""What is wrong with artefacts is said of the file that it is wrong with, and what to do about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from crdt_merge_node.resolve.describe import describe_file
from crdt_merge_node.resolve.merge import merge_files
from crdt_merge_protocol.errors import (
    ArtefactInvalidError,
    ArtefactMissingError,
    ArtefactStaleError,
    ParameterError,
    ResolveError,
    RoleMissingError,
)
from crdt_merge_protocol.limits import WEIGHT_ONE
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.strategies.artefacts import SCOPES, encode_header
from safetensors.numpy import save_file
from support.synthetic import MAKERS

SHAPES = {"model.embed_tokens.weight": (6, 4), "w": (4, 5), "b": (4,)}
STRATEGIES = {
    "fisher_diag": "fisher_merge", "gram": "regmean", "snip_score": "led_merge", "dam_coeff": "dam",
    "lambda_table": "ada_merging", "rank_masks": "adarank", "genome": "evolutionary_merge",
    "surgery_adapter": "representation_surgery",
}  # fmt: skip
WITH_TENSORS = [name for name in STRATEGIES if name not in ("lambda_table", "genome")]
OTHER = {"base": "11" * 32}


class Room:
    """Models and artefacts in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.base, *self.models = (self._model(seed) for seed in range(4))

    def _model(self, seed: int) -> Path:
        rng = np.random.default_rng(seed)
        tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        save_file(tensors, self.path / f"model-{seed}")
        return self.path / f"model-{seed}"

    def artefact(
        self, name: str, type_: str, of: list[Path], *, edit=None, weight: int = 1, **fields
    ) -> Path:
        """Write an artefact of the one model, or of a set of them."""
        digests = sorted(describe_file(path, weight=weight * WEIGHT_ONE).digest for path in of)
        zeros = {key: np.zeros(shape, np.float32) for key, shape in SHAPES.items()}
        header, tensors = MAKERS[type_](zeros, len(of), np.random.default_rng(5))
        bond = (
            {"subject": digests[0].hex()}
            if SCOPES[type_] == "contribution"
            else {"set_root": used_root(digests).hex(), "contributions": [digest.hex() for digest in digests]}
        )
        if edit is not None:
            tensors = edit(dict(sorted(tensors.items())))
        raw = encode_header({"artefact": f"{type_}/1", **bond, **header, **fields})
        save_file({"artefact": np.frombuffer(raw, np.uint8), **tensors}, self.path / name)
        return self.path / name

    def good(self, type_: str) -> list[Path]:
        models = self.models[:2]
        if SCOPES[type_] == "set":
            return [self.artefact(type_, type_, models)]
        return [self.artefact(f"{type_}-{n}", type_, [model]) for n, model in enumerate(models)]

    def merge(self, type_: str, artefacts: list[Path], strategy: str = ""):
        return merge_files(
            self.models[:2], self.path / "out", strategy=strategy or STRATEGIES[type_], base=self.base,
            artefacts=artefacts, params={"lambda": "1"} if strategy == "negative_merge" else {},
        )  # fmt: skip

    def refused(self, type_: str, artefacts: list[Path], strategy: str = "") -> ResolveError:
        with pytest.raises(ResolveError) as caught:
            self.merge(type_, artefacts, strategy)
        assert not (self.path / "out").exists()
        return caught.value


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def _first(tensors, values):
    name = next(iter(tensors))
    return {**tensors, name: values(tensors[name])}


WRONG = {
    "shape": lambda tensors: _first(tensors, lambda _: np.zeros((3, 3), np.float32)),
    "type": lambda tensors: _first(tensors, lambda x: np.asarray(x, np.float64)),
    "NaN": lambda tensors: _first(tensors, lambda x: np.full_like(x, np.nan)),
    "extra": lambda tensors: {**tensors, "zzz": np.zeros(2, np.float32)},
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("type_", WITH_TENSORS)
def test_a_wrong_artefact_is_named_with_its_file_and_tensor_and_the_remedy(
    room: Room, type_: str, wrong: str
) -> None:
    *_, last = room.good(type_)
    models = room.models[:1] if SCOPES[type_] == "contribution" else room.models[:2]
    bad = room.artefact("bad-one", type_, models, edit=WRONG[wrong])

    error = room.refused(type_, [bad, last] if SCOPES[type_] == "contribution" else [bad])

    assert isinstance(error, ArtefactInvalidError)
    assert "/bad-one: " in error.message
    assert type_ in error.message
    assert f"artefact show {bad} --like MODEL" in error.hint


@pytest.mark.parametrize("type_", STRATEGIES)
def test_an_artefact_for_another_base_is_stale_and_named(room: Room, type_: str) -> None:
    models = room.models[:1] if SCOPES[type_] == "contribution" else room.models[:2]
    rest = room.good(type_)[1:]

    error = room.refused(type_, [room.artefact("of-another", type_, models, **OTHER), *rest])

    assert isinstance(error, ArtefactStaleError)
    assert "/of-another): it was made for another base" in error.message
    assert "fallback=" in error.hint


@pytest.mark.parametrize("type_", STRATEGIES)
def test_two_for_one_purpose_are_both_named(room: Room, type_: str) -> None:
    good = room.good(type_)
    models = room.models[:1] if SCOPES[type_] == "contribution" else room.models[:2]
    again = room.artefact("again", type_, models, note="another")

    error = room.refused(type_, [*good, again])

    assert isinstance(error, ParameterError)
    assert f"{good[0]} and {again}" in error.message
    assert room.merge(type_, [*good, good[0]]).effective_strategy == STRATEGIES[type_]


def test_one_of_the_same_model_with_another_weight_is_of_another_contribution(room: Room) -> None:
    heavy = room.artefact("heavy", "fisher_diag", room.models[:1], weight=2)

    error = room.refused("fisher_diag", [heavy, *room.good("fisher_diag")[1:]])

    assert isinstance(error, ArtefactMissingError)
    assert "model-1" in error.message
    assert "/heavy): contribution" in error.message
    assert "one model with one weight" in error.hint


def test_who_lacks_a_role_is_named_by_file_with_the_roles_given_in_vain(room: Room) -> None:
    raw = [
        encode_header({"artefact": "role/1", "role": "forget", "subject": describe_file(path).digest.hex()})
        for path in room.models[1:]
    ]
    roles = [room.path / "role-1", room.path / "role-2"]
    for path, header in zip(roles, raw, strict=True):
        save_file({"artefact": np.frombuffer(header, np.uint8)}, path)

    error = room.refused("role", roles, "negative_merge")

    assert isinstance(error, RoleMissingError)
    assert "model-1)" in error.message
    assert "/role-2): contribution" in error.message
