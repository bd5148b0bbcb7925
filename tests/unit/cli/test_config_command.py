"""`config`: what holds and why, what is wrong, what each setting means, and an example made of the model."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from crdt_merge_node.cli.app import COMMANDS, root
from crdt_merge_node.cli.config import FLAGS
from crdt_merge_node.cli.run import run as run_command
from crdt_merge_node.config import Config, load_config
from crdt_merge_node.config.explaining import LIVE, example, explain_settings, size_text
from crdt_merge_node.config.model import known_keys


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `config` for a data directory of its own."""
    monkeypatch.setenv("CRDT_MERGE_NODE_DATA_DIR", str(tmp_path))

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(root, ["config", *arguments])

    return invoke


def _values(config: Config) -> dict[str, Any]:
    return {key: value for key, value, _ in config.items()}


def test_every_value_is_shown_with_its_origin(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text('[listen]\nport = 1234\n[storage]\nreserve_bytes = "3MiB"\n')
    monkeypatch.setenv("CRDT_MERGE_NODE_LOG__LEVEL", "debug")

    rows = {
        line.split()[0]: line.split(maxsplit=2)[1:] for line in config("show", "--origin").stdout.splitlines()
    }
    told = {item["key"]: item for item in json.loads(config("show", "--json").stdout)["settings"]}

    assert rows["listen.port"] == ["1234", f"file {tmp_path}/config.toml"]
    assert rows["storage.reserve_bytes"] == ['"3MiB"', f"file {tmp_path}/config.toml"]
    assert rows["log.level"] == ['"debug"', "environment CRDT_MERGE_NODE_LOG__LEVEL"]
    assert rows["node.data_dir"] == [f'"{tmp_path}"', "environment CRDT_MERGE_NODE_DATA_DIR"]
    assert rows["peers.seeds"] == ["[]", "default"]
    assert told["listen.port"] == {
        "key": "listen.port", "value": 1234, "origin": "file", "where": f"{tmp_path}/config.toml",
    }  # fmt: skip
    assert set(told) == set(known_keys())


def test_what_show_prints_is_a_file_that_says_the_same(config: Any, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        '[listen]\nadvertise = ["a.example:1", "[::1]:2"]\n[resolve]\nworkers = 3\n'
    )
    shown = tmp_path / "shown.toml"
    shown.write_text(config("show").stdout)

    assert _values(load_config(None, {"node.data_dir": str(tmp_path)}, {})) == _values(
        load_config(shown, {}, {})
    )


def test_validate_names_every_problem_at_once(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "other.toml"
    file.write_text("[listen]\nport = 70000\nhots = 1\n")
    monkeypatch.setenv("CRDT_MERGE_NODE_LOG__LEVLE", "debug")

    result = config("validate", str(file))

    assert result.exit_code == 78
    assert "unknown environment variable CRDT_MERGE_NODE_LOG__LEVLE" in result.stderr
    assert 'Did you mean "CRDT_MERGE_NODE_LOG__LEVEL"?' in result.stderr
    assert "unknown key 'listen.hots'" in result.stderr
    assert "listen.port = 70000" in result.stderr
    assert len(json.loads(config("validate", str(file), "--json").stdout)["problems"]) == 3


def test_validate_says_what_it_looked_at(config: Any, tmp_path: Path) -> None:
    without = config("validate")
    (tmp_path / "config.toml").write_text("[listen]\nport = 1\n")
    told = json.loads(config("validate", "--json").stdout)

    assert without.exit_code == 0
    assert "no file" in without.stdout
    assert (told["file"], told["is_valid"]) == (str(tmp_path / "config.toml"), True)
    assert told["origins"]["file"] == 1


@pytest.mark.parametrize("key", known_keys())
def test_every_setting_is_explained(config: Any, key: str) -> None:
    result = config("explain", key)

    assert result.exit_code == 0
    assert known_keys()[key] in result.stdout
    assert f"CRDT_MERGE_NODE_{key.replace('.', '__').upper()}" in result.stdout
    assert "takes effect" in result.stdout


def test_a_size_is_explained_with_unit_range_and_default(config: Any) -> None:
    shown = config("explain", "resolve.memory_bytes").stdout
    told = json.loads(config("explain", "resolve.memory_bytes", "--json").stdout)["settings"][0]

    assert "at least 64MiB" in shown
    assert "536870912 (512.0 MiB)" in shown
    assert told["unit"].startswith("bytes")
    assert told["default"] == 512 << 20


def test_a_section_and_all_settings_can_be_explained(config: Any) -> None:
    section = [item["key"] for item in json.loads(config("explain", "listen", "--json").stdout)["settings"]]
    everything = config("explain").stdout

    assert section == ["listen.host", "listen.port", "listen.advertise"]
    assert all(key in everything for key in known_keys())


@pytest.mark.parametrize(
    ("key", "meant"), [("listen.prot", "listen.port"), ("memory_bytes", "resolve.memory_bytes")]
)
def test_a_misspelt_setting_gets_a_suggestion(config: Any, key: str, meant: str) -> None:
    result = config("explain", key)

    assert result.exit_code == 4
    assert f'Did you mean "{meant}"?' in result.stderr


def test_what_can_be_changed_while_the_daemon_runs_says_by_which_command(config: Any) -> None:
    shown = config("explain", "log.level").stdout

    assert "at once: crdt-merge-node log level LEVEL" in shown
    assert set(LIVE) <= set(known_keys())
    assert {command.split()[1] for command in LIVE.values()} <= set(COMMANDS)


def test_flags_are_those_of_run() -> None:
    options = {option for parameter in run_command.params for option in parameter.opts}
    common = {"--json", "--quiet", "-q", "--no-input", "--debug", "--config", "--alone"}

    assert set(FLAGS) <= set(known_keys())
    assert set(FLAGS.values()) == options - common


def test_the_schema_is_one_and_names_every_setting(config: Any) -> None:
    schema = json.loads(config("schema").stdout)
    sections = {
        name: schema["$defs"][part["$ref"].rpartition("/")[2]] for name, part in schema["properties"].items()
    }

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert {f"{s}.{key}" for s, part in sections.items() for key in part["properties"]} == set(known_keys())
    assert json.loads(config("schema", "--json").stdout)["json_schema"] == schema


def test_the_example_changes_nothing_as_it_is(config: Any, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(config("example").stdout)
    found = load_config(None, {"node.data_dir": str(tmp_path)}, {})

    assert {origin.kind for key, _, origin in found.items() if key != "node.data_dir"} == {"default"}


def test_the_example_with_every_line_uncommented_sets_every_default(tmp_path: Path) -> None:
    lines = example().splitlines()
    keys = {key.partition(".")[2] for key in known_keys()}
    bare = [line.removeprefix("# ") if line[2:].partition(" = ")[0] in keys else line for line in lines]
    file = tmp_path / "example.toml"
    file.write_text("\n".join(bare))
    found = load_config(file, {}, {})

    document = tomllib.loads(file.read_text())
    assert {f"{section}.{key}" for section, part in document.items() for key in part} == set(known_keys())
    assert {origin.kind for _, _, origin in found.items()} == {"file"}
    defaults = {
        key: setting.default for key, setting in explain_settings().items() if not setting.is_required
    }
    values = {
        key: list(v) if isinstance(v, tuple) else v for key, v in _values(found).items() if key in defaults
    }
    assert defaults == values


def test_the_lines_of_the_example_are_short_enough_to_read() -> None:
    assert max(map(len, example().splitlines())) <= 102


@pytest.mark.parametrize(("nbytes", "text"), [(1 << 30, "1GiB"), (3 << 20, "3MiB"), (1023, "1023"), (0, "0")])
def test_sizes_are_written_as_people_do(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text
