"""Reading a mergekit YAML configuration as a strategy with parameters.

What can be said exactly is translated, with ``profile=mergekit`` where a strategy knows both readings; what
cannot is refused by name, never skipped. The few keys that change no bit of the output, like where to keep
temporary values, are noted and ignored.

Values that differ by model, by tensor or by layer become one table per parameter (``mergekit_values.py``,
``strategies/parameters.py``), which is compared with the configuration tensor by tensor before it is used.

Source: the documented format of mergekit 0.1 (README, "Merge Configuration" and "Parameter Specification").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.strategies.registry import get

from .mergekit_values import Layout, say, slerp_weights

BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Method:
    """How one merge method is said here."""

    strategy: str
    names: Mapping[str, str] = field(default_factory=dict)
    """Its parameters, and what they are called here."""
    has_profile: bool = False


_SPARSE: Final = {"weight": "weight", "density": "density", "lambda": "lambda", "normalize": "normalize"}
METHODS: Final = {
    "linear": _Method("linear", {"weight": "weight", "normalize": "normalize"}),
    "task_arithmetic": _Method(
        "task_arithmetic", {"weight": "weight", "lambda": "lambda", "normalize": "normalize"}
    ),
    "ties": _Method("ties", _SPARSE, has_profile=True),
    "dare_linear": _Method("dare", _SPARSE | {"rescale": "rescale"}, has_profile=True),
    "dare_ties": _Method("dare_ties", _SPARSE | {"rescale": "rescale"}, has_profile=True),
    "della": _Method("della", _SPARSE | {"rescale": "rescale", "epsilon": "epsilon"}, has_profile=True),
    "della_linear": _Method(
        "della_linear", _SPARSE | {"rescale": "rescale", "epsilon": "epsilon"}, has_profile=True
    ),
    "breadcrumbs": _Method("model_breadcrumbs", _SPARSE | {"gamma": "gamma"}, has_profile=True),
    "breadcrumbs_ties": _Method("breadcrumbs_ties", _SPARSE | {"gamma": "gamma"}, has_profile=True),
    "slerp": _Method("slerp", {"t": "t"}, has_profile=True),
    "nuslerp": _Method(
        "nuslerp",
        {"weight": "weight", "nuslerp_flatten": "flatten", "nuslerp_row_wise": "row_wise"},
    ),
    "multislerp": _Method("multislerp", {"weight": "weight", "normalize_weights": "normalize"}),
    "karcher": _Method("karcher", {"max_iter": "max_iter", "tol": "tol"}),
    "model_stock": _Method("model_stock", {"filter_wise": "filter_wise"}),
    "sce": _Method("sce", {"select_topk": "select_topk"}),
    "arcee_fusion": _Method("arcee_fusion"),
    "nearswap": _Method("nearswap", {"t": "t"}),
    "passthrough": _Method("passthrough", {"scale": "scale"}),
}
ENDS: Final = frozenset({"slerp", "linear", "karcher", "passthrough"})
"""Methods without differences from a base: what is called base_model there is a model like the others."""
IGNORED: Final = {"int8_mask": "it only saves memory there"}
_TOP_KEYS: Final = {"merge_method", "models", "base_model", "parameters", "dtype", "out_dtype"}
_BUT: Final = {"slices": ", but for one slice of all layers"}
DTYPES: Final = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "fp16": "F16", "bf16": "BF16",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A configuration, understood."""

    strategy: str
    params: Mapping[str, str]
    models: tuple[str, ...]
    """As named there, without the base, in order."""
    base: str | None
    dtype: str
    """Element type of the output; empty: that of the base or the models."""
    notes: tuple[str, ...]
    """What was ignored, and why that is harmless."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration whose form has been checked; the models it names may be elsewhere."""

    method: str
    models: tuple[str, ...]
    base: str | None
    dtype: str
    given: Mapping[str, Any]
    """Parameters of all models."""
    per_model: tuple[Mapping[str, Any], ...]
    """Parameters of each of ``models``."""
    notes: tuple[str, ...]
    layers: int = 0
    """How many layers the one slice has, where models are given as that; 0: all, however many."""

    def recipe(self, tensors: Sequence[str], digest_of: Callable[[str], bytes]) -> Recipe:
        """Return the strategy and its parameters for a model.

        Args:
            tensors: Names of the tensors that will be merged.
            digest_of: Contribution digest of a model named in ``models``.

        Raises:
            ParameterError: Something that cannot be said here; the message names the key.
        """
        method = METHODS[self.method]
        digests = [digest_of(model).hex() for model in self.models]
        layout = Layout(tensors)
        if self.layers and (not tensors or layout.layers != self.layers):
            there_are = f"the model has {layout.layers}" if tensors else "how many there are is not known"
            raise ParameterError(
                f"slices takes {self.layers} layers and {there_are}; only a slice of all is supported.",
                hint="Name the models under `models`, or a file that has the tensors: --like.",
            )
        params: dict[str, str] = {"profile": "mergekit"} if method.has_profile else {}
        for name, here in method.names.items():
            default = self.given.get(name)
            values = [mine.get(name) for mine in self.per_model]
            if default is None and all(value is None for value in values):
                continue
            if self.method == "slerp":
                params["weight"] = slerp_weights(layout, default, self.models, self.base, digests)
            else:
                params[here] = say(name, layout, values, default, digests)
        strategy = get(method.strategy)
        return Recipe(
            strategy=strategy.id,
            params=strategy.normalise(params),
            models=self.models,
            base=None if self.method in ENDS else self.base,
            dtype=self.dtype,
            notes=self.notes,
        )


