"""What each setting means, read out of the typed model: for ``config explain`` and the example file.

Nothing here repeats the model. Meaning, type, range and default come from its JSON schema, the unit from the
suffix of the name (``_bytes``, ``_s``), the variable from the key.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from .loading import DATA_DIR_KEY, ENVIRONMENT_PREFIX
from .model import Config

LIVE: Final[Mapping[str, str]] = {"log.level": "crdt-merge-node log level LEVEL"}
"""Settings that a running daemon can be told anew, and how. All others take effect at the next start."""
_UNITS: Final = {"_bytes": 'bytes; "512MiB" and "2GB" are understood', "_s": "seconds", "_ratio": "a ratio"}
_SIZES: Final = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
_WIDTH: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting, explained."""

    key: str
    meaning: str
    type: str
    unit: str
    """Empty where the value has none."""
    range: str
    """Allowed values; empty: whatever is of the type."""
    default: Any
    """None: unset, or no default (then ``is_required``)."""
    is_required: bool
    variable: str
    """The environment variable."""
    live: str
    """The command that changes it while the daemon runs; empty: it takes effect at the next start."""


def explain_settings() -> Mapping[str, Setting]:
    """Return every setting by its key, in the order of the model."""
    schema = Config.model_json_schema()
    found: dict[str, Setting] = {}
    for section, reference in schema["properties"].items():
        content = _resolve(schema, reference)
        for name, field in content["properties"].items():
            key = f"{section}.{name}"
            limits = _limits(section, name)
            found[key] = _explain(key, {**field, **limits}, is_required=name in content.get("required", ()))
    return found


def explain_sections() -> Mapping[str, str]:
    """Return what each section is about."""
    schema = Config.model_json_schema()
    return {
        section: str(_resolve(schema, reference).get("description", ""))
        for section, reference in schema["properties"].items()
    }


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of ``config.toml``, for editors that check TOML files."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(),
        "title": "crdt-merge-node configuration",
    }


def example() -> str:
    """Return a config.toml that names every setting, explained, each set to its default in a comment."""
    lines = [
        "# Settings of crdt-merge-node. Every line is optional; what is commented out shows the default.",
        "# Put this file into the data directory as config.toml, or name it with `run --config`.",
        "# A variable or a flag overrides it. `crdt-merge-node config validate` checks it.",
    ]
    settings = explain_settings()
    for section, about in explain_sections().items():
        lines += ["", f"# {about}" if about else "#", f"[{section}]"]
        for key, setting in settings.items():
            if key.startswith(f"{section}."):
                lines += ["", *_comment(setting)]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """Return a setting's value as TOML. Unset is the empty text, which the model reads so."""
    if value is None:
        return '""'
    if isinstance(value, tuple | list):
        return json.dumps([str(item) for item in value], ensure_ascii=False)
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)


def size_text(nbytes: int) -> str:
    """Return a number of bytes as people write it into the file, or the digits if it is no whole number."""
    for unit, factor in _SIZES:
        if nbytes >= factor and nbytes % factor == 0:
            return f"{nbytes // factor}{unit}"
    return str(nbytes)


def _resolve(schema: Mapping[str, Any], reference: Mapping[str, Any]) -> Mapping[str, Any]:
    path = str(reference.get("$ref") or reference["allOf"][0]["$ref"])
    content: Mapping[str, Any] = schema["$defs"][path.rpartition("/")[2]]
    return content


def _limits(section: str, name: str) -> dict[str, Any]:
    """Return bounds that the JSON schema leaves out, as it does for sizes."""
    kind = Config.model_fields[section].annotation
    assert isinstance(kind, type)
    assert issubclass(kind, BaseModel)
    metadata = kind.model_fields[name].metadata
    pairs = (("minimum", "ge"), ("maximum", "le"))
    return {word: getattr(item, sign) for item in metadata for word, sign in pairs if hasattr(item, sign)}


def _explain(key: str, field: Mapping[str, Any], *, is_required: bool) -> Setting:
    kinds = [kind for kind in field.get("anyOf", (field,)) if kind.get("type") != "null"]
    can_be_unset = len(kinds) < len(field.get("anyOf", (field,)))
    kind = {**field, **kinds[0]}
    unit = next((text for suffix, text in _UNITS.items() if key.endswith(suffix)), "")
    return Setting(
        key=key,
        meaning=str(field.get("description", "")),
        type=("size" if unit.startswith("bytes") else _type(kind)) + (", or empty" if can_be_unset else ""),
        unit=unit,
        range=_range(kind, is_size=key.endswith("_bytes")),
        default=field.get("default"),
        is_required=is_required,
        variable=f"{ENVIRONMENT_PREFIX}{key.replace('.', '__').upper()}",
        live=LIVE.get(key, ""),
    )


def _type(kind: Mapping[str, Any]) -> str:
    if kind.get("format") == "path":
        return "path"
    if kind.get("type") == "array":
        return "list of text; in a variable separated by commas"
    return {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}.get(
        str(kind.get("type", "")), "text or number"
    )


def _range(kind: Mapping[str, Any], *, is_size: bool) -> str:
    if "enum" in kind:
        return ", ".join(str(value) for value in kind["enum"])
    low, high = kind.get("minimum"), kind.get("maximum")
    show = size_text if is_size else str
    if low is not None and high is not None:
        return f"{show(low)} to {show(high)}"
    if low is not None:
        return f"at least {show(low)}"
    if high is not None:
        return f"at most {show(high)}"
    if kind.get("type") == "array":
        return f"at most {kind.get('maxItems', kind.get('maxLength', 'any number of'))} entries"
    return "not empty" if kind.get("minLength") == 1 else ""


def _comment(setting: Setting) -> Iterator[str]:
    """Yield the lines of one setting in the example."""
    about = [setting.meaning]
    if setting.unit:
        about.append(f"In {setting.unit}.")
    if setting.range:
        about.append(f"Allowed: {setting.range}.")
    if setting.key == DATA_DIR_KEY:
        about.append("Not to be set in the file inside the data directory.")
    if setting.live:
        about.append(f"Can be changed while the daemon runs: `{setting.live}`.")
    for line in textwrap.wrap(" ".join(about), _WIDTH):
        yield f"# {line}"
    default = setting.default
    if setting.is_required:
        default = "/var/lib/crdt-merge-node"
    elif setting.key.endswith("_bytes") and isinstance(default, int):
        default = size_text(default)
    yield f"# {setting.key.partition('.')[2]} = {toml_value(default)}"
