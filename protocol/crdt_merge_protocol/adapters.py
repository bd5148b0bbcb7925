"""Low-rank adapters as contributions: tensors as PEFT names them, and a header that gives them meaning.

An adapter of rank r gives a module two factors, A ``(r, in)`` and B ``(out, r)``, and stands for the
difference ``s B A`` of the module's weight, with ``s = alpha / r``, or ``alpha / sqrt(r)`` with
rank-stabilised scaling. A contribution of type ``adapter`` holds the factors untouched, in their own element
types, and one tensor more, the *header*: named ``adapter``, U8, one axis, the bytes of a JSON object in
canonical form. The scale is not folded into B: that would round B wherever s is no power of two, and no
factor would be the blob that a peer has already. The rank is not said again: it is the first axis of A.

Names are those of PEFT in one spelling, ``base_model.model.<module>.lora_A.weight``. What depends on the
base's weights (DoRA), or is no pair of factors, is no adapter here.

Source: Hu et al., LoRA, ICLR 2022, arXiv:2106.09685; Kalajdzievski, rsLoRA, 2023, arXiv:2312.03732; the
documented file format of PEFT 0.21.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .adapter_rules import AdapterRules
from .blobs import OUTPUT_DTYPES, Schema, TensorSpec
from .errors import DTypeMismatchError, ParameterError, ResolveError, ShapeMismatchError
from .limits import ADAPTER_HEADER_BYTES_MAX
from .quarantine import weight_problem
from .strategies.artefact_fields import HeaderReader, decimal_of

ADAPTER: Final = "adapter"
"""The type of the contributions that are adapters, and the name of their header tensor."""
PREFIX: Final = "base_model.model."
FORMAT: Final = "lora/1"
BIASES: Final = ("none", "lora_only", "all")
"""Which biases an adapter saves, in PEFT's words, by how many they are."""
_FACTOR: Final = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(\.weight)?")

