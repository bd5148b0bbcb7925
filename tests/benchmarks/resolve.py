"""Resolve of four models: the arithmetic alone, and a whole job from files to a durable file (TARGETS B1-B5).

The arithmetic runs in this process, block by block, as a worker does it, by numpy and by compiled loops; its
floor reads every input once and writes the output once at the bandwidth of a copy in memory. The whole job
starts two workers, reads files that are in the page cache, checks the BLAKE3 digests of what it reads, hashes
what it writes (BLAKE3 and SHA-256), and ends with fsync; its floor reads the same files and writes as much,
durably.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from crdt_merge_node.resolve.accelerate import install_compiled
from crdt_merge_node.resolve.describe import describe_file
from crdt_merge_node.resolve.plan import build_job
from crdt_merge_node.resolve.run import run_job
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.strategies.acceleration import Bytes, StoredRows, current, install
from crdt_merge_protocol.strategies.contract import (
    LEAF_ELEMENTS,
    Block,
    Float64Array,
    Key,
    MergeContext,
    exact_weights,
)
from crdt_merge_protocol.strategies.dtypes import decode_into, encode_array
from crdt_merge_protocol.strategies.registry import get
from crdt_merge_protocol.tensorfile import layout

from . import naive
from .measure import Options, Row, best_s, copy_bytes_per_s, durable_copy, ms, times

Array = npt.NDArray[np.float32]
MODELS = 4
BLOCK_ELEMENTS = 2 * LEAF_ELEMENTS
"""Those of a worker."""
PARTIALS_MAX = 8
STRATEGIES = {
    "weight_average": (naive.weight_average, {}, "arithmetic >= 0.8 of the floor (B1)"),
    "ties": (naive.ties, {}, "arithmetic >= 10x naive (B3)"),
    "dare": (naive.dare, {}, ""),
    "slerp": (naive.slerp, {}, ""),
}


def measure(options: Options) -> Iterator[Row]:
    """Yield two rows per strategy."""
    *models, base = make_models(options.elements)
    bandwidth = copy_bytes_per_s()
    yield Row(what="copy in memory, read and write", measured=f"{bandwidth / 1e9:.1f} GB/s")
    with tempfile.TemporaryDirectory(prefix="cmn-bench-") as directory:
        files = [
            _save(Path(directory) / f"{n}.safetensors", array) for n, array in enumerate((*models, base))
        ]
        output = Path(directory) / "out.safetensors"
        for strategy, (formula, params, target) in STRATEGIES.items():
            inputs = [*files[:MODELS], *(files[MODELS:] if get(strategy).base == "required" else [])]
            naive_s = best_s(partial(formula, models, base), options.repeats)
            what = f"{strategy} k={MODELS} {options.elements / 1e6:g}M f32"
            for loops in ("numpy", "compiled"):
                yield _compare(
                    f"{what}, arithmetic, {loops}, 1 thread",
                    seconds=_arithmetic_s(Arithmetic(strategy, params, models, base), loops, options.repeats),
                    floor_s=(len(inputs) + 1) * base.nbytes / bandwidth,
                    naive_s=naive_s,
                    target=target,
                )
            yield _compare(
                f"{what}, whole job, 2 workers",
                seconds=best_s(_job(strategy, params, files, output), options.repeats),
                floor_s=best_s(partial(durable_copy, inputs, output), options.repeats),
                naive_s=naive_s,
            )


def _arithmetic_s(arithmetic: Arithmetic, loops: str, repeats: int) -> float:
    """Return the time of a merge in memory; what compiling takes is not in it."""
    if loops == "numpy":
        return best_s(arithmetic.run, repeats)
    reason = install_compiled()
    if reason:
        raise RuntimeError(reason)
    try:
        arithmetic.run()
        return best_s(arithmetic.run, repeats)
    finally:
        install(None)


def _compare(what: str, *, seconds: float, floor_s: float, naive_s: float, target: str = "") -> Row:
    return Row(
        what=what,
        measured=ms(seconds),
        against=f"floor {ms(floor_s)}; naive numpy {ms(naive_s)}",
        ratio=f"{floor_s / seconds:.2g} of the floor; {times(naive_s / seconds)} naive",
        target=target,
    )


def make_models(elements: int) -> list[Array]:
    """Return four fine-tunes of one base, and the base last."""
    rng = np.random.default_rng(1)
    base = rng.standard_normal(elements, dtype=np.float32)
    tuned = [base + np.float32(0.01) * rng.standard_normal(elements, dtype=np.float32) for _ in range(MODELS)]
    return [*tuned, base]


def _save(path: Path, array: Array) -> Path:
    header, _ = layout([TensorSpec(name="w", dtype="F32", shape=array.shape)])
    with path.open("wb") as file:
        file.write(header)
        file.write(array.data)
    return path


class Arithmetic:
    """Passes, merge and rounding of one strategy over arrays in memory, in blocks of a worker's size."""

    def __init__(
        self, strategy: str, params: dict[str, str], models: list[Array], base: Array | None
    ) -> None:
        self._strategy = get(strategy)
        base = base if self._strategy.base == "required" else None
        self._sources = [*models, *([] if base is None else [base])]
        self._has_base = base is not None
        self._elements = models[0].size
        self._output = np.empty_like(models[0])
        self._arrays = [np.empty(BLOCK_ELEMENTS) for _ in self._sources]
        self._context = MergeContext(
            strategy=strategy,
            params=self._strategy.validate(params),
            weights=exact_weights([1 << 32] * len(models)),
            digests=tuple(bytes([n]) * 32 for n in range(len(models))),
            has_base=self._has_base,
            seed=bytes(32),
            specs=(TensorSpec(name="w", dtype="F32", shape=(self._elements,)),),
        )

    def run(self) -> None:
        """Merge once."""
        context, state = self._context, None
        for pass_no in range(self._strategy.pass_count(context)):
            partials: list[tuple[Key, Any]] = []
            if self._strategy.needs(context, state, pass_no, 0):
                for block in self._blocks(pass_no, state):
                    partials.append((block.key, self._strategy.observe(context, state, pass_no, block)))
                    if len(partials) >= PARTIALS_MAX:
                        partials = self._strategy.compact(context, pass_no, partials)
            state = self._strategy.end_pass(context, state, pass_no, partials)
        form = self._strategy.linear_form(context, state, 0)
        for block in self._blocks():
            accelerator = current()
            if accelerator is not None and form is not None and isinstance(block.inputs, StoredRows):
                base = self._sources[-1][block.start : block.stop].data.cast("B") if self._has_base else None
                target = self._output[block.start : block.stop]
                if accelerator.combine_stored(block.inputs, base, form, "F32", target):
                    continue
            merged = self._strategy.merge(context, state, block)
            stored, _ = encode_array("F32", merged, "saturate")
            self._output[block.start : block.stop] = stored

    def _ranges(self, pass_no: int | None, state: Any) -> Iterator[tuple[int, int]]:
        """Yield where blocks begin and end, in a pass or in the merge."""
        spans: Iterable[tuple[int, int]] = [(0, self._elements)]
        if pass_no is not None:
            spans = self._strategy.looks_at(self._context, state, pass_no, 0, (0, self._elements))
        for begin, end in spans:
            for start in range(begin, end, BLOCK_ELEMENTS):
                yield start, min(start + BLOCK_ELEMENTS, end)

    def _blocks(self, pass_no: int | None = None, state: Any = None) -> Iterator[Block]:
        for start, stop in self._ranges(pass_no, state):
            raw: list[Bytes] = [source[start:stop].data.cast("B") for source in self._sources]
            base = self._decoded(len(raw) - 1, raw.pop()) if self._has_base else None
            inputs: Sequence[Float64Array] = StoredRows("F32", raw, self._decoded)
            if current() is None:
                inputs = list(inputs)
            yield Block(tensor_index=0, start=start, stop=stop, inputs=inputs, base=base)

    def _decoded(self, number: int, raw: Bytes) -> Float64Array:
        view = self._arrays[number][: len(raw) // 4]
        decode_into("F32", raw, view)
        return view


def _job(strategy: str, params: dict[str, str], files: list[Path], output: Path) -> Callable[[], object]:
    """Return the whole job as something to call."""
    *models, base = [describe_file(path) for path in files]
    recipe = get(strategy)
    # Equal weights and a base only where it is used, as in the arithmetic.
    base_used = base.used if recipe.base == "required" else None
    policy = Policy(
        strategy=strategy,
        strategy_version=recipe.version,
        params=tuple(sorted(params.items())),
        schema=base.manifest.schema.id,
        base=base.manifest.content if base_used else None,
    )
    used = [model.used for model in models]
    job = build_job(policy, base.manifest.schema, used, base_used, group_mode=True, workers=2)
    return partial(run_job, job, output)
