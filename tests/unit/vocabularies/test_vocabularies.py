"""Models with other vocabularies: rows by tokens, whatever is padded, reordered, added or missing."""

import json

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from crdt_merge_node.checkpoints.reading import read_checkpoint
from crdt_merge_node.cli.app import root
from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.ports import SystemFs, SystemRng
from crdt_merge_node.resolve.merge import merge_files
from crdt_merge_node.vocabularies import align_vocabulary, read_map, read_vocabulary, row_map
from crdt_merge_node.vocabularies.aligning import is_table
from crdt_merge_protocol.errors import ShapeMismatchError, TensorMissingError
from safetensors.numpy import load_file, save_file
from support.checkpoints import save_sharded

FS, RNG = SystemFs(), SystemRng()
WIDTH = 4
NAMES = {
    "model.embed_tokens.weight": True, "transformer.wte.weight": True, "shared.weight": True,
    "lm_head.weight": True, "lm_head.bias": True, "gpt_neox.embed_in.weight": True, "embed_out.weight": True,
    "bert.embeddings.word_embeddings.weight": True, "cls.predictions.bias": True,
    "cls.predictions.decoder.weight": True, "lm_head.decoder.weight": True,
    "bert.embeddings.position_embeddings.weight": False, "lm_head.dense.weight": False,
    "lm_head.layer_norm.weight": False, "model.layers.0.mlp.up_proj.weight": False,
    "transformer.wpe.weight": False, "cls.predictions.transform.dense.weight": False,
}  # fmt: skip


def rows_of(tokens, seed, total=None, dtype=np.float32):
    """Return a table whose rows follow from the tokens and a number; those of padding likewise."""
    return np.stack([
        np.random.default_rng([seed, *token.encode()]).normal(size=WIDTH)
        for token in [*tokens, *(f"pad {i}" for i in range(len(tokens), total or 0))]
    ]).astype(dtype)  # fmt: skip


def make(path, tokens, seed, *, total=None, dtype=np.float32, with_head=True):
    """Write a model with its tokenizer, in a directory, and return that."""
    path.mkdir()
    tensors = {
        "model.embed_tokens.weight": rows_of(tokens, seed, total, dtype),
        "layer.weight": rows_of("ab", seed, dtype=dtype),
    }
    if with_head:
        tensors["lm_head.weight"] = rows_of(tokens, seed + 1, total, dtype)
    save_file(tensors, path / "model.safetensors")
    added = [{"id": i, "content": token} for i, token in enumerate(tokens) if token.startswith("<")]
    vocab = {token: i for i, token in enumerate(tokens) if not token.startswith("<")}
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": added}))
    return path


def align(model, to, output, **options):
    return align_vocabulary(model, to, output, fs=FS, rng=RNG, **options)


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_tokens_are_known_by_their_names(name):
    assert is_table(name) == NAMES[name]
    assert is_table(name, ["*"])


def test_rows_follow_their_tokens_and_the_rest_comes_from_the_other(tmp_path):
    ours = make(tmp_path / "ours", ["c", "a", "<new>", "b"], 1)
    theirs = make(tmp_path / "theirs", ["a", "b", "d", "c", "<s>"], 2, total=8)
    output = tmp_path / "out.safetensors"

    result = align(ours, theirs, output)

    mine, other = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    found = load_file(output)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        table = mine[name]
        np.testing.assert_array_equal(found[name][[0, 1, 3]], table[[1, 3, 0]])
        np.testing.assert_array_equal(found[name][[2, 4, 5, 6, 7]], other[name][[2, 4, 5, 6, 7]])
    assert found["layer.weight"].tobytes() == mine["layer.weight"].tobytes()
    assert (result.rows, result.shared, result.copied, result.dropped) == (8, 3, 5, 1)
    assert result.tables == ("lm_head.weight", "model.embed_tokens.weight")
    assert result.nbytes == output.stat().st_size
    assert any("Only 3 of 8 rows" in text for text in result.warnings)
    assert any("left out: 1." in text for text in result.warnings)


def test_a_model_of_the_same_vocabulary_is_copied(tmp_path):
    ours = make(tmp_path / "ours", ["a", "b", "c"], 1)
    theirs = make(tmp_path / "theirs", ["a", "b", "c"], 2)

    result = align(ours, theirs, tmp_path / "out.safetensors")

    found, mine = load_file(tmp_path / "out.safetensors"), load_file(ours / "model.safetensors")
    assert all(found[name].tobytes() == mine[name].tobytes() for name in mine)
    assert (result.shared, result.copied, result.dropped, result.warnings) == (3, 0, 0, ())


