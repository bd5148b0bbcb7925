"""Reading the configuration: defaults < file < environment < flags, every problem reported at once.

Nothing is ignored. An unknown key in the file and an unknown variable that begins with our prefix are errors
with a suggestion: a misspelt setting that silently does nothing is worse than one that stops the start.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from crdt_merge_node.errors import ConfigError, did_you_mean
from crdt_merge_node.ports import SystemFs

from .model import Config, Origin, known_keys

ENVIRONMENT_PREFIX: Final = "CRDT_MERGE_NODE_"
DATA_DIR_KEY: Final = "node.data_dir"
DATA_DIR_VARIABLE: Final = f"{ENVIRONMENT_PREFIX}DATA_DIR"
CONFIG_VARIABLE: Final = f"{ENVIRONMENT_PREFIX}CONFIG"
CONFIG_FILE_NAME: Final = "config.toml"
CONFIG_BYTES_MAX: Final = 1 << 16
_SHOWN_CHARS: Final = 200
"""Of a value or a message that may be as long as the file."""
_KEY_PARTS_MAX: Final = 32
_STRING_OR_COMMENT: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*')
_DEEP_KEY: Final = re.compile(rf"(?:\.[A-Za-z0-9_ \t-]*+){{{_KEY_PARTS_MAX}}}")
# Kubernetes gives every pod variables about every Service. One named crdt-merge-node would make these.
_SERVICE_LINKS: Final = re.compile(r"(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")


@dataclass(slots=True)
class _Layers:
    """Values found so far by ``section.key``; later layers overwrite earlier ones."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any, origin: Origin) -> None:
        self.values[key] = value
        self.origins[key] = origin


def load_config(
    path: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Return the configuration of this node.

    Args:
        path: The TOML file, which then must exist. Without it, ``config.toml`` of the data directory is read
            if there is one.
        flags: Values by ``section.key`` from the command line; None means that the flag was not given.
        environ: The environment; that of the process if not given.

    Raises:
        ConfigError: Something is wrong; it lists everything that is.
    """
    environ = os.environ if environ is None else environ
    layers = _Layers()
    above = _Layers()  # Environment and flags, read first because they tell which file to read.
    _read_environment(environ, above)
    _read_flags(flags or {}, above)
    data_dir = Path(str(above.values.get(DATA_DIR_KEY) or default_data_dir())).expanduser()
    if path is None and environ.get(CONFIG_VARIABLE):
        path = Path(environ[CONFIG_VARIABLE])
    _read_file(path or data_dir / CONFIG_FILE_NAME, is_required=path is not None, layers=layers)
    if path is None and layers.values.pop(DATA_DIR_KEY, None) is not None:
        layers.problems.append(f"{DATA_DIR_KEY} cannot be set in a file inside the data directory.")
    layers.values.setdefault(DATA_DIR_KEY, data_dir)
    for key, value in above.values.items():
        layers.put(key, value, above.origins[key])
    layers.problems.extend(above.problems)
    return _validate(layers)


def default_data_dir() -> Path:
    """Return where a node lives if nobody says otherwise: the system's place for root, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/crdt-merge-node")
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "crdt-merge-node"


def _read_environment(environ: Mapping[str, str], layers: _Layers) -> None:
    variables = {f"{ENVIRONMENT_PREFIX}{key.replace('.', '__').upper()}": key for key in known_keys()}
    variables[DATA_DIR_VARIABLE] = DATA_DIR_KEY
    for variable in sorted(environ):
        rest = variable.removeprefix(ENVIRONMENT_PREFIX)
        if variable in (rest, CONFIG_VARIABLE) or _SERVICE_LINKS.fullmatch(rest):
            continue
        if variable in variables:
            layers.put(variables[variable], environ[variable], Origin("environment", variable))
        else:
            suggestion = did_you_mean(variable, [*variables, CONFIG_VARIABLE])
            layers.problems.append(f"unknown environment variable {variable}. {suggestion}".rstrip())


def _read_flags(flags: Mapping[str, Any], layers: _Layers) -> None:
    known = known_keys()
    for key, value in flags.items():
        if value is None:
            continue
        if key in known:
            layers.put(key, value, Origin("flag"))
        else:
            layers.problems.append(f"unknown setting {key}. {_suggest_key(key)}".rstrip())


def _read_file(path: Path, *, is_required: bool, layers: _Layers) -> None:
    try:
        with SystemFs().open_read(path, follow=True) as file:
            data = file.read_at(0, CONFIG_BYTES_MAX + 1)
    except FileNotFoundError:
        if is_required:
            layers.problems.append(f"{path}: there is no such file.")
        return
    except OSError as error:
        layers.problems.append(f"{path}: {error.strerror or error}.")
        return
    if len(data) > CONFIG_BYTES_MAX:
        layers.problems.append(f"{path}: larger than {CONFIG_BYTES_MAX} bytes.")
        return
    try:
        text = data.decode()
        if _has_deep_keys(text):
            layers.problems.append(f"{path}: a key of more than {_KEY_PARTS_MAX} parts; settings have two.")
            return
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # A number of too many digits is a plain ValueError.
        layers.problems.append(f"{path}: not TOML: {str(error)[:_SHOWN_CHARS]}.")
        return
    _read_document(document, path, layers)


def _has_deep_keys(text: str) -> bool:
    """Tell whether there are keys for which the parser would need memory by the square of their length."""
    return _DEEP_KEY.search(_STRING_OR_COMMENT.sub("", text)) is not None


def _read_document(document: dict[str, Any], path: Path, layers: _Layers) -> None:
    known = known_keys()
    sections = {key.partition(".")[0] for key in known}
    for section, content in document.items():
        if section not in sections:
            suggestion = _suggest_key(section) if not isinstance(content, dict) else ""
            suggestion = suggestion or did_you_mean(section, sections)
            layers.problems.append(f"{path}: unknown section or key {section!r}. {suggestion}".rstrip())
        elif not isinstance(content, dict):
            layers.problems.append(f"{path}: {section} is a section: write [{section}].")
        else:
            for name, value in content.items():
                key = f"{section}.{name}"
                if key in known:
                    layers.put(key, value, Origin("file", str(path)))
                else:
                    layers.problems.append(f"{path}: unknown key {key!r}. {_suggest_key(key)}".rstrip())


def _suggest_key(word: str) -> str:
    """Suggest a key for ``section.name`` or a bare name that belongs into a section."""
    known = known_keys()
    name = word.rpartition(".")[2]
    homes = [key for key in known if key.rpartition(".")[2] == name]
    return f'Did you mean "{homes[0]}"?' if homes else did_you_mean(word, known)


def _shown(value: Any) -> str:
    """Return a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _validate(layers: _Layers) -> Config:
    nested: dict[str, dict[str, Any]] = {}
    for key, value in layers.values.items():
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = value
        if isinstance(value, bool):  # There is no such setting, and pydantic would take it for 0 or 1.
            layers.problems.append(f"{key} = {value} ({layers.origins[key]}): it is not true or false.")
    config: Config | None = None
    try:
        config = Config.model_validate(nested)
    except ValidationError as error:
        for detail in error.errors():
            key = ".".join(str(part) for part in detail["loc"][:2])
            origin = layers.origins.get(key, Origin("default"))
            problem = detail["msg"].removeprefix("Value error, ")
            layers.problems.append(f"{key} = {_shown(layers.values.get(key))} ({origin}): {problem}.")
    if config is None or layers.problems:
        raise ConfigError.of(list(dict.fromkeys(layers.problems)))
    config._origins.update(layers.origins)  # noqa: SLF001  (private to keep it out of the settings)
    return config
