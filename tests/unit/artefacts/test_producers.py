"""Producers of artefacts: sums against loops, files against their specification, refusals with a reason."""

import json

import numpy as np
import pytest
from crdt_merge_node.artefacts import example, files, fisher, snip
from crdt_merge_node.artefacts.files import problems_of, read_artefact, write_artefact
from crdt_merge_node.artefacts.fisher import FisherSum, fisher_tensors
from crdt_merge_node.artefacts.gram import GramSum, gram_tensors, packed
from crdt_merge_node.artefacts.headers import bound_header, lambda_rows
from crdt_merge_node.artefacts.packing import parse_fields
from crdt_merge_node.artefacts.samples import open_samples
from crdt_merge_node.artefacts.snip import snip_tensors
from crdt_merge_node.ports import SystemFs, SystemRng
from crdt_merge_node.resolve.describe import describe_file
from crdt_merge_protocol.blobs import Schema, TensorSpec
from crdt_merge_protocol.errors import (
    ArtefactInvalidError,
    MalformedTensorFileError,
    NonFiniteError,
    ParameterError,
    ShapeMismatchError,
    TensorMissingError,
)
from crdt_merge_protocol.resolve_key import used_root
from safetensors.numpy import load_file, save_file

FS, RNG = SystemFs(), SystemRng()
SCHEMA = Schema.of(
    [
        TensorSpec(name="b", dtype="F32", shape=(3,)),
        TensorSpec(name="ids", dtype="I64", shape=(2,)),
        TensorSpec(name="w", dtype="F32", shape=(3, 4)),
        TensorSpec(name="wt", dtype="F32", shape=(4, 3)),
    ]
)
SUBJECT = b"\x07" * 32


@pytest.fixture
def rng():
    return np.random.default_rng(2)


def saved(path, **arrays):
    save_file({name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}, path)
    return open_samples(str(path), FS)


def values_of(tensors):
    return {
        spec.name: np.concatenate([*blocks(), np.empty(0)]).reshape(spec.shape) for spec, blocks in tensors
    }


@pytest.mark.parametrize("block_elements", [5, 1 << 20])
def test_a_fisher_diagonal_is_the_mean_of_squares_over_all_files(tmp_path, rng, monkeypatch, block_elements):
    monkeypatch.setattr(fisher, "BLOCK_ELEMENTS", block_elements)
    many, one = rng.normal(size=(5, 3, 4)).astype("f4"), rng.normal(size=(3, 4)).astype("f4")
    sources = [saved(tmp_path / "many", w=many), saved(tmp_path / "one", w=one)]

    fields, tensors = fisher_tensors(sources, SCHEMA)

    expected = np.zeros((3, 4))
    for gradient in [*many, one]:
        for place in np.ndindex(3, 4):
            expected[place] += float(gradient[place]) ** 2 / 6
    assert fields == {"n_samples": 6}
    np.testing.assert_allclose(values_of(tensors)["w"], expected, rtol=1e-14)


def test_labels_count_by_their_probability(tmp_path, rng):
    gradients, weights = rng.normal(size=(6, 3)), rng.uniform(size=6)
    source = saved(tmp_path / "g", b=gradients, weight=weights)
    summed = FisherSum()
    for number, (gradient, weight) in enumerate(zip(gradients, weights, strict=True)):
        summed.add({"b": gradient}, weight=weight, is_new=number % 2 == 0)

    fields, tensors = fisher_tensors([source], SCHEMA, samples=3)

    assert fields == {"n_samples": summed.samples == 3 and 3}
    np.testing.assert_allclose(values_of(tensors)["b"], summed.means()["b"], rtol=1e-5)


def test_gradients_that_cannot_be_of_the_model_are_refused(tmp_path, rng):
    with pytest.raises(ArtefactInvalidError, match="no tensor of the model"):
        fisher_tensors([saved(tmp_path / "a", other=rng.normal(size=3))], SCHEMA)
    with pytest.raises(ShapeMismatchError, match=r"shape \[5\], expected \[3\]"):
        fisher_tensors([saved(tmp_path / "b", b=rng.normal(size=5))], SCHEMA)
    with pytest.raises(ArtefactInvalidError, match="differ by tensor: 1 to 2"):
        fisher_tensors([saved(tmp_path / "c", b=np.ones(3), w=np.ones((2, 3, 4)))], SCHEMA)
    with pytest.raises(ShapeMismatchError, match="2 weights for 1 gradients"):
        fisher_tensors([saved(tmp_path / "d", b=np.ones(3), weight=np.ones(2))], SCHEMA)
    with pytest.raises(ArtefactInvalidError, match="not negative"):
        list(fisher_tensors([saved(tmp_path / "e", b=np.ones(3), weight=-np.ones(1))], SCHEMA)[1])


