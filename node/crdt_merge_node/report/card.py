"""A model card in the form that model hubs read: Markdown with a YAML head, made from the provenance alone.

Source: "Model Cards", Hugging Face Hub documentation (the head's keys ``tags``, ``base_model``, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import yaml
from crdt_merge_protocol.strategies.registry import get

_ID_DIGITS: Final = 12


def render(provenance: Mapping[str, Any], *, title: str) -> str:
    """Return the card of a merged model.

    Args:
        provenance: The JSON that stands beside every output, ``provenance/1``.
        title: Name of the model.
    """
    recipe, facts = provenance["recipe"], provenance["facts"]
    strategy = get(recipe["strategy"])
    head = {"tags": ["merge", "crdt-merge-node", strategy.id], "library_name": "safetensors"}
    effective = provenance["effective_strategy"]["strategy"]
    stood_in = "" if effective == strategy.id else f" Its stand-in `{effective}` was used."
    k = len(provenance["inputs"])
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=True)}---",
        f"# {_plain(title)}",
        (
            f"Merged from {k} contribution{'s' * (k != 1)} by `{strategy.id}` ({strategy.title})"
            f"{_where(facts)}.{stood_in}{_of_task(provenance)}"
        ),
        f"Method: {_plain(strategy.paper)}.",
        "## Contributions",
        _contributions(provenance),
        "## Recipe",
        _table(("", ""), _recipe(provenance)),
        "## What names it",
        _table(("", ""), _digests(provenance)),
        (
            "Who merges the same contributions by the same recipe gets the same resolve key, and the same "
            f"output {_promise(provenance['numerics']['class'])}."
        ),
    ]
    if excluded := facts.get("excluded"):
        rows = [(_code(each["tag"]), _plain(each["reason"])) for each in excluded]
        lines += ["## Left out", _table(("contribution", "why"), rows)]
    if warnings := provenance["decisions"].get("warnings"):
        lines += ["## Warnings", "\n".join(f"- {_plain(warning)}" for warning in warnings)]
    return "\n\n".join(lines) + "\n"


def _where(facts: Mapping[str, Any]) -> str:
    return f" in the group {_plain(facts['group_name'])}" if "group_name" in facts else ""


def _of_task(provenance: Mapping[str, Any]) -> str:
    return f" This is the model of the task of {_code(provenance['task'])}." if provenance.get("task") else ""


def _contributions(provenance: Mapping[str, Any]) -> str:
    """Return the table of models: in a group with who contributed them, else with the files."""
    facts = provenance["facts"]
    fields: dict[str, Callable[[Any], str]] = {"author": _code, "slot": _plain}
    known = facts.get("contributions", ())
    if "files" in facts:
        fields, known = {"path": _quoted}, facts["files"]
    rows: list[Sequence[str]] = []
    for model in provenance["inputs"]:
        mine = [each for each in known if each["digest"] == model["digest"]]
        said = [", ".join(show(each[field]) for each in mine) or "-" for field, show in fields.items()]
        weight = f"{model['weight'] / provenance['weight_one']:g}"
        rows.append((_code(model["digest"]), weight, *said, _code(model["content"])))
    return _table(("contribution", "weight", *fields, "content"), rows)


def _recipe(provenance: Mapping[str, Any]) -> list[Sequence[str]]:
    recipe = provenance["recipe"]
    rows: list[Sequence[str]] = [
        ("strategy", f"`{recipe['strategy']}` version {recipe['strategy_version']}"),
        ("base", _code(recipe["base"]) if recipe["base"] else "none"),
        ("element type", recipe["dtype"] or "that of the inputs"),
        ("seed", _code(recipe["seed"])),
    ]
    rows += [(f"`{name}`", _quoted(value)) for name, value in recipe["effective_params"].items()]
    rows += [(each["type"], _code(each["digest"])) for each in provenance.get("artefacts", ())]
    return rows


def _digests(provenance: Mapping[str, Any]) -> list[Sequence[str]]:
    file = provenance["file"]
    return [
        ("resolve key", f"`{provenance['resolve_key']}`"),
        ("used root", f"`{provenance['used_root']}`"),
        ("output digest", f"`{provenance['output_digest']}`"),
        ("SHA-256 of the file", f"`{file['sha256']}`"),
        ("file", f"{file['nbytes']:,} bytes, {file['tensors']} tensors"),
        ("determinism", str(provenance["numerics"]["class"])),
    ]


def _promise(determinism: str) -> str:
    return "bit for bit" if determinism == "bitwise" else "up to rounding"


def _code(digest: str) -> str:
    return f"`{digest[:_ID_DIGITS]}`"


def _quoted(text: Any) -> str:
    """Return text as code: there no backslash protects anything but the bar that would end a table's cell."""
    flat = "".join(c for c in " ".join(str(text).split()) if c.isprintable())
    flat = flat.replace("`", "?").replace("|", "\\|")
    return f"`{flat}`" if flat else "-"


def _plain(text: Any) -> str:
    """Return text that cannot leave its place: names and reasons come from other machines."""
    flat = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "\\`|<>[]*_#" else c for c in flat if c.isprintable())


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
