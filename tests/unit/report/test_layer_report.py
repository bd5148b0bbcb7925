"""Measurements per tensor against plain numpy; a page that loads nothing; a card nothing escapes from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import yaml
from crdt_merge_node.report import card, layers, page
from crdt_merge_node.resolve.job import TensorSource, UsedModel
from crdt_merge_node.resolve.plan import build_job
from crdt_merge_node.resolve.run import run_job
from crdt_merge_protocol.blobs import (
    Manifest,
    ManifestEntry,
    Schema,
    TensorSpec,
    blob_digest_of,
    contribution_digest,
)
from crdt_merge_protocol.limits import WEIGHT_ONE
from crdt_merge_protocol.policy import Policy

SPECS = (
    TensorSpec(name="a", dtype="F32", shape=(7,)),
    TensorSpec(name="b.weight", dtype="F32", shape=(400, 500)),
    TensorSpec(name="ids", dtype="I32", shape=(2,)),
    TensorSpec(name="none", dtype="F32", shape=(0, 3)),
)
SCHEMA = Schema.of(SPECS)


def tensors(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    floats = {s.name: rng.standard_normal(s.shape).astype(np.float32) for s in SPECS if s.dtype == "F32"}
    return floats | {"ids": np.array([1, 2], "<i4")}


def used(values: dict[str, np.ndarray]) -> UsedModel:
    data = {name: array.tobytes() for name, array in values.items()}
    manifest = Manifest.of(ManifestEntry(spec=s, blob=blob_digest_of(data[s.name])) for s in SPECS)
    sources = {name: TensorSource(None, 0, len(raw), raw) for name, raw in data.items()}
    digest = contribution_digest(kind="model", content=manifest.content, weight=WEIGHT_ONE)
    return UsedModel(digest, WEIGHT_ONE, manifest, sources)


BASE = tensors(9)
MODELS = [{**tensors(seed), "a": BASE["a"] * seed} for seed in (1, 2, 3)]


def resolve(tmp_path: Path, base: dict[str, np.ndarray] | None = BASE, **facts):
    base_model = None if base is None else used(base)
    policy = Policy(
        strategy="task_arithmetic" if base else "weight_average",
        schema=SCHEMA.id,
        params=(("lambda", "0.5"),) if base else (),
        base=base_model.manifest.content if base_model else None,
    )
    job = build_job(policy, SCHEMA, map(used, MODELS), base_model, group_mode=True, facts=facts)
    output = tmp_path / "merged.safetensors"
    run_job(job, output)
    return job, output


def ordered(job) -> list[dict[str, np.ndarray]]:
    by_digest = {used(model).digest: model for model in MODELS}
    return [by_digest[model.digest] for model in job.inputs]


def test_measurements_are_those_of_the_plain_formulas(tmp_path: Path) -> None:
    job, output = resolve(tmp_path)
    found = layers.measure(job, output)
    merged = safetensors.numpy.load_file(output)

    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert set(by_name) == {"a", "b.weight"}, "integers and empty tensors have no geometry"
    base = BASE["b.weight"].astype(np.float64).ravel()
    vectors = [model["b.weight"].astype(np.float64).ravel() - base for model in ordered(job)]
    out = merged["b.weight"].astype(np.float64).ravel() - base
    tensor = by_name["b.weight"]
    for i, vector in enumerate(vectors):
        assert tensor["norms"][i] == pytest.approx(np.linalg.norm(vector), rel=1e-5)
        cosine = vector @ out / np.linalg.norm(vector) / np.linalg.norm(out)
        assert tensor["merged_cosines"][i] == pytest.approx(cosine, rel=1e-4)
        assert tensor["influences"][i] == pytest.approx(vector @ out / (sum(vectors) @ out), rel=1e-4)
        for j, other in enumerate(vectors):
            expected = vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)
            assert tensor["cosines"][i][j] == pytest.approx(expected, abs=1e-5)
    assert sum(tensor["influences"]) == pytest.approx(1, abs=1e-5)
    signs = np.sign(vectors)
    disputed = (signs > 0).any(0) & (signs < 0).any(0)
    contested = (signs != 0).sum(0) >= 2
    assert tensor["conflict"] == pytest.approx(disputed.sum() / contested.sum(), rel=1e-5)
    assert tensor["contested"] == contested.sum()


def test_a_contribution_that_equals_the_base_has_no_direction(tmp_path: Path) -> None:
    job, output = resolve(tmp_path)
    tensor = next(t for t in layers.measure(job, output)["tensors"] if t["name"] == "a")
    still = next(i for i, model in enumerate(ordered(job)) if (model["a"] == BASE["a"]).all())

    assert tensor["norms"][still] == 0
    assert tensor["merged_cosines"][still] is None
    assert tensor["influences"][still] == 0
    assert tensor["conflict"] == 0


def test_without_a_base_the_models_themselves_are_measured(tmp_path: Path) -> None:
    job, output = resolve(tmp_path, base=None)
    found = layers.measure(job, output)

    assert found["of"] == "models"
    assert found["total"]["norms"][0] == pytest.approx(
        np.sqrt(sum((ordered(job)[0][name].astype(float) ** 2).sum() for name in ("a", "b.weight"))), rel=1e-5
    )


def test_the_report_is_json_and_its_page_loads_nothing(tmp_path: Path) -> None:
    job, output = resolve(tmp_path)
    found = layers.measure(job, output)
    text = page.render(json.loads(json.dumps(found, allow_nan=False)), title="<script>alert(1)</script>")

    assert "<script" not in text
    assert not re.search(r"(src|href)=|url\(|@import", text)
    assert all(model["digest"][:12] in text for model in found["inputs"])
    assert all(not model["name"] for model in found["inputs"])
    assert "b.weight" in text


def test_a_report_says_what_people_call_each_input(tmp_path: Path) -> None:
    digests = [model.digest.hex() for model in resolve(tmp_path)[0].inputs]
    files = [{"digest": digest, "path": f"{i}<.st"} for i, digest in enumerate(digests)]
    mine = [{"digest": digest, "slot": "main", "author": "ab" * 32} for digest in digests]
    offline, in_group = (
        layers.measure(*resolve(tmp_path, **facts)) for facts in ({"files": files}, {"contributions": mine})
    )

    assert [model["name"] for model in offline["inputs"]] == [file["path"] for file in files]
    assert {model["name"] for model in in_group["inputs"]} == {"main of abababababab"}
    assert f"{digests[0][:12]} 0&lt;.st" in page.render(offline, title="x")


def test_a_card_names_contributions_recipe_and_digests(tmp_path: Path) -> None:
    author = "ab" * 32
    job, output = resolve(tmp_path)
    contributions = [
        {"digest": model.digest.hex(), "author": author, "slot": "main|<b>", "tag": "0" * 64}
        for model in job.inputs
    ]
    excluded = [{"tag": "f" * 64, "reason": "tensor x](http://evil) is missing\n# heading"}]
    job, output = resolve(tmp_path, group_name="digits", contributions=contributions, excluded=excluded)
    provenance = json.loads(output.with_name(output.name + ".provenance.json").read_text())
    text = card.render(provenance, title="merged")

    head = yaml.safe_load(text.split("---")[1])
    assert head["tags"] == ["merge", "crdt-merge-node", "task_arithmetic"]
    assert provenance["output_digest"] in text
    assert provenance["resolve_key"] in text
    assert all(model.digest.hex()[:12] in text for model in job.inputs)
    assert "in the group digits" in text
    assert "main\\|\\<b\\>" in text, "a slot cannot leave its cell"
    assert "\n# heading" not in text
    assert "x](http" not in text
    assert "| `lambda` | `0.5` |" in text, "as it was typed"


def test_a_card_of_a_merge_without_a_group_names_its_files(tmp_path: Path) -> None:
    job, _ = resolve(tmp_path)
    files = [
        {"digest": model.digest.hex(), "path": f"dir_{i}/a`b|c.st"} for i, model in enumerate(job.inputs)
    ]
    _, output = resolve(tmp_path, files=files)
    provenance = json.loads(output.with_name(output.name + ".provenance.json").read_text())
    text = card.render(provenance, title="merged")

    assert "| contribution | weight | path | content |" in text
    assert all(f"| `dir_{i}/a?b\\|c.st` |" in text for i in range(len(files)))


def test_every_byte_read_is_told(tmp_path: Path) -> None:
    job, output = resolve(tmp_path)
    told: list[int] = []
    layers.measure(job, output, advance=told.append)

    assert sum(told) == 5 * (7 + 400 * 500) * 4