_WRAPPED: Final = re.compile(r"\.(base_layer|modules_to_save)\.")
"""Where PEFT puts a layer that it wraps, and the copy of one that is trained whole."""
_ORIGINAL: Final = re.compile(r"\.original_module\.")
"""Where it keeps the base's own beside such a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterHeader:
    """What of an adapter's configuration decides the differences that it stands for, and a few names."""

    alpha: str
    """Decimal text."""
    alpha_pattern: Mapping[str, str] = field(default_factory=dict)
    """Of modules that have another: by their whole name, no pattern is left to match."""
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    """Weights are saved input first, so the difference is the transpose of ``B A``."""
    base_model: str = ""
    """What the author's configuration calls the base; a name on the author's machine."""
    bias: str = "none"
    """One of :data:`BIASES`."""
    modules_to_save: tuple[str, ...] = ()
    """Sorted."""
    task_type: str = ""

    def scale(self, module: str, rank: int) -> float:
        """Return what the product of a module's factors is multiplied by."""
        number = decimal_of(self.alpha_pattern.get(module, self.alpha))
        assert number is not None, "a header is checked when it is read"
        return float(number) / math.sqrt(rank) if self.use_rslora else float(number) / rank

    def encode(self) -> bytes:
        """Return the canonical JSON."""
        fields = {
            ADAPTER: FORMAT,
            "alpha": self.alpha,
            "alpha_pattern": dict(self.alpha_pattern),
            "base_model": self.base_model,
            "bias": self.bias,
            "fan_in_fan_out": self.fan_in_fan_out,
            "modules_to_save": list(self.modules_to_save),
            "task_type": self.task_type,
            "use_rslora": self.use_rslora,
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Pair:
    """The two factors of a module."""

    down: TensorSpec
    """A."""
    up: TensorSpec
    """B."""
    is_embedding: bool

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.down.shape[0]

    def is_transposed(self, fan_in_fan_out: bool) -> bool:
        """Tell whether the weight is the transpose of the product; kernels of convolutions never are."""
        return self.is_embedding or (fan_in_fan_out and len(self.down.shape) == 2)

    def weight_shape(self, fan_in_fan_out: bool) -> tuple[int, ...]:
        """Return the shape of the weight that the factors change."""
        outputs, inputs = self.up.shape[0], self.down.shape[1:]
        return (*inputs, outputs) if self.is_transposed(fan_in_fan_out) else (outputs, *inputs)


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """What tensors an adapter has."""

    pairs: Mapping[str, Pair]
    """By module, in byte order."""
    others: Mapping[str, TensorSpec]
    """Those that are saved whole (``modules_to_save``, biases), by their name in the base, in byte order.

    With biases PEFT saves the layers that it wraps and their copies as well: what an adapter has besides the
    tensor of that very name is not among these."""


def canonical_name(name: str) -> str:
    """Return the one spelling of a tensor's name; files may leave out the prefix or the ``.weight``."""
    bare = name.removeprefix(PREFIX)
    factor = _FACTOR.fullmatch(bare)
    if factor is None:
        return f"{PREFIX}{bare}"
    return factor_name(factor["module"], factor["side"], is_embedding=bool(factor["kind"]))


def factor_name(module: str, side: str, *, is_embedding: bool) -> str:
    """Return the name of factor ``A`` or ``B`` of a module."""
    return f"{PREFIX}{module}." + (f"lora_embedding_{side}" if is_embedding else f"lora_{side}.weight")


def saved_name(name: str, modules: Container[str]) -> str:
    """Return the name under which PEFT looks for a tensor of the base in an adapter of these modules."""
    module, _, last = name.rpartition(".")
    wrapped = f"{module}.base_layer.{last}" if module in modules else name
    return f"{PREFIX}{wrapped}"


def weight_name(module: str) -> str:
    """Return the name that the weight of a module has in the base."""
    return f"{module}.weight"


def read_layout(specs: Iterable[TensorSpec]) -> AdapterLayout:
    """Return the pairs of factors among tensors in canonical spelling, the header aside.

    Raises:
        ParameterError: Something is no part of an adapter, or half of a pair; the message names it.
        ShapeMismatchError: Factors do not fit one another.
        DTypeMismatchError: A tensor is none of real numbers.
    """
    sides: dict[str, dict[str, TensorSpec]] = {}
    embeddings: set[str] = set()
    others: dict[str, TensorSpec] = {}
    for spec in specs:
        bare = spec.name.removeprefix(PREFIX)
        if bare == spec.name or canonical_name(spec.name) != spec.name:
            raise ParameterError(f"tensor {spec.name} has no name of an adapter's.")
        if spec.dtype not in OUTPUT_DTYPES:
            raise DTypeMismatchError(f"tensor {spec.name} has element type {spec.dtype}.")
        factor = _FACTOR.fullmatch(bare)
        if factor is None:
            if ".lora_" in bare:
                raise ParameterError(f"tensor {spec.name} is no factor that is understood here.")
            name = _WRAPPED.sub(".", bare)
            if not _ORIGINAL.search(bare) and (name == bare or name not in others):
                others[name] = spec
            continue
        if factor["side"] in sides.setdefault(factor["module"], {}):
            raise ParameterError(f"module {factor['module']} is an embedding and another layer at once.")
        sides[factor["module"]][factor["side"]] = spec
        if factor["kind"]:
            embeddings.add(factor["module"])
    if not sides:
        raise ParameterError("there are no factors of an adapter.")
    pairs = {module: _pair(module, sides[module], embeddings) for module in sorted(sides, key=str.encode)}
    return AdapterLayout(pairs, dict(sorted(others.items(), key=lambda item: item[0].encode())))


def _pair(module: str, found: Mapping[str, TensorSpec], embeddings: set[str]) -> Pair:
    if len(found) != 2:
        raise ParameterError(f"module {module} has factor {', '.join(found)} alone.")
    pair = Pair(found["A"], found["B"], module in embeddings)
    down, up = pair.down.shape, pair.up.shape
    is_fitting = len(down) >= 2 and len(down) == len(up) and down[0] == up[1] and all((*down, *up))
    if not is_fitting or (pair.is_embedding and len(down) != 2):
        raise ShapeMismatchError(f"factors of {module} are {list(down)} and {list(up)}.")
    if any(size != 1 for size in up[2:]):
        raise ShapeMismatchError(f"factor B of {module} is a convolution of {list(up[2:])}.")
    return pair


def read_adapter_header(data: bytes) -> AdapterHeader:
    """Return the header in canonical JSON.

    Raises:
        ParameterError: Not such a header; the message says every reason.
    """
    if len(data) > ADAPTER_HEADER_BYTES_MAX:
        raise ParameterError(f"its header has {len(data)} bytes, over {ADAPTER_HEADER_BYTES_MAX}.")
    try:
        found = json.loads(data)
        # Half a surrogate pair can be escaped in JSON but not be written, shown or sent as text.
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ParameterError("its header is no JSON object.")
    if found.get(ADAPTER) != FORMAT:
        raise ParameterError(f"its header is not of format {FORMAT}.", hint="A newer release may read it.")
    reader = HeaderReader(found)
    reader.take(ADAPTER)
    alphas: dict[str, str] = {}
    for module, text in reader.mapping("alpha_pattern").items():
        if decimal_of(text) is None:
            reader.add("alpha_pattern holds what is no number as text")
        alphas[module] = text
    reader.decimal("alpha")
    header = AdapterHeader(
        alpha=str(found.get("alpha")),
        alpha_pattern=alphas,
        use_rslora=reader.boolean("use_rslora"),
        fan_in_fan_out=reader.boolean("fan_in_fan_out"),
        base_model=_text(reader, "base_model"),
        bias=reader.choice("bias", BIASES) or "",
        modules_to_save=tuple(sorted(set(reader.names("modules_to_save")))),
        task_type=_text(reader, "task_type"),
    )
    problems = reader.finish()
    if not problems and header.encode() != data:
        problems = ["it is not in canonical form"]
    if problems:
        raise ParameterError(f"its header is not right: {'; '.join(problems)}.")
    return header


def _text(reader: HeaderReader, name: str) -> str:
    """Return a short text, which may be empty."""
    return (reader.text(name) or "") if reader.header.get(name) != "" else str(reader.take(name))


def judge_specs(
    rules: AdapterRules, schema: Schema, weight_cap: int, specs: Iterable[TensorSpec], weight: int
) -> str:
    """Return why tensors cannot be an adapter of a group, whatever their header says; empty if they can.

    Args:
        rules: Of the group's policy.
        schema: Of the group's policy: the weights that adapters may change, under their names in the base.
        weight_cap: Of the group's policy, over 2^32.
        specs: Of the contribution, the header among them.
        weight: Of the contribution, over 2^32.
    """
    if problem := weight_problem(weight_cap, weight):
        return problem
    try:
        layout = read_layout(_without_header(specs))
    except ResolveError as error:
        return error.message.removesuffix(".")
    weights = {spec.name: spec for spec in schema.specs}
    return next(_problems(rules, weights, layout), "")


def _problems(rules: AdapterRules, weights: Mapping[str, TensorSpec], layout: AdapterLayout) -> Iterator[str]:
    for module, pair in layout.pairs.items():
        if pair.rank > rules.rank_max:
            yield f"the rank of {module} is {pair.rank}, over the group's cap {rules.rank_max}"
        if weight_name(module) not in weights:
            yield f"module {module} is not the group's: its schema has no tensor {weight_name(module)}"
        for spec in (pair.down, pair.up):
            if spec.dtype == "F64":  # No product of two others can overflow a double.
                yield f"tensor {spec.name} has element type F64; a group takes F32, F16 and BF16"
    for name, spec in layout.others.items():
        known = weights.get(name)
        if known is None:
            yield f"tensor {name}, which it saves whole, is not in the group's schema"
        elif known.shape != spec.shape:
            yield f"tensor {name} has shape {list(spec.shape)}, expected {list(known.shape)}"


def judge_header(
    rules: AdapterRules, schema: Schema, specs: Iterable[TensorSpec], header: AdapterHeader
) -> str:
    """Return why an adapter whose tensors passed :func:`judge_specs` is none of a group's; empty if it is."""
    if rules.base_name and header.base_model != rules.base_name:
        return (
            f"it was trained from {_shown(header.base_model)}, the group's base is {_shown(rules.base_name)}"
        )
    weights = {spec.name: spec.shape for spec in schema.specs}
    for module, pair in read_layout(_without_header(specs)).pairs.items():
        shape, expected = pair.weight_shape(header.fan_in_fan_out), weights[weight_name(module)]
        if shape != expected:
            return f"module {module} has shape {list(shape)}, expected {list(expected)}"
    return ""


def header_problem(spec: TensorSpec | None) -> str:
    """Return why a tensor cannot be the header; empty if it can."""
    if spec is None or spec.dtype != "U8" or len(spec.shape) != 1:
        return f"it has no tensor {ADAPTER} that could be the header of an adapter"
    if not 0 < spec.nbytes <= ADAPTER_HEADER_BYTES_MAX:
        return f"its header has {spec.nbytes} bytes, 1 to {ADAPTER_HEADER_BYTES_MAX} are read"
    return ""


def schema_specs(layout: AdapterLayout, fan_in_fan_out: bool) -> list[TensorSpec]:
    """Return the tensors of a base that an adapter changes: the schema of a group that is like it."""
    specs = [
        TensorSpec(name=weight_name(module), dtype=pair.down.dtype, shape=pair.weight_shape(fan_in_fan_out))
        for module, pair in layout.pairs.items()
    ]
    return [*specs, *(TensorSpec(name=n, dtype=s.dtype, shape=s.shape) for n, s in layout.others.items())]


def _without_header(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    return [spec for spec in specs if spec.name != ADAPTER]


def _shown(name: Any) -> str:
    return repr(name[:100]) if name else "a base without a name"