def test_what_was_aligned_merges_and_rows_of_the_base_stay(tmp_path):
    """STRATEGIES 1.5: tokens of both are merged, the others are the base's or their only owner's."""
    base = make(tmp_path / "base", ["a", "b", "c", "d"], 1)
    tuned = make(tmp_path / "tuned", ["d", "b", "a"], 2)
    chat = make(tmp_path / "chat", ["a", "b", "c", "d", "<chat>"], 3)
    aligned = [tmp_path / f"{name}.safetensors" for name in ("base", "tuned")]
    for model, output in zip((base, tuned), aligned, strict=True):
        align(model, chat, output)

    with pytest.raises(ShapeMismatchError, match="vocabulary"):
        merge_files([tuned, chat], tmp_path / "refused", strategy="ties", base=base)
    merge_files(
        [aligned[1], chat], tmp_path / "out", strategy="task_arithmetic", base=aligned[0],
        params={"normalize": "true"},
    )  # fmt: skip

    name = "model.embed_tokens.weight"
    out, b, t, c = (
        load_file(path)[name].astype(float)
        for path in (tmp_path / "out", base / "model.safetensors", tuned / "model.safetensors",
                     chat / "model.safetensors")
    )  # fmt: skip
    np.testing.assert_allclose(out[:4], (np.stack([t[2], t[1], c[2], t[0]]) + c[:4]) / 2, atol=1e-6)
    np.testing.assert_array_equal(out[4], c[4])
    assert np.abs(out[:4] - b).max() > 0.01


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_copied_rows_take_the_element_type_of_the_model(tmp_path, dtype):
    ours = make(tmp_path / "ours", ["a", "b"], 1, dtype=np.float16)
    theirs = make(tmp_path / "theirs", ["b", "x", "a"], 2)
    big = load_file(theirs / "model.safetensors")
    big["lm_head.weight"][1, 0] = 1e6
    save_file(big, theirs / "model.safetensors")

    result = align(ours, theirs, tmp_path / "out.safetensors")

    found = load_file(tmp_path / "out.safetensors")
    expected = big["model.embed_tokens.weight"][1].astype(np.float16)
    np.testing.assert_array_equal(found["model.embed_tokens.weight"][1], expected)
    assert found["lm_head.weight"][1, 0] == np.finfo(np.float16).max
    assert any("became its largest: 1." in text for text in result.warnings)


def test_long_tables_are_moved_in_parts(tmp_path):
    tokens = [f"t{i}" for i in range(70_000)]
    order = np.random.default_rng(1).permutation(len(tokens))
    order[:30_000].sort()  # Long runs and short ones.
    table = np.arange(len(tokens) * 8, dtype=np.float32).reshape(-1, 8)
    other = np.zeros((len(tokens) + 40_000, 8), np.float32)
    other[len(tokens) :] = np.arange(40_000 * 8).reshape(-1, 8)
    (tmp_path / "map.json").write_text(json.dumps(order.tolist()))
    for name, values in (("ours", table), ("theirs", other)):
        save_file({"wte.weight": values}, tmp_path / f"{name}.safetensors")
    seen = []

    align(
        tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors", tmp_path / "out.safetensors",
        given=tmp_path / "map.json", progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip

    found = load_file(tmp_path / "out.safetensors")["wte.weight"]
    np.testing.assert_array_equal(found[: len(tokens)], table[order])
    np.testing.assert_array_equal(found[len(tokens) :], other[len(tokens) :])
    assert seen[-1] == (other.nbytes, other.nbytes)


def test_a_directory_of_shards_is_read(tmp_path):
    theirs = make(tmp_path / "theirs", ["b", "a"], 2)
    tensors = {"model.embed_tokens.weight": rows_of(["a", "b"], 1), "layer.weight": rows_of("ab", 1)}
    tensors["lm_head.weight"] = rows_of(["a", "b"], 5)
    ours = save_sharded(tmp_path / "ours", tensors)
    (ours / "vocab.json").write_text('{"a": 0, "b": 1}')

    align(ours, theirs, tmp_path / "out.safetensors")

    found = load_file(tmp_path / "out.safetensors")
    np.testing.assert_array_equal(found["lm_head.weight"], tensors["lm_head.weight"][[1, 0]])


def test_tables_padded_to_different_lengths_keep_the_rows_of_their_tokens(tmp_path):
    """A tokenizer may know more tokens than a table has rows: those have none."""
    source, target = {"a": 0, "b": 1, "z": 9}, {"b": 0, "z": 1, "a": 2, "q": 7}

    found = row_map(source, target, 4, 5)

    assert found.rows.tolist() == [1, -1, 0, -1, -1]
    assert found.dropped == 0


def test_of_several_tokens_with_one_id_the_first_that_both_know_counts():
    found = row_map({"b": 1, "c": 2}, {"c": 0, "a": 0, "b": 0}, 3, 1)

    assert found.rows.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 0, "b": 1}', {"a": 0, "b": 1}),
        ('{"model": {"vocab": [["<unk>", 0.0], ["a", -1.5]]}}', {"<unk>": 0, "a": 1}),
        (
            '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 5, "content": "<s>"}]}',
            {"a": 0, "<s>": 5},
        ),
    ],
)
def test_vocabularies_are_read_as_tokenizers_write_them(tmp_path, text, expected):
    (tmp_path / "tokenizer.json").write_text(text)
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")

    for path in (tmp_path / "tokenizer.json", tmp_path, tmp_path / "model.safetensors"):
        assert read_vocabulary(FS, path) == expected


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"a": -1}', '{"a": true}', '{"a": "0"}', '{"model": {}}', "[" * 100_000, '{"a": 1e3}',
     '{"model": {"vocab": {}}, "added_tokens": [{"content": "a"}]}', '{"a": 99999999999}'],
)  # fmt: skip
def test_what_is_no_vocabulary_is_refused_by_its_name(tmp_path, text):
    (tmp_path / "v.json").write_text(text)

    with pytest.raises(InvalidRequestError, match=r"v\.json") as caught:
        read_vocabulary(FS, tmp_path / "v.json")
    assert "tokenizer.json" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{}", "[]", "[-2]", "[0.5]", '["0"]', "[true]"])
