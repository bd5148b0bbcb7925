"""The format of every artefact, and what is checked before one is used (STRATEGIES 1.10).

This text is the specification; ``protocol/artefacts.md`` says the same to users. An artefact is a
safetensors file. Its tensor ``artefact`` (U8, one axis) holds the header, a JSON object in canonical form:
sorted keys, no blanks, ASCII, no number but whole ones; a real number is decimal text such as ``"0.3"``.
Every header has

- ``artefact``: ``<type>/1``;
- ``subject`` (types of one contribution): the contribution digest of the model, 64 hex digits; or
- ``set_root`` and ``contributions`` (types of a set): the used root of the models that it was trained for,
  and their contribution digests in ascending order, from which the root follows. Position i of any list, and
  the prefix ``i/`` of any tensor, mean the contribution at position i of that list;
- optionally ``base``, the content id of the base, and ``note``, free text. Other fields are refused.

T stands for the name of a floating point tensor of the model. Real elements are F32, F16 or BF16: in float64
no sum of their squares can overflow. A ``match`` is a shell pattern over T, of at most 16 wildcards; at most
256 rows have any. The first row that fits counts.

``fisher_diag`` (one contribution)
    Tensors T, of T's shape, >= 0: the diagonal of the Fisher information per parameter, a mean over samples.
    A tensor that is absent was frozen: it counts as zero. Header: ``n_samples`` >= 1; ``label_mode``
    ``expected`` (over all classes), ``sampled`` (labels drawn from the model) or ``empirical`` (true labels,
    another quantity: modes are never mixed in one merge); optionally ``loss``, text.
``gram`` (one contribution)
    Tensors of any name, one axis, d (d + 1) / 2 elements: the lower triangle, row by row, of
    G = sum of x x^T / n_tokens over the inputs x of a linear layer; element (i, j), j <= i, is at
    i (i + 1) / 2 + j. The diagonal is >= 0. Header: ``n_tokens`` >= 1; ``inputs``, an object from weight
    tensor T (two axes or more) to the name of the triangle, so that layers which share an input share one;
    optionally ``transposed``, a list of the T stored as [in, out] instead of [out, in]. d is the length of
    T's input axis; of a kernel [out, in, h, w] it is in h w.
``snip_score`` (one contribution)
    Tensors ``base/T`` and ``self/T``, of T's shape, >= 0: sum over samples of |parameter * gradient|, taken
    at the base and at the contribution's own weights, both on the data of its task. Both or neither; a T with
    neither is never selected. Header: ``n_samples`` >= 1; optionally ``form``: ``score``, or ``mask`` if the
    elements are 1 where a parameter is selected and 0 elsewhere.
``role`` (one contribution)
    No tensors. Header: ``role``, one of finetuned, safety, aligned, unaligned, forget, unlearned, base;
    optionally ``attribute``, a text: what was forgotten or unlearned.
``lora_meta`` (one contribution)
    No tensors. Header: ``r`` >= 1; ``alpha``, decimal text; ``use_rslora`` and ``fan_in_fan_out``, true or
    false; ``target_modules``, a list of texts; optionally ``rank_pattern``, module to whole number, and
    ``alpha_pattern``, module to decimal text.
``weight_scope`` (one contribution)
    No tensors. Header: ``scopes``, an object from T to ``{"mean": text, "variance": text >= 0, "count": n}``.
``lambda_table`` (set)
    No tensors. Header: ``rows``, a list of ``{"match": pattern, "lambda": [text, ...]}`` with one number per
    contribution. Every T needs a row that fits.
``rank_masks`` (set)
    Tensors ``i/T``, one axis, min(m, n) elements, 0 or 1: which singular values of the matrix
    T (m = its first axis, n = all others), in descending order, contribution i keeps. All i of a T or none; a
    T with none is not decomposed. Header: ``origin`` ``base`` or ``cart``; ``rows`` as in ``lambda_table``;
    optionally ``initial_ratio``, decimal text.
``dam_coeff`` (set)
    Tensors ``i/T`` for all i and all T, |c| <= 4: one element (a scalar), or the length of T's input axis, or
    T's shape (elementwise). The input axis is axis 1, or 0 of what ``transposed`` lists.
``surgery_adapter`` (set)
    Tensors ``i/down`` [r, d] and ``i/up`` [d, r] for each i that has a task: z' = z - up relu(down z).
    Header: ``inner``, the strategy of the backbone, and ``params``, an object from its parameters to their
    texts: what the adapters were trained on top of.
``genome`` (set)
    No tensors. Header: ``inner``, a strategy; ``params``, an object from its parameters to texts;
    ``layer_groups``, a list of ``{"match": pattern, "values": {parameter: text or [text, ...]}}``, a list
    with one text per contribution; optionally ``search``, an object of texts: how it was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from crdt_merge_protocol.blobs import FLOAT_DTYPES, Schema, TensorSpec
from crdt_merge_protocol.resolve_key import used_root

from .artefact_fields import NAME_CHARS_MAX, HeaderReader, decimal_of, input_axis, triangle_side, unmatched
from .artefacts import SCOPES

LABEL_MODES: Final = ("expected", "sampled", "empirical")
ROLES: Final = ("finetuned", "safety", "aligned", "unaligned", "forget", "unlearned", "base")
COEFFICIENT_MAX: Final = 4
"""Of DAM. The published ones stay near 1 / k."""
REAL_DTYPES: Final = frozenset({"F32", "F16", "BF16"})
CONTRIBUTIONS_MAX: Final = 4096

Specs = dict[str, TensorSpec]


def check_artefact(
    type_: str, header: Mapping[str, Any], specs: Iterable[TensorSpec], schema: Schema
) -> list[str]:
    """Return what is wrong with an artefact, one sentence each; nothing if it may be used.

    Args:
        type_: A key of ``SCOPES``.
        header: As :func:`~crdt_merge_protocol.strategies.artefacts.read_header` returns it.
        specs: Its tensors but the header.
        schema: Of the models that it speaks of.
    """
    reader = HeaderReader(header)
    model = {spec.name: spec for spec in schema.specs if spec.dtype in FLOAT_DTYPES}
    tensors = {spec.name: spec for spec in specs}
    for spec in tensors.values():
        if spec.dtype not in REAL_DTYPES:
            reader.add(f"tensor {spec.name} is {spec.dtype}, not one of {', '.join(sorted(REAL_DTYPES))}")
    if SCOPES[type_] == "set":
        _check_set(reader)
    _CHECKS[type_](reader, tensors, model)
    return reader.finish()


def check_values(
    type_: str, tensor: str, values: npt.NDArray[np.floating[Any]], start: int = 0
) -> str | None:
    """Return what is wrong with elements of one of an artefact's tensors, or None.

    Args:
        type_: A key of ``SCOPES``.
        tensor: The tensor's name, for the sentence.
        values: Flat elements, decoded; any range of the tensor.
        start: Flat index of the first of them.
    """
    if not np.isfinite(values).all():
        return f"tensor {tensor} holds NaN or infinity"
    if type_ in ("fisher_diag", "snip_score") and (values < 0).any():
        return f"tensor {tensor} holds negative values"
    if type_ == "gram" and (values[_diagonal(start, values.size)] < 0).any():
        return f"tensor {tensor} has negative values on the diagonal"
    if type_ == "rank_masks" and ((values != 0) & (values != 1)).any():
        return f"tensor {tensor} holds something other than 0 and 1"
    if type_ == "dam_coeff" and (np.abs(values) > COEFFICIENT_MAX).any():
        return f"tensor {tensor} holds coefficients over {COEFFICIENT_MAX}"
    return None


def _diagonal(start: int, size: int) -> npt.NDArray[np.int64]:
    """Return where, in a range of a packed triangle, the diagonal is: at i (i + 3) / 2 of the whole."""
    first = max(0, (math.isqrt(8 * start + 9) - 3) // 2 - 1)
    last = (math.isqrt(8 * (start + size) + 9) - 3) // 2 + 1
    rows = np.arange(first, last + 1, dtype=np.int64)
    places = rows * (rows + 3) // 2 - start
    found: npt.NDArray[np.int64] = places[(places >= 0) & (places < size)]
    return found


def _check_set(reader: HeaderReader) -> None:
    """Check the list of contributions against the root that binds the artefact."""
    names = reader.names("contributions")
    is_digest = all(len(name) == 64 and not set(name) - set("0123456789abcdef") for name in names)
    if not 0 < len(names) <= CONTRIBUTIONS_MAX or not is_digest or names != sorted(set(names)):
        reader.add("contributions is a list of contribution digests, ascending, each once")
    elif used_root(bytes.fromhex(name) for name in names).hex() != reader.header.get("set_root"):
        reader.add("set_root is not the root of the contributions that are listed")


def _count(reader: HeaderReader) -> int:
    names = reader.header.get("contributions")
    return len(names) if isinstance(names, list) else 0


def _check_shape(reader: HeaderReader, spec: TensorSpec, shape: Sequence[int]) -> None:
    if spec.shape != tuple(shape):
        reader.add(f"tensor {spec.name} has shape {list(spec.shape)}, expected {list(shape)}")


def _refuse_rest(reader: HeaderReader, tensors: Specs, expected: Iterable[str]) -> None:
    """Note tensors that the format, or the model, does not know."""
    known = set(expected)
    for name in sorted(tensors.keys() - known):
        reader.add(f"tensor {name} belongs to nothing of the model")


def _check_fisher(reader: HeaderReader, tensors: Specs, model: Specs) -> None:
    reader.integer("n_samples", 1)
    reader.choice("label_mode", LABEL_MODES)
    reader.text("loss", is_optional=True)
    _refuse_rest(reader, tensors, model)
    for name in sorted(tensors.keys() & model.keys()):
        _check_shape(reader, tensors[name], model[name].shape)


def _check_gram(reader: HeaderReader, tensors: Specs, model: Specs) -> None:
    reader.integer("n_tokens", 1)
    inputs = reader.mapping("inputs")
    transposed = _check_transposed(reader, model)
    for weight, name in sorted(inputs.items()):
        spec, triangle = model.get(weight), tensors.get(name) if isinstance(name, str) else None
        if spec is None or len(spec.shape) < 2:
            reader.add(f"inputs names {weight[:64]!a}, which is no weight of two axes or more")
        elif triangle is None:
            reader.add(f"inputs has no triangle for {weight}")
        elif len(triangle.shape) != 1 or triangle_side(triangle.numel) != _input_length(spec, transposed):
            side = _input_length(spec, transposed)
            _check_shape(reader, triangle, (side * (side + 1) // 2,))
    _refuse_rest(reader, tensors, (name for name in inputs.values() if isinstance(name, str)))


def _input_length(spec: TensorSpec, transposed: frozenset[str]) -> int:
    return spec.shape[0] if input_axis(spec, transposed) == 0 else math.prod(spec.shape[1:])


def _check_transposed(reader: HeaderReader, model: Specs) -> frozenset[str]:
    names = reader.names("transposed", is_optional=True)
    for name in names:
        if name not in model or len(model[name].shape) != 2:
            reader.add(f"transposed names {name[:64]!a}, which is no matrix of the model")
    return frozenset(names)


def _check_snip(reader: HeaderReader, tensors: Specs, model: Specs) -> None:
    reader.integer("n_samples", 1)
    reader.choice("form", ("score", "mask"), is_optional=True)
    _refuse_rest(reader, tensors, (f"{at}/{name}" for at in ("base", "self") for name in model))
    for name, spec in sorted(model.items()):
        found = [tensors[key] for key in (f"base/{name}", f"self/{name}") if key in tensors]
        for item in found:
            _check_shape(reader, item, spec.shape)
        if len(found) == 1:
            reader.add(f"tensor {found[0].name} has no partner")


def _check_role(reader: HeaderReader, tensors: Specs, model: Specs) -> None:  # noqa: ARG001 - one signature.
    reader.choice("role", ROLES)
    attribute = reader.take("attribute", is_optional=True)
    if attribute is not None and (not isinstance(attribute, str) or len(attribute) > NAME_CHARS_MAX):
        reader.add(f"attribute is a text of at most {NAME_CHARS_MAX} characters")
    _refuse_rest(reader, tensors, ())


def _check_lora(reader: HeaderReader, tensors: Specs, model: Specs) -> None:  # noqa: ARG001 - one signature.
    reader.integer("r", 1, 1 << 20)
    reader.decimal("alpha")
    reader.boolean("use_rslora")
    reader.boolean("fan_in_fan_out")
    reader.names("target_modules")
    for module, rank in reader.mapping("rank_pattern", is_optional=True).items():
        if type(rank) is not int or rank < 1:
            reader.add(f"rank_pattern: the rank of {module[:64]!a} is no whole number from 1 on")
    for module, alpha in reader.mapping("alpha_pattern", is_optional=True).items():
        if decimal_of(alpha) is None:
            reader.add(f"alpha_pattern: the alpha of {module[:64]!a} is no number as text")
    _refuse_rest(reader, tensors, ())


def _check_scope(reader: HeaderReader, tensors: Specs, model: Specs) -> None:
    for name, scope in sorted(reader.mapping("scopes").items()):
        if name not in model:
            reader.add(f"scopes names {name[:64]!a}, which the model does not have")
        elif not isinstance(scope, dict) or scope.keys() != {"mean", "variance", "count"}:
            reader.add(f"scopes: {name} needs exactly mean, variance and count")
        else:
            variance = decimal_of(scope["variance"])
            if decimal_of(scope["mean"]) is None or variance is None or variance < 0:
                reader.add(f"scopes: mean and variance of {name} are numbers as text, the variance >= 0")
            if type(scope["count"]) is not int or scope["count"] < 1:
                reader.add(f"scopes: the count of {name} is a whole number from 1 on")
    _refuse_rest(reader, tensors, ())


def _check_rows(reader: HeaderReader, model: Specs) -> None:
    count, rows = _count(reader), reader.rows("rows")
    for row in rows:
        numbers = row.get("lambda")
        if row.keys() != {"match", "lambda"} or not isinstance(numbers, list) or len(numbers) != count:
            reader.add(f"row {row['match'][:64]!a} needs exactly `match` and {count} numbers `lambda`")
        elif any(decimal_of(number) is None for number in numbers):
            reader.add(f"row {row['match'][:64]!a} holds something that is no number as text")
    for name in unmatched(rows, sorted(model)) if rows else ():
        reader.add(f"no row fits tensor {name}")


def _check_lambdas(reader: HeaderReader, tensors: Specs, model: Specs) -> None:
    _check_rows(reader, model)
    _refuse_rest(reader, tensors, ())


def _check_masks(reader: HeaderReader, tensors: Specs, model: Specs) -> None:
    count = _count(reader)
    reader.choice("origin", ("base", "cart"))
    reader.decimal("initial_ratio", is_optional=True)
    _check_rows(reader, model)
    matrices = {name: spec for name, spec in model.items() if len(spec.shape) >= 2}
    for name, found in sorted(_numbered(reader, tensors, matrices, count).items()):
        shape = matrices[name].shape
        for item in found:
            _check_shape(reader, item, (min(shape[0], math.prod(shape[1:])),))
        if 0 < len(found) < count:
            reader.add(f"{len(found)} of {count} contributions have a mask of tensor {name}")


def _numbered(reader: HeaderReader, tensors: Specs, model: Specs, count: int) -> dict[str, list[TensorSpec]]:
    """Return the tensors ``i/T`` by T; what is named otherwise, or of no T, is a problem."""
    found: dict[str, list[TensorSpec]] = {name: [] for name in model}
    for name, spec in sorted(tensors.items()):
        number, _, rest = name.partition("/")
        if rest in found and number.isdecimal() and number == str(int(number)) and int(number) < count:
            found[rest].append(spec)
        else:
            reader.add(f"tensor {name} belongs to nothing of the model")
    return found


def _check_dam(reader: HeaderReader, tensors: Specs, model: Specs) -> None:
    count = _count(reader)
    transposed = _check_transposed(reader, model)
    for name, found in sorted(_numbered(reader, tensors, model, count).items()):
        spec = model[name]
        if len(found) < count:
            reader.add(f"{len(found)} of {count} contributions have coefficients of tensor {name}")
        shapes = {(), (1,), spec.shape}
        if len(spec.shape) >= 2:
            shapes.add((spec.shape[input_axis(spec, transposed)],))
        for item in found:
            if item.shape not in shapes:
                reader.add(f"tensor {item.name} has shape {list(item.shape)}, which fits no axis of {name}")


def _check_surgery(reader: HeaderReader, tensors: Specs, model: Specs) -> None:  # noqa: ARG001 - one signature.
    reader.text("inner")
    _check_texts(reader, "params", reader.mapping("params"))
    expected: list[str] = []
    for i in range(_count(reader)):
        names = (f"{i}/down", f"{i}/up")
        expected += names
        down, up = (tensors.get(name) for name in names)
        if (down is None) != (up is None):
            reader.add(f"the adapter of contribution {i} needs both down and up")
        elif down is not None and up is not None:
            if len(down.shape) != 2 or not down.numel:
                reader.add(f"tensor {down.name} has shape {list(down.shape)}, expected [r, d]")
            else:
                _check_shape(reader, up, down.shape[::-1])
    if not tensors:
        reader.add("there is no adapter in it")
    _refuse_rest(reader, tensors, expected)


def _check_genome(reader: HeaderReader, tensors: Specs, model: Specs) -> None:  # noqa: ARG001 - one signature.
    reader.text("inner")
    _check_texts(reader, "params", reader.mapping("params"))
    _check_texts(reader, "search", reader.mapping("search", is_optional=True))
    count = _count(reader)
    for row in reader.rows("layer_groups") if reader.take("layer_groups") else ():
        values = row.get("values")
        if row.keys() != {"match", "values"} or not isinstance(values, dict):
            reader.add(f"layer group {row['match'][:64]!a} needs exactly `match` and `values`")
            continue
        for name, value in sorted(values.items()):
            texts = value if isinstance(value, list) else [value]
            expected = count if isinstance(value, list) else 1
            if len(texts) != expected or not all(isinstance(text, str) for text in texts):
                reader.add(f"{name[:64]!a} of a layer group is one text, or {count}, one per contribution")
    _refuse_rest(reader, tensors, ())


def _check_texts(reader: HeaderReader, name: str, values: Mapping[str, Any]) -> None:
    if any(not isinstance(value, str) for value in values.values()):
        reader.add(f"{name} is an object of texts")


_CHECKS: Final[dict[str, Callable[[HeaderReader, Specs, Specs], None]]] = {
    "fisher_diag": _check_fisher,
    "gram": _check_gram,
    "snip_score": _check_snip,
    "role": _check_role,
    "lora_meta": _check_lora,
    "weight_scope": _check_scope,
    "lambda_table": _check_lambdas,
    "rank_masks": _check_masks,
    "dam_coeff": _check_dam,
    "surgery_adapter": _check_surgery,
    "genome": _check_genome,
}
