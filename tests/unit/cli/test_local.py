"""The commands that need no daemon: `init`, `merge`, the banner of `run`; and what `status` imports."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import crdt_merge_node.cli
import numpy as np
import pytest
from click.testing import CliRunner
from crdt_merge_node.cli.app import root
from crdt_merge_node.cli.place import find_data_dir
from crdt_merge_node.cli.run import banner
from crdt_merge_node.cli.values import Weight, parse_weight
from crdt_merge_node.config import load_config
from crdt_merge_node.config.loading import default_data_dir
from crdt_merge_node.ports import SystemClock, SystemFs, SystemRng
from crdt_merge_node.storage import DataDir, Store
from crdt_merge_node.transport.identity import Identity
from crdt_merge_node.transport.invites import StoredInvites, Token, invite_digest
from safetensors.numpy import load_file, save_file


def _run(*arguments: str) -> Any:
    return CliRunner().invoke(root, arguments)


def test_init_asks_nothing_and_prints_the_node_the_paths_and_what_comes_next(tmp_path: Path) -> None:
    data = tmp_path / "deep" / "node"

    result = _run("init", "--data-dir", str(data), "--cluster", "dev")

    identity = Identity.load(data, SystemFs())
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"node {identity.node.hex()}\n")
    assert f"dev ({identity.cluster.hex()})" in result.stdout
    for path in data.rglob("*"):
        assert path.is_dir() or f"written  {path}" in result.stdout
    assert f"crdt-merge-node --data-dir {data} run" in result.stdout
    assert f"crdt-merge-node --data-dir {data} invite" in result.stdout
    assert re.search(r"crdt-merge-node init --join cmn1-[a-z2-7]+\n", result.stdout)


def test_the_join_line_that_init_prints_is_in_the_book_that_the_daemon_will_read(tmp_path: Path) -> None:
    result = _run("init", "--data-dir", str(tmp_path), "--advertise", "node.example:7946", "--json")

    answer = json.loads(result.stdout)
    token = Token.from_text(answer["join"].rpartition(" ")[2])
    assert token.addresses == ("node.example:7946",)
    assert token.cluster.hex() == answer["cluster"]

    async def verdicts() -> list[str]:
        data = DataDir.open(tmp_path, fs=SystemFs())
        store = await Store.open(data, clock=SystemClock(), rng=SystemRng())
        book, digest = StoredInvites(store), invite_digest(token.secret)
        try:
            times = (token.expires_at - 1, token.expires_at)
            return [await book.consume(digest, bytes(32), now=now) for now in times]
        finally:
            await store.close()
            data.close()

    assert asyncio.run(verdicts()) == ["ok", "expired"]


def test_init_promises_no_join_line_for_an_address_that_only_the_daemon_will_know(tmp_path: Path) -> None:
    result = _run("init", "--data-dir", str(tmp_path), "--port", "0", "--json")

    answer = json.loads(result.stdout)
    assert answer["join"] is None
    assert answer["next"][-1].endswith(" invite")


def test_init_never_overwrites_a_node(tmp_path: Path) -> None:
    _run("init", "--data-dir", str(tmp_path))
    before = (tmp_path / "identity" / "node.key").read_bytes()

    result = _run("init", "--data-dir", str(tmp_path))

    assert result.exit_code == 78
    assert "already holds a node" in result.stderr
    assert before == (tmp_path / "identity" / "node.key").read_bytes()


def test_what_init_is_told_is_what_run_will_read(tmp_path: Path) -> None:
    result = _run(
        "init", "--data-dir", str(tmp_path), "--name", "alpha", "--port", "0", "--advertise", "h:1", "--json"
    )

    answer = json.loads(result.stdout)
    config = load_config(None, {"node.data_dir": str(tmp_path)}, {})
    assert (config.node.name, config.listen.port, config.listen.advertise) == ("alpha", 0, ("h:1",))
    assert str(tmp_path / "config.toml") in answer["written"]
    assert answer["schema"] == "init/1"
    assert answer["has_ca"] is True


def test_settings_that_would_not_start_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    result = _run("init", "--data-dir", str(tmp_path / "n"), "--advertise", "nonsense")

    assert result.exit_code == 78
    assert not (tmp_path / "n").exists()


def test_a_token_that_is_none_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    result = _run("init", "--data-dir", str(tmp_path / "n"), "--join", "nonsense")

    assert result.exit_code == 78
    assert "token" in result.stderr
    assert not (tmp_path / "n").exists()


def test_the_banner_says_who_where_and_warns_of_an_address_nobody_can_dial() -> None:
    text = banner(
        {
            "version": "0.1.0",
            "node": "ab" * 32,
            "name": "alpha",
            "cluster": "cd" * 32,
            "cluster_name": "dev",
            "listen": "0.0.0.0:7946",
            "advertise": ["127.0.0.1:7946", "10.0.0.1:7946"],
            "data_dir": "/data",
            "store_bytes": 2048,
            "seeds": [],
            "groups": 0,
            "socket": "/data/control.sock",
        }
    )

    assert f"node        {'ab' * 32} alpha" in text
    assert "cluster     dev (cdcdcdcdcdcd)" in text
    assert "advertised  127.0.0.1:7946, 10.0.0.1:7946" in text
    assert "tls         1.3" in text
    assert "store       /data: 2.0 KiB" in text
    assert "seeds       none" in text
    assert "groups      0" in text
    assert text.count("warning") == 1
    assert "warning: only this machine can dial 127.0.0.1:7946" in text


@pytest.mark.parametrize(
    ("address", "is_warned"), [("127.0.0.1", False), ("[::1]", False), ("10.0.0.1", True)]
)
def test_the_banner_warns_of_a_dashboard_that_other_machines_can_read(address: str, is_warned: bool) -> None:
    text = banner({"dashboard": f"http://{address}:7947/"})

    assert ("other machines can read" in text) == is_warned


def test_a_weight_is_rounded_to_the_nearest_unit() -> None:
    assert parse_weight("1") == 1 << 32
    assert parse_weight("0.5") == 1 << 31
    assert parse_weight("0.1") == round(0.1 * 2**32)


@pytest.mark.parametrize("text", ["1e30", "-1e30", "nan", "inf", "1e999999999", "one", ""])
def test_a_weight_is_a_number_that_the_wire_can_carry(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_weight(text)


def test_only_merge_takes_weights_that_are_not_above_0() -> None:
    """PROTOCOL R14 quarantines them; offline, a negative weight makes some strategies forget."""
    assert [parse_weight(text) for text in ("-2", "0", "1e-30")] == [-(2 << 32), 0, 0]
    for text in ("-2", "0", "1e-30"):
        with pytest.raises(click.BadParameter):
            Weight().convert(text, None, None)


@pytest.mark.parametrize("file", ["host:/models/a.safetensors", "https://host/a.safetensors"])
def test_a_file_of_another_machine_is_refused_with_what_to_do(file: str) -> None:
    result = _run("contribution", "add", "digits", file)

    assert result.exit_code == 2
    assert "copy it here first" in result.stderr


def test_demo_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)

    result = _run("demo")

    assert result.exit_code == 2
    assert "pip install 'crdt-merge-node[demo]'" in result.stderr


def test_command_and_daemon_agree_on_the_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    for user in (0, 1000):
        for base in ("", "/elsewhere"):
            monkeypatch.setattr(os, "geteuid", lambda user=user: user)
            monkeypatch.setenv("XDG_DATA_HOME", base)

            assert default_data_dir() == find_data_dir(None, os.environ)


def test_status_imports_nothing_slow(tmp_path: Path) -> None:
    """The budget of ``status`` is 0.3 s; each of these would eat a good part of it."""
    code = (
        "import sys\n"
        "from crdt_merge_node.cli import main\n"
        "import crdt_merge_node.control.client\n"
        f"sys.argv = ['crdt-merge-node', '--data-dir', {str(tmp_path)!r}, 'status']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 3\n"
        "slow = {'numpy', 'pydantic', 'rich', 'structlog', 'cryptography', 'apsw', 'msgpack', 'uvloop'}\n"
        "print(sorted(slow & set(sys.modules)))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """Two models of one tensor: all 1 and all 4."""
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("one", "four")]
    for path, value in zip(paths, (1.0, 4.0), strict=True):
        save_file({"w": np.full((2, 3), value, np.float32)}, path)
    return paths


def test_merge_weighs_files_in_the_order_given_and_names_what_it_wrote(
    models: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "out.safetensors"

    result = _run("merge", *models, "-o", str(output), "--weight", "2,1", "--json")

    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    assert (answer["schema"], answer["event"], answer["inputs"]) == ("merge/1", "result", 2)
    assert answer["file_sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert Path(answer["provenance_path"]).is_file()
    np.testing.assert_array_equal(load_file(output)["w"], np.full((2, 3), 2.0, np.float32))


def test_merge_shows_the_digest_to_people(models: list[str], tmp_path: Path) -> None:
    result = _run("merge", *models, "-o", str(tmp_path / "o.safetensors"))

    assert re.search(r"^  digest +[0-9a-f]{64}$", result.stdout, re.MULTILINE)
    assert result.stderr == ""


@pytest.mark.parametrize(
    "options", [["--weight", "1"], ["--weight", "1,x"], ["--strategy", "tis"], ["--param", "density=2"]]
)
def test_merge_refuses_bad_usage_and_writes_nothing(
    models: list[str], tmp_path: Path, options: list[str]
) -> None:
    output = tmp_path / "out.safetensors"

    assert _run("merge", *models, "-o", str(output), *options).exit_code == 2
    assert not output.exists()


def test_a_merge_plan_says_what_it_costs_and_reads_no_tensor(models: list[str], tmp_path: Path) -> None:
    with Path(models[0]).open("r+b") as file:
        file.seek(-24, 2)
        file.write(np.full(6, np.nan, np.float32).tobytes())  # Whoever reads the tensor refuses it.

    shown = _run("merge", *models, "--plan", "--strategy", "ties", "--base", models[1])
    told = _run("merge", *models, "--plan", "--json")
    plan = json.loads(told.stdout)

    assert shown.exit_code == told.exit_code == 0, shown.stderr
    assert re.search(r"^  tensors +1 tensor, 1 of them merged$", shown.stdout, re.MULTILINE)
    assert re.search(r"^  numerics +bitwise$", shown.stdout, re.MULTILINE)
    assert (plan["schema"], plan["event"]) == ("merge/1", "plan")
    assert plan["plan"]["read_bytes"] == 2 * 2 * 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["four.safetensors", "one.safetensors"]


def test_every_field_of_an_estimate_is_documented() -> None:
    from crdt_merge_node.resolve.estimate import Estimate

    document = Path(crdt_merge_node.cli.__file__).with_name("JSON.md").read_text()
    section = document.partition("## Estimate")[2]

    assert all(f"`{field}`" in section for field in Estimate.__dataclass_fields__)


def test_merge_needs_a_place_for_its_output_unless_it_plans(models: list[str]) -> None:
    result = _run("merge", *models)

    assert result.exit_code == 2
    assert "--output" in result.stderr


def test_what_a_strategy_lacks_is_named_and_a_stand_in_said(models: list[str], tmp_path: Path) -> None:
    output = str(tmp_path / "out.safetensors")
    refused = _run("merge", *models, "-o", output, "--strategy", "fisher_merge")
    fallback = ("--param", "fallback=linear", "--json")
    stood_in = _run("merge", *models, "-o", output, "--strategy", "fisher_merge", *fallback)
    answer = json.loads(stood_in.stdout.splitlines()[-1])

    assert refused.exit_code == 6
    assert all(re.search(rf"[0-9a-f]{{12}} \({re.escape(model)}\)", refused.stderr) for model in models)
    assert "--artefact" in refused.stderr
    assert (answer["strategy"], answer["effective_strategy"]) == ("fisher_merge", "linear")
    assert "linear stood in for fisher_merge" in answer["warnings"][0]


def test_merge_writes_over_no_file_that_it_reads_or_writes(models: list[str], tmp_path: Path) -> None:
    before = Path(models[0]).read_bytes()
    output = str(tmp_path / "out.safetensors")
    over_input = _run("merge", *models, "-o", models[0])
    over_output = _run("merge", *models, "-o", output, "--card", output)

    assert (over_input.exit_code, over_output.exit_code) == (2, 2)
    assert "name another place" in over_input.stderr
    assert Path(models[0]).read_bytes() == before
    assert not Path(output).exists()


def test_merge_warns_of_rows_of_a_parameter_that_fit_nothing(models: list[str], tmp_path: Path) -> None:
    rows = ("--param", "weight=w=2;tpyo.*=3;#00000000=4", "--json")
    result = _run("merge", *models, "-o", str(tmp_path / "out.safetensors"), *rows)

    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["warnings"] == ["Nothing fits weight: tpyo.*.", "Nothing fits weight: #00000000."]


@pytest.mark.parametrize(
    "row", ["#one.safetensors=3;1", "#{path}=3;1", "w#one.safetensors=3;1", "#four.safetensors=1;3"]
)
def test_rows_of_a_parameter_may_name_inputs_by_their_files(
    models: list[str], tmp_path: Path, row: str
) -> None:
    """They become digests, so that a group under the policy in the provenance writes the same."""
    output = tmp_path / "out.safetensors"
    row = row.format(path=models[0])
    result = _run("merge", *models, "-o", str(output), "--param", f"weight={row}", "--json")

    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    np.testing.assert_array_equal(load_file(output)["w"], np.full((2, 3), 1.75, np.float32))
    assert answer["warnings"] == []
    account = json.loads(Path(answer["provenance_path"]).read_text())
    digests = [file["digest"] for file in account["facts"]["files"]]
    assert [digest for digest in digests if digest in account["recipe"]["params"]["weight"]]
    by_digest = account["recipe"]["params"]["weight"]
    again = _run("merge", *models, "-o", str(output), "--param", f"weight={by_digest}", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["resolve_key"] == answer["resolve_key"]


def test_an_input_named_in_a_row_has_its_weight(models: list[str], tmp_path: Path) -> None:
    """The weight is part of the digest that the name stands for."""
    output = tmp_path / "out.safetensors"
    rows = ("--weight", "1,2", "--param", "weight=#four.safetensors=0.5;1")
    result = _run("merge", *models, "-o", str(output), *rows)

    assert (result.exit_code, result.stderr) == (0, "")
    np.testing.assert_array_equal(load_file(output)["w"], np.full((2, 3), 2.5, np.float32))


@pytest.mark.parametrize("arguments", [("-o", "{out}"), ("--plan",)])
@pytest.mark.parametrize(
    ("name", "reason"),
    [("tow.safetensors", "none of the inputs"), ("same", "the name of 2 inputs"), ("", "none")],
)
def test_a_name_of_no_input_or_of_several_is_refused_with_the_inputs(
    models: list[str], tmp_path: Path, name: str, reason: str, arguments: tuple[str, ...]
) -> None:
    more = [str(tmp_path / place / "same") for place in ("a", "b")]
    for path in more:
        Path(path).parent.mkdir()
        Path(path).write_bytes(Path(models[0]).read_bytes())
    out = tmp_path / "out.safetensors"
    asked = [argument.format(out=out) for argument in arguments]

    result = _run("merge", *models, *more, *asked, "--param", f"weight=#{name}=2;1")

    assert result.exit_code == 2
    assert reason in result.stderr
    assert all(path in result.stderr for path in [*models, *more])
    assert not out.exists()


def test_a_plan_takes_names_in_rows(models: list[str]) -> None:
    named = _run("merge", *models, "--plan", "--param", "weight=#one.safetensors=3;1", "--json")

    assert named.exit_code == 0, named.stderr
    assert json.loads(named.stdout)["plan"]["warnings"] == []


def test_merge_says_that_equal_files_count_once(models: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    result = _run("merge", *models, models[0], "-o", str(output))

    assert "The 3 files are 2 contributions: equal ones count once." in result.stderr
    np.testing.assert_array_equal(load_file(output)["w"], np.full((2, 3), 2.5, np.float32))


def test_a_mergekit_file_decides_the_strategy_alone(models: list[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"merge_method: linear\nmodels: [{{model: {models[0]}}}, {{model: {models[1]}}}]\n")
    result = _run("merge", "--config", str(recipe), "--strategy", "ties", "-o", str(tmp_path / "o"))

    assert result.exit_code == 2
    assert "--config takes the place of" in result.stderr


def test_a_budget_is_a_size_and_too_small_a_one_is_refused(models: list[str], tmp_path: Path) -> None:
    output = str(tmp_path / "out.safetensors")
    enough = _run("merge", *models, "-o", output, "--memory", "1GiB")
    too_small = _run("merge", *models, "-o", output, "--memory", "1MB")

    assert enough.exit_code == 0, enough.stderr
    assert "--memory" in too_small.stderr
    assert too_small.exit_code == 1


def test_a_plan_counts_what_is_missing_before_it_knows_which(models: list[str]) -> None:
    result = _run("merge", *models, "--plan", "--strategy", "fisher_merge")

    assert result.exit_code == 6
    assert "no fisher_diag for 2 of the models" in result.stderr


def test_too_few_models_are_bad_usage_in_a_plan_and_in_a_merge(models: list[str], tmp_path: Path) -> None:
    options = (*models, models[0], "-o", str(tmp_path / "out"), "--strategy", "krum")
    planned, merged = _run("merge", *options, "--plan"), _run("merge", *options)

    assert (planned.exit_code, merged.exit_code) == (2, 2)
    assert "krum with f = 1 needs 5 models" in merged.stderr


def test_the_list_of_strategies_is_short_and_the_explanation_whole() -> None:
    listed = _run("strategy", "list").stdout
    explained = _run("strategy", "explain", "regmean").stdout

    assert "There is no version without data" not in listed
    assert "There is no version without data" in explained
    assert "--param 'NAME=#" in explained, "how a parameter differs by contribution"
