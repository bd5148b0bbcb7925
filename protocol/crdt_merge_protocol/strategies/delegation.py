"""Parameters that name another strategy, and how that strategy gets its own.

A parameter of type ``strategy`` names one: ``inner``, which does part of the work, or ``fallback``, which
does all of it where the inputs do not allow the method itself. What is given as ``inner.NAME`` or
``fallback.NAME`` belongs to the named strategy, which checks it, spells it and may name others in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from crdt_merge_protocol.errors import ParameterError

from .parameters import Parameter, Value, normalise_parameters, validate_parameters

if TYPE_CHECKING:
    from .contract import Strategy

INNER: Final = "inner"
FALLBACK: Final = "fallback"
NONE: Final = "none"
DEPTH_MAX: Final = 4
"""A stand-in of a stand-in, and no more than that many; each level has to be named anyway."""


def fallback_parameter() -> Parameter:
    """Return the parameter of a strategy that not all inputs allow: what is computed instead."""
    return Parameter(
        name=FALLBACK,
        type="strategy",
        default=NONE,
        choices=(NONE,),
        doc="Strategy that stands in where the inputs do not allow this one; none: refuse. fallback.NAME are "
        "its parameters.",
    )


def inner_parameter(default: str, doc: str) -> Parameter:
    """Return the parameter that names the strategy to which part of the work is left."""
    return Parameter(
        name=INNER, type="strategy", default=default, doc=f"{doc} inner.NAME are its parameters."
    )


def validate(strategy: str, parameters: Sequence[Parameter], texts: Mapping[str, str]) -> dict[str, Value]:
    """Return every parameter with its typed value, those of named strategies dotted and complete as well.

    Raises:
        ParameterError: Unknown names or values out of range, all of them in one message.
    """
    if not any(parameter.type == "strategy" for parameter in parameters):
        return validate_parameters(strategy, parameters, texts)
    _check_depth(texts)
    own, nested = _split(parameters, texts)
    problems: list[str] = []
    hint = ""
    values: dict[str, Value] = {}
    try:
        values = validate_parameters(strategy, parameters, own)
    except ParameterError as error:
        problems.append(error.message.removesuffix("."))
        hint = error.hint
    for parameter in parameters:
        if parameter.type != "strategy":
            continue
        try:
            named = _named(parameter, own)
            values.update(_validate_nested(parameter.name, named, nested[parameter.name]))
        except ParameterError as error:
            problems.append(f"{parameter.name}: {error.message.removesuffix('.')}")
            hint = hint or error.hint
    if problems:
        raise ParameterError("; ".join(problems) + ".", hint=hint)
    return values


def normalise(strategy: str, parameters: Sequence[Parameter], texts: Mapping[str, str]) -> dict[str, str]:
    """Return the given parameters, sorted by name, each in its one canonical spelling.

    Raises:
        ParameterError: As :func:`validate`.
    """
    validate(strategy, parameters, texts)
    own, nested = _split(parameters, texts)
    spelled = normalise_parameters(strategy, parameters, own)
    for parameter in parameters:
        if parameter.type != "strategy":
            continue
        named = _named(parameter, own)
        if parameter.name in own:
            spelled[parameter.name] = named
        if named != NONE:
            inner = strategy_named(named).normalise(nested[parameter.name])
            spelled.update({f"{parameter.name}.{name}": text for name, text in inner.items()})
    return {name: spelled[name] for name in sorted(spelled)}


def parameters_of(params: Mapping[str, Value], name: str) -> dict[str, Value]:
    """Return the parameters of the strategy that parameter ``name`` names, as it wants them."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in params.items() if key.startswith(prefix)}


def _split(
    parameters: Sequence[Parameter], texts: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return the texts of the strategy itself, and those of each strategy that it names."""
    nested: dict[str, dict[str, str]] = {p.name: {} for p in parameters if p.type == "strategy"}
    own = {}
    for key, text in texts.items():
        head, dot, rest = key.partition(".")
        if dot and head in nested:
            nested[head][rest] = text
        else:
            own[key] = text
    return own, nested


def _named(parameter: Parameter, own: Mapping[str, str]) -> str:
    """Return the id of the strategy that a parameter names, or NONE."""
    text = own.get(parameter.name, parameter.default)
    return text if text in parameter.choices else strategy_named(text).id


def _validate_nested(prefix: str, named: str, texts: Mapping[str, str]) -> dict[str, Value]:
    if named == NONE:
        if texts:
            raise ParameterError(
                f"{', '.join(f'{prefix}.{name}' for name in sorted(texts))} is a parameter of no strategy",
                hint=f"Name one: {prefix}=STRATEGY.",
            )
        return {prefix: NONE}
    values = strategy_named(named).validate(texts)
    return {prefix: named, **{f"{prefix}.{name}": value for name, value in values.items()}}


def _check_depth(texts: Mapping[str, str]) -> None:
    deep = sorted(name for name in texts if name.count(".") > DEPTH_MAX)
    if deep:
        raise ParameterError(f"{deep[0]} goes through more than {DEPTH_MAX} strategies.")


def strategy_named(name: str) -> Strategy:
    """Return a strategy by its name. Imported late: the strategies of the registry take names themselves."""
    from .registry import get

    return get(name)