def read_mergekit(text: str) -> Configuration:
    """Return a configuration in mergekit's YAML format.

    Raises:
        ParameterError: Not one, or one that uses what is not supported; every such key is named.
    """
    if len(text.encode()) > BYTES_MAX:
        raise ParameterError(f"A configuration has at most {BYTES_MAX} bytes.")
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ParameterError(
            f"Not YAML: {' '.join(str(error).split())}", hint="Is it another file?"
        ) from None
    if not isinstance(data, dict) or "merge_method" not in data:
        raise ParameterError(
            "A configuration is a mapping with the key merge_method.", hint="Is it another file?"
        )
    method = METHODS.get(str(data["merge_method"]))
    data, layers = _without_slices(data)
    problems = [f"{key} is not supported{_BUT.get(key, '')}" for key in data if key not in _TOP_KEYS]
    if method is None:
        problems.append(f"merge_method {data['merge_method']} is not supported")
    models, per_model = _read_models(data, problems)
    base = data.get("base_model")
    if base is not None and not isinstance(base, str):
        problems.append("base_model is not a name")
        base = None
    given = data.get("parameters") or {}
    dtype = str(data.get("out_dtype") or data.get("dtype") or "")
    if dtype and dtype not in DTYPES:
        problems.append(f"dtype {dtype} is not supported")
    notes = _check_names(data["merge_method"], method, [given, *per_model], problems)
    if problems:
        raise ParameterError(
            f"{'; '.join(problems)}.", hint=f"Supported methods: {', '.join(METHODS)}; keys: {_known()}."
        )
    kept = [(m, p) for m, p in zip(models, per_model, strict=True) if m != base or _is_input(data)]
    return Configuration(
        method=str(data["merge_method"]),
        models=tuple(model for model, _ in kept),
        base=base,
        dtype=DTYPES.get(dtype, ""),
        given=given,
        per_model=tuple(mine for _, mine in kept),
        notes=tuple(notes),
        layers=layers,
    )


def _without_slices(data: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return a configuration whose one slice has the same layers of every model as one of models.

    mergekit treats the two alike if these are all layers, and its own examples of slerp are written so.

    Returns:
        The configuration, and how many layers; the same one and 0 if it is none of this kind.
    """
    slices = data.get("slices")
    if "models" in data or not isinstance(slices, list) or len(slices) != 1:
        return data, 0
    one = slices[0]
    sources = one.get("sources") if isinstance(one, dict) and len(one) == 1 else None
    if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
        return data, 0
    match [source.get("layer_range") for source in sources]:
        case [[0, int(layers)], *others] if layers > 0 and all(other == [0, layers] for other in others):
            models = [{k: v for k, v in source.items() if k != "layer_range"} for source in sources]
            return {k: v for k, v in data.items() if k != "slices"} | {"models": models}, layers
    return data, 0


def _is_input(data: Mapping[str, Any]) -> bool:
    """Tell whether the base is one of the models to merge: one end of the arc, not what deltas are from."""
    return data["merge_method"] in ENDS


def _known() -> str:
    return ", ".join(sorted(_TOP_KEYS))


def _read_models(data: Mapping[str, Any], problems: list[str]) -> tuple[list[str], list[Mapping[str, Any]]]:
    models: list[str] = []
    per_model: list[Mapping[str, Any]] = []
    listed = data.get("models")
    if listed is None and "slices" in data:
        return models, per_model
    if not isinstance(listed, list) or not listed:
        problems.append("models is missing: a list of {model: ..., parameters: ...}")
        return models, per_model
    for entry in listed:
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
            problems.append("an entry of models has no model")
            continue
        problems += [
            f"models[].{key} is not supported" for key in entry if key not in {"model", "parameters"}
        ]
        models.append(entry["model"])
        per_model.append(entry.get("parameters") or {})
    problems += [
        f"model {name} is listed twice" for name in sorted({m for m in models if models.count(m) > 1})
    ]
    return models, per_model


def _check_names(
    name: object, method: _Method | None, tables: Sequence[Any], problems: list[str]
) -> list[str]:
    notes = []
    for table in tables:
        if not isinstance(table, dict):
            problems.append("parameters is not a mapping")
            continue
        for key in table:
            if key in IGNORED:
                notes.append(f"{key} was ignored: {IGNORED[key]}")
            elif method is not None and key not in method.names:
                problems.append(f"parameter {key} of {name} is not supported")
    return list(dict.fromkeys(notes))
