"""`artefact`: files in, an artefact out, checked; and what is wrong with one."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from crdt_merge_node.artefacts.files import read_artefact
from crdt_merge_node.cli.app import root
from crdt_merge_node.ports import SystemFs
from crdt_merge_node.resolve.describe import describe_file
from safetensors.numpy import load_file, save_file

FS = SystemFs()


def run(*arguments, code=0):
    result = CliRunner().invoke(root, ["artefact", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def models(tmp_path):
    """Return two model files."""
    paths = []
    for i in (1, 2):
        paths.append(tmp_path / f"model-{i}.safetensors")
        save_file({"b": np.full(3, i, np.float32), "w": np.full((3, 4), i, np.float32)}, paths[-1])
    return paths


def test_a_fisher_diagonal_names_its_model_and_holds_the_means(tmp_path, models):
    gradients, output = tmp_path / "g.safetensors", tmp_path / "f.safetensors"
    save_file({"b": np.array([[1, 2, 3], [3, 2, 1]], np.float32)}, gradients)

    result = run(
        "fisher", gradients, "--model", models[0], "--weight", "2", "--label-mode", "sampled",
        "--loss", "cross-entropy", "--base", models[1], "-o", output,
    )  # fmt: skip

    header = read_artefact(output, FS).header
    assert header["subject"] == describe_file(models[0], 2 << 32).digest.hex()
    assert header["base"] == describe_file(models[1]).manifest.content.hex()
    assert (header["n_samples"], header["loss"]) == (2, "cross-entropy")
    assert load_file(output)["b"].tolist() == [5.0, 4.0, 5.0]
    assert header["subject"] in result.stdout
    assert "it is well formed" in run("show", output, "--like", models[0]).stdout


def test_a_gram_takes_arrays_and_shares_them(tmp_path, models):
    np.save(tmp_path / "x.npy", np.eye(4, dtype=np.float32))
    output = tmp_path / "g.safetensors"

    run("gram", f"x={tmp_path / 'x.npy'}", "--input", "w=x", "--model", models[0], "-o", output)

    assert load_file(output)["x"].tolist() == [0.25, 0, 0.25, 0, 0, 0.25, 0, 0, 0, 0.25]
    assert "x" in run("show", output).stdout


def test_scores_take_the_parameters_from_the_model_and_the_base(tmp_path, models):
    gradients, output = tmp_path / "g.safetensors", tmp_path / "s.safetensors"
    save_file({"b": np.array([1, -2, 3], np.float32)}, gradients)
    files = ("snip", gradients, "--base-gradients", gradients, "-o", output)

    run(*files, "--model", models[1], "--base", models[0])

    written = load_file(output)
    assert written["base/b"].tolist() == [1.0, 2.0, 3.0]
    assert written["self/b"].tolist() == [2.0, 4.0, 6.0]
    assert "give one --model FILE and --base FILE" in run(*files, "--contribution", "ab" * 32, code=2).stderr


def test_a_role_can_be_given_to_a_contribution_by_its_digest(tmp_path):
    answer = json.loads(
        run("role", "forget", "--contribution", "ab" * 32, "-o", tmp_path / "r", "--json").stdout
    )

    assert answer["schema"] == "artefact-write/1"
    assert (answer["header"]["role"], answer["header"]["subject"]) == ("forget", "ab" * 32)


def test_a_table_may_name_its_models_in_any_order(tmp_path, models):
    outputs = []
    for number, (order, row) in enumerate(((models, "*=0.1,0.2"), (models[::-1], "*=0.2,0.1"))):
        outputs.append(tmp_path / f"t{number}")
        run("lambda-table", "--row", row, "--model", order[0], "--model", order[1], "-o", outputs[-1])

    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_any_type_is_packed_from_a_header_and_tensors(tmp_path, models):
    header, tensors, output = tmp_path / "h.json", tmp_path / "t.safetensors", tmp_path / "o"
    header.write_text('{"n_samples": 4,\n "form": "score"}')
    scores = np.ones((3, 4))
    save_file({"base/w": scores, "self/w": scores}, tensors)

    run("pack", "snip_score", "--header", header, "--tensors", tensors, "--model", models[0], "-o", output)

    shown = json.loads(run("show", output, "--like", models[0], "--json").stdout)
    assert (shown["schema"], shown["type"], shown["problems"]) == ("artefact-show/1", "snip_score", [])
    assert shown["tensors"][0] == {"name": "base/w", "dtype": "F32", "shape": [3, 4]}


def test_what_does_not_fit_the_model_is_refused_and_leaves_no_file(tmp_path, models):
    output = tmp_path / "o"

    result = run("lambda-table", "--row", "b=0.1", "--model", models[0], "-o", output, code=7)

    assert "no row fits tensor w" in result.stderr
    assert not output.exists()


def test_show_ends_with_status_7_if_something_is_wrong(tmp_path, models):
    output = tmp_path / "o"
    run("lambda-table", "--row", "b=0.1", "--contribution", "ab" * 32, "-o", output)

    assert "wrong: no row fits tensor w" in run("show", output, "--like", models[0], code=7).stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "either --model FILE or --contribution"),
        (("--contribution", "xyz"), "no contribution digest"),
        (("--model", "MODEL", "--weight", "1,2"), "2 weights for 1 models"),
        (("--model", "MODEL", "--contribution", "ab" * 32), "either --model FILE or --contribution"),
    ],
)
def test_whose_it_is_has_to_be_said_once(tmp_path, models, arguments, problem):
    named = [models[0] if argument == "MODEL" else argument for argument in arguments]

    assert problem in run("role", "safety", *named, "-o", tmp_path / "o", code=2).stderr


def test_no_artefact_is_written_over_what_it_is_made_of(tmp_path, models):
    gradients, before = tmp_path / "g.safetensors", models[0].read_bytes()
    save_file({"b": np.ones((2, 3), np.float32)}, gradients)

    of_model = run("role", "forget", "--model", models[0], "-o", models[0], code=2)
    run("fisher", gradients, "--label-mode", "sampled", "--model", models[0], "-o", gradients, code=2)

    assert "name another place" in of_model.stderr
    assert models[0].read_bytes() == before
    assert list(load_file(gradients)) == ["b"]
