"""Merges that authors made up to stop the others: what is valid alone, at the ends of every range.

``Attack`` draws everything from one number: shapes, element types, values, weights, parameters within their
declared ranges, artefacts that pass every check. A group's resolve has a result for all of it
(STRATEGIES 1.12), so whoever drives one may only see ``EmptySet`` or a stand-in that the policy did not name.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
from crdt_merge_node.resolve.job import TensorSource, UsedArtefact, UsedModel
from crdt_merge_node.resolve.plan import build_job
from crdt_merge_protocol.blobs import (
    FLOAT_DTYPES,
    Manifest,
    ManifestEntry,
    Schema,
    TensorSpec,
    blob_digest_of,
    contribution_digest,
)
from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.limits import WEIGHT_MAX, WEIGHT_ONE
from crdt_merge_protocol.policy import Policy, sorted_params
from crdt_merge_protocol.resolve_key import used_root
from crdt_merge_protocol.strategies.artefact_checks import check_artefact, check_values
from crdt_merge_protocol.strategies.artefacts import (
    HEADER_TENSOR,
    SCOPES,
    Artefact,
    encode_header,
    read_header,
)
from crdt_merge_protocol.strategies.registry import get, plain_names

from .attack_artefacts import MAKERS

if TYPE_CHECKING:
    from crdt_merge_node.resolve.job import ResolveJob
    from crdt_merge_protocol.strategies.parameters import Parameter

NUMPY = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
SHAPES = ((), (0,), (0, 3), (3, 0), (1,), (1, 1), (1, 5), (5, 1), (7,), (2, 3), (6, 5), (3, 2, 1, 2))
NAMES = (
    "a", "b.bias", "model.embed_tokens.weight", "lm_head.weight", "layers.0.self_attn.q_proj.weight",
    "layers.0.mlp.up_proj.weight", "layers.0.norm.weight", "layers.1.self_attn.qkv_proj.weight",
)  # fmt: skip
KINDS = ("zero", "one", "largest", "signs", "least", "mixed", "powers", "grid", "plain", "same", "negated")
STAND_IN = "coordinate_median"


@dataclass(frozen=True)
class Attack:
    """One group and what it holds."""

    strategy: str
    params: dict[str, str]
    schema: Schema
    base: UsedModel | None
    models: tuple[UsedModel, ...]
    artefacts: tuple[UsedArtefact, ...]
    dtype: str

    def job(self) -> ResolveJob:
        """Return the job of the group's resolve, in this process."""
        policy = Policy(
            strategy=self.strategy,
            strategy_version=get(self.strategy).version,
            params=sorted_params(self.params),
            schema=self.schema.id,
            base=self.base.manifest.content if self.base else None,
            dtype=self.dtype,
        )
        return build_job(
            policy,
            self.schema,
            self.models,
            self.base,
            group_mode=True,
            artefacts=self.artefacts,
            workers=0,
        )

    def __str__(self) -> str:
        specs = ", ".join(f"{s.name}:{s.dtype}{list(s.shape)}" for s in self.schema.specs)
        weights = [model.weight for model in self.models]
        return f"{self.strategy} {self.params} of {len(self.models)} {weights} dtype {self.dtype!r} {specs}"


def attack(strategy: str, seed: int) -> Attack:
    """Return the attack on a strategy that follows from a number."""
    draw = random.Random(f"{strategy} {seed}")
    schema = _schema(draw)
    is_mixed = draw.random() < 0.2
    kinds = [draw.choice(KINDS) for _ in range(draw.choice((1, 1, 2, 2, 3, 5)))]
    base_values = _values(draw, schema, draw.choice(KINDS[:-2]), {})
    models: dict[bytes, tuple[UsedModel, dict[str, np.ndarray]]] = {}
    values = base_values
    for kind in kinds:
        values = _values(draw, schema, kind, values)
        weight = draw.choice((WEIGHT_ONE, WEIGHT_ONE, 1, WEIGHT_MAX, draw.randint(1, WEIGHT_MAX)))
        model = _used(schema, _cast(draw, schema, values) if is_mixed else values, weight)
        models[model.digest] = model, values
    used = tuple(models[digest][0] for digest in sorted(models))
    params = _params(draw, strategy, [model.digest for model in used])
    base = _used(schema, base_values, WEIGHT_ONE) if get(strategy).base != "unused" else None
    if base is None and "fallback" in params:  # Whatever stands in may want it.
        base = _used(schema, base_values, WEIGHT_ONE)
    dtype = draw.choice(("", "", "F16", "F32", "BF16", "F64"))
    return Attack(
        strategy=strategy,
        params=params,
        schema=schema,
        base=base,
        models=used,
        artefacts=tuple(_artefacts(draw, strategy, schema, [model.digest for model in used])),
        dtype=f"any:{dtype}".rstrip(":") if is_mixed else dtype,
    )