def test_a_gram_matrix_is_the_mean_of_outer_products_and_is_shared(tmp_path, rng):
    first, second = rng.normal(size=(2, 5, 4)).astype("f4"), rng.normal(size=(7, 4)).astype("f4")
    sources = [saved(tmp_path / "1", x=first), saved(tmp_path / "2", x=second)]

    fields, tensors = gram_tensors(
        sources, SCHEMA, inputs={"w": "x", "wt": "x"}, transposed=["wt"], dtype="BF16"
    )

    tokens = np.concatenate([first.reshape(-1, 4), second]).astype(float)
    expected = [sum(t[i] * t[j] for t in tokens) / 17 for i in range(4) for j in range(i + 1)]
    assert fields == {"n_tokens": 17, "inputs": {"w": "x", "wt": "x"}, "transposed": ["wt"]}
    assert [spec for spec, _ in tensors] == [TensorSpec(name="x", dtype="BF16", shape=(10,))]
    np.testing.assert_allclose(values_of(tensors)["x"], expected, rtol=1e-12)


def test_a_running_gram_matrix_packs_as_the_format_does(rng):
    rows, running = rng.normal(size=(9, 4)), GramSum(4)
    running.add(rows[:2].reshape(1, 2, 4))
    running.add(rows[2:])

    np.testing.assert_allclose(np.concatenate([*running.triangle()]), packed(rows.T @ rows / 9), rtol=1e-6)
    with pytest.raises(ShapeMismatchError, match="do not have 4 features"):
        running.add(rows[:, :3])


def test_activations_that_cannot_be_of_the_model_are_refused(tmp_path):
    source = saved(tmp_path / "x", x=np.ones((5, 4)), y=np.ones((5, 3)), w=np.ones((6, 4)))

    with pytest.raises(ArtefactInvalidError, match="no weight 'b'"):
        gram_tensors([source], SCHEMA, inputs={"b": "x"})
    with pytest.raises(ArtefactInvalidError, match="no activations 'z'"):
        gram_tensors([source], SCHEMA, inputs={"w": "z"})
    with pytest.raises(ShapeMismatchError, match="the layer has 4 inputs"):
        gram_tensors([source], SCHEMA, inputs={"w": "y"})
    with pytest.raises(ArtefactInvalidError, match="differ by layer"):
        gram_tensors([source], SCHEMA, inputs={"wt": "x"}, transposed=["wt"])
    with pytest.raises(ArtefactInvalidError, match="no weight of the model"):
        gram_tensors([saved(tmp_path / "o", other=np.ones((5, 4)))], SCHEMA)


def test_scores_are_sums_of_parameter_times_gradient_at_both_places(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(snip, "BLOCK_ELEMENTS", 5)
    base, model, at_base, at_self = (
        rng.normal(size=s).astype("f4") for s in [(3, 4), (3, 4), (2, 3, 4), (2, 3, 4)]
    )

    fields, tensors = snip_tensors(
        [saved(tmp_path / "0", w=at_base)],
        [saved(tmp_path / "1", w=at_self[0]), saved(tmp_path / "2", w=at_self[1])],
        base=saved(tmp_path / "b", w=base),
        model=saved(tmp_path / "m", w=model),
        schema=SCHEMA,
    )

    found = values_of(tensors)
    assert fields == {"n_samples": 2}
    for key, weights, gradients in (("base/w", base, at_base), ("self/w", model, at_self)):
        for place in np.ndindex(3, 4):
            expected = sum(abs(float(weights[place]) * float(gradient[place])) for gradient in gradients)
            assert found[key][place] == pytest.approx(expected, rel=1e-12)


def test_scores_need_gradients_of_the_same_examples(tmp_path):
    one, two = saved(tmp_path / "1", w=np.ones((3, 4))), saved(tmp_path / "2", w=np.ones((2, 3, 4)))
    other = saved(tmp_path / "o", b=np.ones(3))

    with pytest.raises(ArtefactInvalidError, match=r"there are \[1, 2\]"):
        snip_tensors([one], [two], base=one, model=one, schema=SCHEMA)
    with pytest.raises(ArtefactInvalidError, match="there are none"):
        snip_tensors([one], [other], base=one, model=one, schema=SCHEMA)
    with pytest.raises(TensorMissingError, match="self model has no tensor w"):
        snip_tensors([one], [one], base=one, model=other, schema=SCHEMA)


def test_arrays_are_read_from_npy_files_under_the_name_that_is_given(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.float16).reshape(2, 3))
    np.save(tmp_path / "i.npy", np.arange(6))
    (tmp_path / "bad.npy").write_bytes(b"no array")

    tensor = open_samples(f"layer={tmp_path / 'a.npy'}", FS)["layer"]

    assert tensor.shape == (2, 3)
    assert tensor.read(1, 4).tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(MalformedTensorFileError, match="does not say which tensor"):
        open_samples(str(tmp_path / "a.npy"), FS)
    with pytest.raises(MalformedTensorFileError, match="no floating point numbers"):
        open_samples(f"x={tmp_path / 'i.npy'}", FS)
    with pytest.raises(MalformedTensorFileError, match="no array of numbers"):
        open_samples(f"x={tmp_path / 'bad.npy'}", FS)


