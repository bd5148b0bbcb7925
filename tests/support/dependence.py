"""Merges that differ in everything but one tensor, and the keys that a tensor has in each of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

import numpy as np
from crdt_merge_protocol.canonical import digest
from crdt_merge_protocol.strategies.contract import Block
from crdt_merge_protocol.strategies.dependence import tensor_key
from crdt_merge_protocol.strategies.parameters import PAPER, Table
from crdt_merge_protocol.strategies.registry import get

from .conformance import COUNT, SHAPES, model
from .synthetic import EXTRA_PARAMETERS, NAMES, case_of

RENAMED = tuple(bytes([2 * i + 3, i]) + bytes(30) for i in range(16))
"""Other digests in the same order."""


@dataclass(frozen=True)
class World:
    """A merge, with everything that can be changed about it."""

    strategy: str
    models: list
    base: dict
    params: dict = field(default_factory=dict)
    names: tuple = NAMES
    weights: tuple = ()
    seed: bytes = b"s"

    @cached_property
    def case(self):
        params = self.params
        if "origin" in EXTRA_PARAMETERS.get(self.strategy, {}):  # The same model, whatever it is called.
            params = {"origin": self.names[0].hex()[:8], **params}
        return case_of(self.strategy, self.models, self.base, params, names=self.names)

    @cached_property
    def context(self):
        weights = tuple(map(Fraction, self.weights)) or self.case.context.weights
        return replace(self.case.context, weights=weights, seed=self.seed)

    @cached_property
    def tensors(self):
        """The merge: float64 bytes by tensor."""
        weights = self.weights or [1] * len(self.models)
        merged = self.case.merge(digests=self.names[: len(self.models)], weights=weights, seed=self.seed)
        return {name: values.tobytes() for name, values in merged.tensors.items()}

    def state(self, hidden=()):
        """Return the state after all passes, of which tensors ``hidden`` by index were not shown."""
        strategy, context, state = get(self.strategy), self.context, None
        for pass_no in range(strategy.pass_count(context)):
            partials = [
                (block.key, strategy.observe(context, state, pass_no, block))
                for block in blocks_of(self)
                if block.tensor_index not in hidden
                and strategy.needs(context, state, pass_no, block.tensor_index)
            ]
            state = strategy.end_pass(context, state, pass_no, strategy.compact(context, pass_no, partials))
        return state

    def key(self, tensor):
        """Return the key of a tensor; None: it has none."""
        strategy, context = get(self.strategy), self.context
        index = [spec.name for spec in context.specs].index(tensor)
        found = strategy.dependence(context, index)
        if found is None:
            return None
        arrays = {item.artefact.digest: item.tensors for item in self.case.artefacts}
        parts = [
            arrays[context.artefacts[wanted.artefact].digest][wanted.tensor]
            for wanted in strategy.wants(context, index)
        ]
        base = blob(self.base[tensor]) if strategy.uses_base(context) else None
        rest = (base, tuple(map(blob, parts)))
        return tensor_key(
            found, context.specs[index], "F32", [blob(each[tensor]) for each in self.models], rest
        )


def blocks_of(world):
    """Yield every tensor of a world as one block."""
    strategy, context = get(world.strategy), world.context
    arrays = {item.artefact.digest: item.tensors for item in world.case.artefacts}
    for index, spec in enumerate(context.specs):
        if spec.numel:
            yield Block(
                tensor_index=index,
                start=0,
                stop=spec.numel,
                inputs=[flat(each[spec.name]) for each in world.models],
                base=flat(world.base[spec.name]) if strategy.uses_base(context) else None,
                artefacts=[
                    flat(arrays[context.artefacts[wanted.artefact].digest][wanted.tensor])
                    for wanted in strategy.wants(context, index)
                ],
            )


def flat(values):
    return np.asarray(values, np.float64).reshape(-1)


def blob(values):
    """Return a stand-in for a blob digest."""
    return digest("test/blob", values.tobytes())


def world_of(strategy, params=None, *, seed=1):
    rng = np.random.default_rng(seed)
    return World(strategy, [model(rng) for _ in range(COUNT)], model(rng), params or {})


def elsewhere(world, tensor, rng):
    """Return the world with every other tensor of every model and of the base drawn anew."""
    return replace(
        world,
        models=[{**model(rng), tensor: each[tensor]} for each in world.models],
        base={**model(rng), tensor: world.base[tensor]},
    )


def renamed(world):
    """Return the world with other digests, in the same order, and hence another seed."""
    return replace(world, names=RENAMED, seed=b"another")


def changes(world, tensor, rng):
    """Yield (what, world) for changes that may or may not show in a tensor."""
    other = next(name for name in SHAPES if name not in ("", "c", tensor))
    yield "another order", replace(world, models=world.models[::-1])
    more = model(rng)
    yield "one more, the last", replace(world, models=[*world.models, more])
    yield "one more, the first", replace(world, models=[more, *world.models])
    yield "one fewer", replace(world, models=world.models[:-1])
    yield "a weight", replace(world, weights=(2, *[1] * (COUNT - 1)))
    yield "no weight", replace(world, weights=(*[1] * (COUNT - 1), 0))
    yield "the seed", replace(world, seed=b"another")
    for where, values in (("a model", world.models[1]), ("the base", world.base)):
        changed = {**values, tensor: np.asarray(values[tensor] + np.float32(0.5), np.float32)}
        if where == "the base":
            yield where, replace(world, base=changed)
        else:
            yield where, replace(world, models=[world.models[0], changed, *world.models[2:]])
    for parameter in get(world.strategy).parameters:
        for text in texts_of(parameter, world):
            yield f"{parameter.name}={text}", replace(world, params={**world.params, parameter.name: text})
            if "tensor" in parameter.per:
                default = parameter.default_in(world.params.get("profile", PAPER))
                table = f"{other}={text};{world.params.get(parameter.name, default)}"
                yield (
                    f"{parameter.name} elsewhere",
                    replace(world, params={**world.params, parameter.name: table}),
                )
            if "contribution" in parameter.per:
                table = f"#{world.names[1].hex()[:16]}={text}"
                yield (
                    f"{parameter.name} of one",
                    replace(world, params={**world.params, parameter.name: table}),
                )


def texts_of(parameter, world):
    """Return values that a parameter may take, other than the one it has."""
    if parameter.type == "boolean":
        found = ["true", "false"]
    elif parameter.type == "choice":
        found = list(parameter.choices)
    elif parameter.type in ("decimal", "integer"):
        found = ["0.25", "0.5"] if parameter.type == "decimal" else ["1", "2"]
    else:
        found = ["salt"] if parameter.name == "seed_salt" else []
    return [text for text in found if text != world.params.get(parameter.name, parameter.default)]


def is_merged(world):
    """Tell whether the strategy takes these parameters and inputs; changes are made blindly."""
    strategy = get(world.strategy)
    try:
        if world.case.unmet is not None:
            return False
        strategy.check(world.context)
    except Exception as error:
        if type(error).__module__ != "crdt_merge_protocol.errors":
            raise
        return False
    return not any(isinstance(value, Table) and not value.rows for value in world.context.params.values())
