"""``crdt-merge-node merge`` against ``mergekit-yaml`` on a Llama-shaped checkpoint in bf16 (TARGETS B7, B8).

Both run as whole commands, start-up included, on the same files, which are in the page cache; mergekit stands
in a scratch environment of its own and is kept off the network. Where a method is plain arithmetic its
outputs are compared: mergekit sums in bf16 or float32, so they may differ in the last places of bf16.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml
from crdt_merge_node.ports import SystemFs
from crdt_merge_node.resolve.files import read_header
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.strategies.dtypes import decode_block, encode_block
from crdt_merge_protocol.tensorfile import layout

from tests.oracles.environments import python_of

from .measure import MIB, Cost, Options, Row, best_s, durable_copy, ms, run_command, times, without_output

CLI = Path(sys.executable).with_name("crdt-merge-node")
HIDDEN, INNER, HEADS, VOCABULARY = 1024, 2816, 16, 32_000
MODEL_FILE = "model.safetensors"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
FULL_MIB = (600, 960)
"""Sizes with ``--full``: about 0.62 GB, the size that the target names, and 1 GB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One merge in both languages."""

    name: str
    models: int
    has_base: bool
    ours: tuple[str, ...] = ()
    """Parameters of ours that make it the same merge."""
    theirs: tuple[tuple[str, object], ...] = ()
    factor: int = 8
    """How much less time the target asks for."""
    is_plain: bool = False
    """The outputs can be compared."""


METHODS = (
    Method(name="linear", models=3, has_base=False, is_plain=True),
    Method(name="slerp", models=2, has_base=False, ours=("profile=mergekit",), theirs=(("t", 0.5),)),
    Method(
        name="task_arithmetic",
        models=3,
        has_base=True,
        ours=("lambda=0.3",),
        theirs=(("lambda", 0.3), ("normalize", False)),
        is_plain=True,
    ),
    Method(
        name="ties",
        models=3,
        has_base=True,
        ours=("density=0.2", "scope=tensor"),
        theirs=(("density", 0.2),),
        factor=30,
    ),
    Method(
        name="dare_ties",
        models=3,
        has_base=True,
        ours=("density=0.5",),
        theirs=(("density", 0.5),),
    ),
)


def measure(options: Options) -> Iterator[Row]:
    """Yield a row per method, and one per comparison of outputs."""
    try:
        rival = python_of("mergekit").with_name("mergekit-yaml")
    except (subprocess.CalledProcessError, OSError) as error:
        yield Row(
            what="mergekit", measured=f"could not be installed ({type(error).__name__})", is_missing=True
        )
        rival = None
    for mib in FULL_MIB if options.is_full else (options.checkpoint_mib,):
        with tempfile.TemporaryDirectory(prefix="cmn-bench-") as name:
            place = Path(name)
            directories = make_models(place, mib * MIB)
            for method in METHODS:
                yield from _rows(place, directories, method, rival, options)


def _rows(
    place: Path, directories: Sequence[Path], method: Method, rival: Path | None, options: Options
) -> Iterator[Row]:
    *models, base = directories
    models = models[: method.models]
    files = [path / MODEL_FILE for path in (*models, *([base] if method.has_base else []))]
    output = place / "ours.safetensors"
    copied_s = best_s(lambda: durable_copy(files, output), 2)
    ours = min((_ours(method, models, base, output) for _ in range(2)), key=lambda cost: cost.wall_s)
    what = f"{method.name} k={method.models}{' + base' if method.has_base else ''}"
    size = files[0].stat().st_size / 1e9
    against = f"durable copy {ms(copied_s)}"
    ratio = f"{times(ours.wall_s / copied_s)} the copy"
    if rival is not None:
        theirs = _theirs(method, models, base, place, rival)
        against = f"mergekit {theirs}; {against}"
        less = f"{times(theirs.wall_s / ours.wall_s)} less wall, {times(theirs.cpu_s / ours.cpu_s)} less CPU"
        ratio = f"{less}; {ratio}"
    row = Row(
        what=f"merge {what}, {size:.2f} GB bf16, whole command",
        measured=str(ours),
        against=against,
        ratio=ratio,
        target=f">= {method.factor}x less wall, peak <= 512 MiB (B7, B8)",
    )
    sys.stderr.write(f"{row.what}: {row.measured} | {row.against} | {row.ratio}\n")
    yield row
    if rival is not None and method.is_plain:
        yield _compare(what, output, place / "theirs")
    shutil.rmtree(place / "theirs", ignore_errors=True)


def _ours(method: Method, models: Sequence[Path], base: Path, output: Path) -> Cost:
    command = [str(CLI), "merge", "--fresh", *(str(path / MODEL_FILE) for path in models), "-o", str(output)]
    command += ["--strategy", method.name]
    command += ["--base", str(base / MODEL_FILE)] if method.has_base else []
    for param in method.ours:
        command += ["--param", param]
    without_output(output)
    return run_command(command)


def _theirs(method: Method, models: Sequence[Path], base: Path, place: Path, rival: Path) -> Cost:
    parameters = dict(method.theirs)
    each = {"weight": 1.0} if method.name != "slerp" else {}
    if "density" in parameters:
        each["density"] = parameters.pop("density")
    config = {
        "merge_method": method.name,
        "models": [{"model": str(path), "parameters": each} for path in models],
        "dtype": "bfloat16",
    }
    if parameters:
        config["parameters"] = parameters
    if method.has_base or method.name == "slerp":
        config["base_model"] = str(base if method.has_base else models[0])
    path = place / f"{method.name}.yml"
    path.write_text(yaml.safe_dump(config))
    command = [str(rival), str(path), str(place / "theirs"), "--no-copy-tokenizer", "--no-write-model-card"]
    command += ["--quiet", "--random-seed", "1"]
    return run_command(command, OFFLINE | {"HF_HOME": str(place / "home")})


def make_models(place: Path, nbytes: int, count: int = 3) -> list[Path]:
    """Write fine-tunes of one base, and the base last: directories as Hugging Face has them."""
    specs, layers = _specs(nbytes)
    directories = [place / f"model-{number}" for number in range(count)] + [place / "base"]
    header, _ = layout(specs)
    for directory in directories:
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(_config(layers)))
        (directory / MODEL_FILE).write_bytes(header)
    rng = np.random.default_rng(1)
    for spec in sorted(specs, key=lambda spec: spec.name.encode()):
        base = rng.standard_normal(spec.numel, dtype=np.float32) * np.float32(0.02)
        for directory in directories:
            is_tuned = directory.name != "base"
            noise = rng.standard_normal(spec.numel, dtype=np.float32) if is_tuned else np.float32(0)
            with (directory / MODEL_FILE).open("ab") as file:
                file.write(encode_block("BF16", (base + np.float32(0.002) * noise).astype(np.float64)))
    return directories


def _specs(nbytes: int) -> tuple[list[TensorSpec], int]:
    """Return the tensors of a Llama of about so many bytes, and its number of layers."""
    outer = [
        ("model.embed_tokens", (VOCABULARY, HIDDEN)),
        ("lm_head", (VOCABULARY, HIDDEN)),
        ("model.norm", (HIDDEN,)),
    ]
    inner = [
        *((f"self_attn.{name}_proj", (HIDDEN, HIDDEN)) for name in "qkvo"),
        ("mlp.gate_proj", (INNER, HIDDEN)),
        ("mlp.up_proj", (INNER, HIDDEN)),
        ("mlp.down_proj", (HIDDEN, INNER)),
        ("input_layernorm", (HIDDEN,)),
        ("post_attention_layernorm", (HIDDEN,)),
    ]
    layer_bytes = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER)
    layers = max(1, (nbytes - 4 * VOCABULARY * HIDDEN) // layer_bytes)
    shapes = outer + [(f"model.layers.{n}.{name}", shape) for n in range(layers) for name, shape in inner]
    return [TensorSpec(name=f"{name}.weight", dtype="BF16", shape=shape) for name, shape in shapes], layers


def _config(layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def _compare(what: str, ours: Path, theirs: Path) -> Row:
    """Return how far two outputs are apart, in units of bf16's last place."""
    mine = _tensors([ours])
    other = _tensors(sorted(theirs.glob("*.safetensors")))
    assert mine.keys() == other.keys(), "both have the same tensors"
    elements = differing = 0
    worst = 0.0
    for name, (path, position, nbytes) in mine.items():
        first, second = _decoded(path, position, nbytes), _decoded(*other[name])
        gap = np.abs(first - second)
        # A unit in the last place of 8 bits of precision, at the magnitude of the larger one.
        unit = np.ldexp(1.0, np.frexp(np.maximum(np.abs(first), np.abs(second)))[1] - 8)
        elements += gap.size
        differing += int(np.count_nonzero(gap))
        worst = max(worst, float((gap / unit).max()))
    return Row(
        what=f"merge {what}, the two outputs",
        measured=f"{differing / elements:.2%} of {elements / 1e6:.0f}M elements differ",
        against="mergekit",
        ratio=f"by {worst:.3g} units in the last place of bf16 at most",
    )


def _tensors(paths: Sequence[Path]) -> dict[str, tuple[Path, int, int]]:
    return {
        entry.spec.name: (path, entry.begin, entry.spec.nbytes)
        for path in paths
        for entry in read_header(SystemFs(), path).entries
    }


def _decoded(path: Path, position: int, nbytes: int) -> npt.NDArray[np.float64]:
    with path.open("rb") as file:
        file.seek(position)
        return decode_block("BF16", file.read(nbytes))
