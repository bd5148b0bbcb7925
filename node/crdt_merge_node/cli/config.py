"""``config show|validate|explain|schema|example``: settings, where they come from and what they mean."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from crdt_merge_node.errors import NotFoundError, did_you_mean

from .app import SuggestingGroup
from .options import Invocation, command
from .output import clean, facts, say, say_json, size, table
from .values import READABLE

if TYPE_CHECKING:
    from crdt_merge_node.config import Config
    from crdt_merge_node.config.explaining import Setting

FLAGS: Final[Mapping[str, str]] = {
    "node.data_dir": "--data-dir",
    "node.name": "--name",
    "listen.host": "--host",
    "listen.port": "--port",
    "listen.advertise": "--advertise",
    "peers.seeds": "--seed",
    "http.port": "--http-port",
    "log.level": "--log-level",
    "log.format": "--log-format",
}
"""Options of `run` that set a setting."""


@click.group(cls=SuggestingGroup)
def config() -> None:
    """See, check and understand the settings. Works without a daemon."""


@config.command()
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@click.option("--config", "file", type=READABLE, help="TOML file; else config.toml of the data directory.")
@command
def show(invocation: Invocation, *, origin: bool, file: str | None) -> None:
    """Show the settings that `run` would use, as TOML.

    They come from flags, the environment, the file and the defaults, in this order.
    """
    found = _load(invocation, file)
    if invocation.is_json:
        settings = [
            {"key": key, "value": _json_value(value), "origin": source.kind, "where": source.where}
            for key, value, source in found.items()
        ]
        say_json("config-show/1", settings=settings)
    elif origin:
        rows = [(key, _toml(key, value), str(source)) for key, value, source in found.items()]
        say(table(("SETTING", "VALUE", "FROM"), rows))
    else:
        _show_toml(found)


@config.command()
@click.argument("file", type=READABLE, required=False)
@command
def validate(invocation: Invocation, *, file: str | None) -> None:
    """Check FILE (default: config.toml of the data directory) and the environment as `run` would.

    Names every problem, misspelt variables included. Exit status 78 if there is one.
    """
    found = _load(invocation, file)
    path = _file_of(invocation, file)
    sources: dict[str, int] = {}
    for _, _, source in found.items():
        sources[source.kind] = sources.get(source.kind, 0) + 1
    if invocation.is_json:
        say_json("config-validate/1", file=str(path) if path else None, is_valid=True, origins=sources)
        return
    where = clean(str(path)) if path else "no file, and that is fine"
    say(f"valid: {where}")
    say("  " + ", ".join(f"{number} from {kind}" for kind, number in sources.items()))


@config.command()
@click.argument("key", required=False, shell_complete=lambda _c, _p, begin: _keys_like(begin))
@command
def explain(invocation: Invocation, *, key: str | None) -> None:
    """Say what the setting KEY means: unit, range, default, variable, flag.

    KEY is `section.name`, or a section for all that is in it. Without KEY: all settings, one line each.
    """
    from crdt_merge_node.config.explaining import explain_sections, explain_settings

    settings = explain_settings()
    if key is None:
        chosen = list(settings.values())
    elif key in explain_sections():
        chosen = [setting for name, setting in settings.items() if name.startswith(f"{key}.")]
    elif key in settings:
        chosen = [settings[key]]
    else:
        raise _unknown(key, list(settings))
    if invocation.is_json:
        say_json(
            "config-explain/1",
            settings=[
                {**_plain(setting), "flag": FLAGS.get(setting.key, ""), "is_live": bool(setting.live)}
                for setting in chosen
            ],
        )
    elif key is None:
        say(table(("SETTING", "DEFAULT", "MEANING"), [_line(setting) for setting in chosen]))
    else:
        for number, setting in enumerate(chosen):
            if number:
                say("")
            _show_setting(setting)


@config.command()
@command
def schema(invocation: Invocation) -> None:
    """Print the JSON schema of config.toml, for editors that check files by one."""
    from crdt_merge_node.config.explaining import json_schema

    if invocation.is_json:
        say_json("config-schema/1", json_schema=json_schema())
    else:
        say(json.dumps(json_schema(), indent=2))


@config.command()
@command
def example(invocation: Invocation) -> None:
    """Print a config.toml with every setting explained and set to its default in a comment."""
    from crdt_merge_node.config import explaining

    if invocation.is_json:
        say_json("config-example/1", toml=explaining.example())
    else:
        click.echo(explaining.example(), nl=False)


def _load(invocation: Invocation, file: str | None) -> Config:
    from crdt_merge_node.config import load_config

    return load_config(Path(file) if file else None, {"node.data_dir": invocation.data_dir_flag}, os.environ)


def _file_of(invocation: Invocation, file: str | None) -> Path | None:
    """Return the file that was read; None if there was none to read."""
    from crdt_merge_node.config.loading import CONFIG_FILE_NAME, CONFIG_VARIABLE

    named = file or os.environ.get(CONFIG_VARIABLE)
    path = Path(named) if named else invocation.data_dir / CONFIG_FILE_NAME
    return path if path.exists() else None


def _show_toml(found: Config) -> None:
    section = ""
    for key, value, _ in found.items():
        head, _, name = key.partition(".")
        if head != section:
            if section:
                say("")
            say(f"[{head}]")
            section = head
        say(f"{name} = {_toml(key, value)}")


def _toml(key: str, value: Any) -> str:
    from crdt_merge_node.config.explaining import size_text, toml_value

    return toml_value(size_text(int(value)) if key.endswith("_bytes") else value)


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return [str(item) for item in value] if isinstance(value, tuple | list) else str(value)


def _plain(setting: Setting) -> dict[str, Any]:
    return {name: getattr(setting, name) for name in type(setting).__slots__ if name != "live"}


def _line(setting: Setting) -> tuple[str, str, str]:
    return (setting.key, "" if setting.is_required else _toml(setting.key, setting.default), setting.meaning)


def _show_setting(setting: Setting) -> None:
    default = "" if setting.is_required else _toml(setting.key, setting.default)
    if setting.key.endswith("_bytes") and setting.default is not None:
        default = f"{setting.default} ({size(setting.default)})"
    if setting.default is None and not setting.is_required:
        default = "unset"
    takes_effect = f"at once: {setting.live}" if setting.live else "at the next start of the daemon"
    say(setting.key)
    say(
        facts(
            (
                ("meaning", setting.meaning),
                ("type", setting.type),
                ("unit", setting.unit),
                ("range", setting.range),
                ("default", default or "depends on the user"),
                ("variable", setting.variable),
                ("flag", f"run {FLAGS[setting.key]}" if setting.key in FLAGS else ""),
                ("takes effect", takes_effect),
            )
        )
    )


def _unknown(key: str, known: list[str]) -> NotFoundError:
    name = key.rpartition(".")[2]
    homes = [candidate for candidate in known if candidate.rpartition(".")[2] == name]
    suggestion = f'Did you mean "{homes[0]}"?' if homes else did_you_mean(key[:100], known)
    return NotFoundError(
        f"there is no setting {clean(key[:100])!r}. {suggestion}".rstrip(),
        hint="`crdt-merge-node config explain` lists all.",
    )


def _keys_like(begin: str) -> list[str]:
    from crdt_merge_node.config.explaining import explain_settings

    return [key for key in explain_settings() if key.startswith(begin)]