def _schema(draw: random.Random) -> Schema:
    float_type = draw.choice(("F64", "F32", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"))
    specs = [
        TensorSpec(
            name=name,
            dtype=float_type if draw.random() < 0.9 else draw.choice(("I64", "U8", "BOOL", "F32", "F16")),
            shape=draw.choice(SHAPES),
        )
        for name in draw.sample(NAMES, draw.randint(1, 5))
    ]
    return Schema.of(specs)


def _values(
    draw: random.Random, schema: Schema, kind: str, before: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(draw.getrandbits(32))
    return {spec.name: _tensor(rng, spec, kind, before.get(spec.name)) for spec in schema.specs}


def _tensor(rng: np.random.Generator, spec: TensorSpec, kind: str, before: np.ndarray | None) -> np.ndarray:
    type_, shape = NUMPY[spec.dtype], spec.shape
    if spec.dtype in ("I64", "I8", "U8", "BOOL"):
        return rng.integers(0, 2, shape).astype(type_)
    if kind in ("same", "negated") and before is not None:
        return np.asarray(before if kind == "same" else -before)
    limits = ml_dtypes.finfo(type_)
    largest, least = type_(limits.max), type_(limits.smallest_subnormal)
    signs = rng.choice(np.array([-1, 1]), shape).astype(type_)
    plain = np.asarray(rng.normal(size=shape)).astype(type_)
    made = {
        "zero": lambda: np.zeros(shape, type_) * signs,  # Of both signs.
        "one": lambda: np.ones(shape, type_),
        "largest": lambda: np.full(shape, largest, type_),
        "signs": lambda: np.asarray(np.full(shape, largest, type_) * signs),
        "least": lambda: np.asarray(np.full(shape, least, type_) * signs),
        "mixed": lambda: np.asarray(rng.choice(np.array([0, 1, -1, largest, -largest, least], type_), shape)),
        "powers": lambda: _powers(rng, limits, shape, type_),
        "grid": lambda: np.asarray(rng.integers(-2, 3, shape)).astype(type_),
    }
    return np.asarray(made[kind]() if kind in made else plain).astype(type_).reshape(shape)


def _powers(
    rng: np.random.Generator, limits: ml_dtypes.finfo, shape: tuple[int, ...], type_: type
) -> np.ndarray:
    exponents = rng.integers(limits.minexp, limits.maxexp, shape)
    return np.asarray(np.ldexp(rng.uniform(-1, 1, shape), exponents)).astype(type_)


def _cast(draw: random.Random, schema: Schema, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the values in any float types that can hold them."""
    found = {}
    for spec in schema.specs:
        array = values[spec.name]
        if spec.dtype in FLOAT_DTYPES:
            with np.errstate(over="ignore"):
                wider = array.astype(NUMPY[draw.choice(("F64", "F32"))])
            array = wider if np.isfinite(wider).all() else array
        found[spec.name] = array
    return found


def _used(schema: Schema, values: dict[str, np.ndarray], weight: int) -> UsedModel:
    names = {np.dtype(type_): name for name, type_ in NUMPY.items()}
    data = {name: np.ascontiguousarray(array).tobytes() for name, array in values.items()}
    manifest = Manifest.of(
        ManifestEntry(
            spec=TensorSpec(name=spec.name, dtype=names[values[spec.name].dtype], shape=spec.shape),
            blob=blob_digest_of(data[spec.name]),
        )
        for spec in schema.specs
    )
    sources = {name: TensorSource(None, 0, len(raw), raw) for name, raw in data.items()}
    name = contribution_digest(kind="model", content=manifest.content, weight=weight)
    return UsedModel(name, weight, manifest, sources)


def _params(draw: random.Random, strategy: str, digests: list[bytes]) -> dict[str, str]:
    """Return parameters in their ranges, and a stand-in wherever one can be named, as a policy has to."""
    declared = get(strategy).parameters
    fixed = {"negative_merge": {"lambda": "1"}}.get(strategy, {})
    if any(parameter.name == "fallback" for parameter in declared):
        fixed["fallback"] = draw.choice((STAND_IN, draw.choice(plain_names())))
    some = draw.sample(declared, draw.randint(0, len(declared)))
    for _ in range(20):
        params = {p.name: _text(draw, p, digests) for p in some if p.type != "strategy"} | fixed
        try:
            get(strategy).validate(params)
        except ParameterError:
            some = draw.sample(declared, draw.randint(0, max(0, len(some) - 1)))
            continue
        return params
    return dict(fixed)


def _text(draw: random.Random, parameter: Parameter, digests: list[bytes]) -> str:
    if parameter.type == "boolean":
        return draw.choice(("true", "false"))
    if parameter.type == "choice":
        return draw.choice(parameter.choices)
    if parameter.type == "text":
        return draw.choice((parameter.default, draw.choice(digests).hex(), "0" * 8, "x"))
    ends = [text for text in (parameter.low, parameter.high, *parameter.choices) if text is not None]
    if parameter.type == "integer":
        low = int(parameter.low or 0)
        scalar = draw.choice([*ends, str(draw.randint(low, min(int(parameter.high or low + 9), low + 9)))])
    else:
        low, high = Fraction(parameter.low or -9), Fraction(parameter.high or 9)
        inside = f"{float(low + (high - low) * draw.randint(1, 63) / 64):.17f}"
        scalar = draw.choice([*ends, parameter.default, inside])
    if "contribution" in parameter.per and draw.random() < 0.3 and ends:
        return f"#{draw.choice(digests).hex()[:12]}={draw.choice(ends)};{scalar}"
    if "tensor" in parameter.per and draw.random() < 0.3 and ends:
        return f"*.weight={draw.choice(ends)};{scalar}"
    return scalar


def _artefacts(
    draw: random.Random, strategy: str, schema: Schema, digests: list[bytes]
) -> list[UsedArtefact]:
    """Return what the strategy works with, all of it valid; now and then something is lacking."""
    made = []
    for need in get(strategy).artefacts:
        if SCOPES[need.type] == "set":
            if draw.random() < 0.9:
                bond = {
                    "set_root": used_root(digests).hex(),
                    "contributions": sorted(name.hex() for name in digests),
                }
                made.append(_artefact(draw, need.type, bond, schema, len(digests)))
            continue
        for name in digests:
            # What one contribution lacks has set that one aside before there is a job.
            if need.is_optional and draw.random() < 0.2:
                continue
            made.append(_artefact(draw, need.type, {"subject": name.hex()}, schema, 1))
    return [item for item in made if item is not None]


def _artefact(
    draw: random.Random, type_: str, bond: dict[str, object], schema: Schema, count: int
) -> UsedArtefact | None:
    rng = np.random.default_rng(draw.getrandbits(32))
    model = [spec for spec in schema.specs if spec.dtype in FLOAT_DTYPES]
    for _ in range(8):
        fields, tensors = MAKERS[type_](draw, rng, model, count)
        header = read_header(type_, encode_header({"artefact": f"{type_}/1", **bond, **fields}))
        specs = [TensorSpec(name=n, dtype="F32", shape=x.shape) for n, x in sorted(tensors.items())]
        bad = check_artefact(type_, header, specs, schema)
        if not bad and all(
            check_values(type_, n, x.reshape(-1).astype(float)) is None for n, x in tensors.items()
        ):
            return _used_artefact(type_, header, tensors)
    return None


def _used_artefact(type_: str, header: dict[str, object], tensors: dict[str, np.ndarray]) -> UsedArtefact:
    data = {name: array.tobytes() for name, array in tensors.items()}
    raw = encode_header(header)
    shapes = {name: (array.shape, "F32") for name, array in tensors.items()}
    shapes[HEADER_TENSOR], data[HEADER_TENSOR] = ((len(raw),), "U8"), raw
    manifest = Manifest.of(
        ManifestEntry(spec=TensorSpec(name=name, dtype=dtype, shape=shape), blob=blob_digest_of(data[name]))
        for name, (shape, dtype) in shapes.items()
    )
    name = contribution_digest(kind=type_, content=manifest.content, weight=WEIGHT_ONE)
    specs = tuple(entry.spec for entry in manifest.entries if entry.spec.name != HEADER_TENSOR)
    sources = {key: TensorSource(None, 0, len(value), value) for key, value in data.items()}
    return UsedArtefact(Artefact(digest=name, type=type_, header=header, specs=specs), manifest, sources)