def write(path, header, tensors, schema=SCHEMA):
    pairs = [
        (TensorSpec(name=name, dtype="F32", shape=array.shape), lambda a=array: iter([a.reshape(-1)]))
        for name, array in tensors.items()
    ]
    return write_artefact(path, header, pairs, schema=schema, fs=FS, rng=RNG)


def test_what_was_written_is_read_back_and_has_no_problems(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_ELEMENTS", 5)
    path, information = tmp_path / "f.safetensors", np.arange(12.0).reshape(3, 4)
    header = bound_header("fisher_diag", {"n_samples": 1, "label_mode": "sampled"}, [SUBJECT], note="mine")

    nbytes = write(path, header, {"w": information})

    found = read_artefact(path, FS)
    assert (found.type, found.header, found.tensors[0].spec.name) == ("fisher_diag", header, "w")
    assert problems_of(found, SCHEMA, FS) == []
    assert path.stat().st_size == nbytes
    assert load_file(path)["w"].tolist() == information.tolist()
    assert describe_file(path).is_finite


def test_what_breaks_the_format_is_not_written(tmp_path):
    path = tmp_path / "f"
    header = bound_header("fisher_diag", {"n_samples": 1, "label_mode": "sampled"}, [SUBJECT])

    with pytest.raises(ArtefactInvalidError, match=r"shape \[3\], expected \[3, 4\]"):
        write(path, header, {"w": np.ones(3)})
    with pytest.raises(NonFiniteError, match="tensor w holds negative values"):
        write(path, header, {"w": -np.ones((3, 4))})
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        write(path, header, {"w": np.full((3, 4), 1e39)})
    assert list(tmp_path.iterdir()) == []


def test_damage_is_found_when_a_file_is_read(tmp_path):
    path = tmp_path / "f"
    header = bound_header("fisher_diag", {"n_samples": 1, "label_mode": "sampled"}, [SUBJECT])
    raw = np.frombuffer(json.dumps(header, sort_keys=True, separators=(",", ":")).encode(), np.uint8)
    save_file({"artefact": raw, "w": np.array([1, -1], np.float32), "ids": np.ones(2, np.int64)}, path)

    problems = problems_of(read_artefact(path, FS), SCHEMA, FS)

    assert [text for text in problems if "negative" in text]
    assert [text for text in problems if "is I64" in text]
    assert [text for text in problems if "expected [3, 4]" in text]


@pytest.mark.parametrize("raw", [b"{}", b"[1]", b'{"artefact":"fisher/1"}', b"\xff", b'{"artefact":{}}'])
def test_a_header_that_is_none_is_refused(tmp_path, raw):
    path = tmp_path / "f"
    save_file({"artefact": np.frombuffer(raw, np.uint8)}, path)

    with pytest.raises(ArtefactInvalidError):
        read_artefact(path, FS)


def test_a_model_is_no_artefact(tmp_path):
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "m")

    with pytest.raises(ArtefactInvalidError, match="it is no artefact"):
        read_artefact(tmp_path / "m", FS)


def test_headers_name_what_they_are_bound_to():
    digests = [b"\x02" * 32, b"\x01" * 32]

    table = bound_header("lambda_table", {}, digests, base=b"\x03" * 32)

    assert table["contributions"] == ["01" * 32, "02" * 32]
    assert (table["set_root"], table["base"]) == (used_root(digests).hex(), "03" * 32)
    assert bound_header("role", {"role": "forget"}, digests[:1])["subject"] == "02" * 32
    for type_, wrong in (("role", digests), ("role", []), ("genome", []), ("nonsense", digests)):
        with pytest.raises(ParameterError):
            bound_header(type_, {}, wrong)


def test_rows_of_coefficients_follow_the_order_of_the_digests():
    digests = [b"\x02" * 32, b"\x01" * 32]

    assert lambda_rows(digests, [("*", ["0.2", " 0.1"])]) == [{"match": "*", "lambda": ["0.1", "0.2"]}]
    with pytest.raises(ParameterError, match="1 coefficients for 2"):
        lambda_rows(digests, [("*", ["0.2"])])
    with pytest.raises(ParameterError, match="named twice"):
        lambda_rows(digests[:1] * 2, [])


def test_real_numbers_of_a_header_become_the_text_they_are():
    assert parse_fields(b'{"rows": [{"lambda": [0.10, "0.2"], "n": 3}]}') == {
        "rows": [{"lambda": ["0.10", "0.2"], "n": 3}]
    }
    for wrong in (b"[]", b"{", b"\xff"):
        with pytest.raises(ArtefactInvalidError):
            parse_fields(wrong)


def test_statistics_merge_better_than_a_plain_average(tmp_path):
    found = example.run(tmp_path)

    assert max(found["model 0"], found["model 1"]) < found["weight_average"]
    for strategy, kind in example.MERGES:
        if kind:
            assert found[strategy] > found["weight_average"] + 0.05
            assert problems_of(
                read_artefact(tmp_path / f"{kind}-0.safetensors", FS),
                describe_file(tmp_path / "model-0.safetensors").manifest.schema,
                FS,
            ) == []  # fmt: skip