def test_what_is_no_map_is_refused_by_its_name(tmp_path, text):
    (tmp_path / "m.json").write_text(text)

    with pytest.raises(InvalidRequestError, match=r"m\.json"):
        read_map(FS, tmp_path / "m.json")


@pytest.mark.parametrize("rows", [[0, 1, 2, 0], [0, 3]])
def test_a_map_of_other_tables_is_refused(tmp_path, rows):
    ours, theirs = make(tmp_path / "a", ["a", "b", "c"], 1), make(tmp_path / "b", ["a", "b", "c"], 1)
    (tmp_path / "m.json").write_text(json.dumps(rows))

    with pytest.raises(InvalidRequestError, match="tables have 3 and 3"):
        align(ours, theirs, tmp_path / "out", given=tmp_path / "m.json")
    assert not (tmp_path / "out").exists()


def test_models_that_differ_in_more_than_tables_are_refused(tmp_path):
    theirs = make(tmp_path / "theirs", ["a", "b"], 1)
    tied = make(tmp_path / "tied", ["a", "b"], 1, with_head=False)
    wide = make(tmp_path / "wide", ["a", "b"], 1)
    for path, name, shape in ((wide, "lm_head.weight", (2, 9)), (tied, "x.weight", (1,))):
        tensors = load_file(path / "model.safetensors") | {name: np.zeros(shape, np.float32)}
        save_file(tensors, path / "model.safetensors")

    with pytest.raises(ShapeMismatchError, match=r"lm_head.*\[2, 9\].*\[2, 4\]"):
        align(wide, theirs, tmp_path / "out")
    with pytest.raises(TensorMissingError, match=r"lm_head\.weight is missing; tensor x"):
        align(tied, theirs, tmp_path / "out")


def test_without_a_table_or_a_tokenizer_the_remedy_is_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_file({"tokens": np.zeros((2, 2), np.float32)}, tmp_path / name / "model.safetensors")
    with pytest.raises(InvalidRequestError, match=r"no tokenizer\.json and no vocab\.json"):
        align(tmp_path / "a", tmp_path / "b", tmp_path / "out")
    for name in ("a", "b"):
        (tmp_path / name / "vocab.json").write_text('{"a": 0, "b": 1}')

    with pytest.raises(InvalidRequestError, match="no table of tokens") as caught:
        align(tmp_path / "a", tmp_path / "b", tmp_path / "out")

    assert "--tensor" in caught.value.hint
    with pytest.raises(InvalidRequestError, match=r"has no tensor tik\*"):
        align(tmp_path / "a", tmp_path / "b", tmp_path / "out", tensors=["tok*", "tik*"])
    assert align(tmp_path / "a", tmp_path / "b", tmp_path / "out", tensors=["tok*"]).tables == ("tokens",)


def run(*arguments, code=0):
    result = CliRunner().invoke(root, ["vocabulary", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_the_command_says_what_it_moved(tmp_path):
    ours, theirs = make(tmp_path / "ours", ["b", "a", "x"], 1), make(tmp_path / "theirs", ["a", "b", "c"], 2)
    output = tmp_path / "out.safetensors"

    shown = run(ours, "--to", theirs, "-o", output)
    told = run(ours, "--to", theirs, "-o", output, "--json", "--tokens", ours, "--to-tokens", theirs, code=2)
    files = ("--tokens", ours / "tokenizer.json", "--to-tokens", theirs / "tokenizer.json")
    answer = json.loads(run(ours, "--to", theirs, "-o", output, "--json", *files).stdout.splitlines()[-1])

    assert "rows" in shown.stdout
    assert "3: 2 of MODEL, 1 of the other" in shown.stdout
    assert "left out: 1." in shown.stderr
    assert "tokens" in told.stderr
    assert (answer["schema"], answer["event"]) == ("vocabulary/1", "result")
    assert (answer["rows"], answer["shared"], answer["copied"], answer["dropped"]) == (3, 2, 1, 1)
    assert read_checkpoint(FS, output).nbytes == 4 * 4 * (3 + 3 + 2)


def test_a_map_and_vocabularies_exclude_each_other(tmp_path):
    ours = make(tmp_path / "ours", ["a"], 1)
    (tmp_path / "m.json").write_text("[0]")
    vocabulary = ours / "tokenizer.json"

    run(
        ours, "--to", ours, "-o", tmp_path / "o", "--map", tmp_path / "m.json", "--tokens", vocabulary, code=2
    )
