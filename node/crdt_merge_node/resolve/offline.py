"""What offline ``merge`` is given, as a group would hold it: contributions, a policy, artefacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from crdt_merge_protocol.blobs import (
    ANY_FLOAT,
    FLOAT_DTYPES,
    OUTPUT_DTYPES,
    Manifest,
    ManifestEntry,
    Schema,
    TensorSpec,
)
from crdt_merge_protocol.errors import EmptySetError, ParameterError
from crdt_merge_protocol.limits import WEIGHT_MAX, WEIGHT_ONE
from crdt_merge_protocol.policy import Policy, sorted_params
from crdt_merge_protocol.quantised import require_plain
from crdt_merge_protocol.quarantine import require_schema
from crdt_merge_protocol.strategies.artefacts import Artefact
from crdt_merge_protocol.strategies.choosing import (
    NEWER,
    Choice,
    Offer,
    Unfit,
    choose,
    named_artefact,
    needs_of,
)
from crdt_merge_protocol.strategies.contract import Strategy
from crdt_merge_protocol.strategies.dtypes import output_dtype
from crdt_merge_protocol.strategies.registry import get

from crdt_merge_node.checkpoints.reading import Checkpoint, read_checkpoint
from crdt_merge_node.ports import Fs

from .artefact_files import named, read_artefact_file
from .describe import DescribedFile
from .job import ResolveJob, TensorSource, UsedArtefact, UsedModel
from .plan import build_job
from .row_names import InputNames


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that headers and options tell."""

    files: tuple[Path, ...]
    base: Path | None
    artefacts: tuple[tuple[Path, Artefact], ...]
    """Without their digests."""
    headers: tuple[Checkpoint, ...]
    """Of the files, the base, the artefacts."""
    weights: tuple[int, ...]
    """One per file, over 2^32."""
    strategy: Strategy
    params: Mapping[str, str]
    """In canonical spelling, with stand-ins for the digests of files that were named."""
    schema: Schema
    dtype: str
    """As a policy says it."""

    @property
    def all_weights(self) -> list[int]:
        """One weight per header."""
        return [*self.weights, *[WEIGHT_ONE] * (len(self.headers) - len(self.weights))]

    @property
    def kinds(self) -> dict[Path, str]:
        """Types of the artefacts by path."""
        return {path: artefact.type for path, artefact in self.artefacts}

    @property
    def nbytes(self) -> int:
        """Of all tensors in all files."""
        return sum(file.nbytes for file in self.headers)


def read_inputs(
    fs: Fs,
    files: Sequence[Path],
    *,
    strategy: str,
    base: Path | None,
    params: Mapping[str, str] | None,
    weights: Sequence[int] | None,
    dtype: str,
    artefacts: Sequence[Path],
) -> Inputs:
    """Read all headers and check whatever they can tell; no tensor is read but the headers of artefacts.

    Raises as ``merge_files``.
    """
    weights = _check_weights(files, weights)
    if not files:
        raise EmptySetError("There are no files, hence nothing to merge.", hint="Name one at least.")
    if dtype and dtype not in OUTPUT_DTYPES:
        raise ParameterError(
            f"Element type {dtype!r} is none of those of an output.",
            hint=f"Known: {', '.join(sorted(OUTPUT_DTYPES))}.",
        )
    recipe = get(strategy)
    normalised = recipe.normalise(InputNames(files, weights).stood_for(params or {}))
    models = [read_checkpoint(fs, path) for path in (*files, *([] if base is None else [base]))]
    schema, is_mixed = _common_schema(models, has_base=base is not None)
    found = [read_checkpoint(fs, path) for path in artefacts]
    return Inputs(
        files=tuple(files),
        base=base,
        artefacts=tuple((file.path, read_artefact_file(fs, file, schema)) for file in found),
        headers=(*models, *found),
        weights=tuple(weights),
        strategy=recipe,
        params=normalised,
        schema=schema,
        dtype=_policy_dtype(dtype, is_mixed=is_mixed),
    )


def job_of(
    inputs: Inputs,
    described: Sequence[DescribedFile],
    *,
    task: str,
    memory_bytes: int,
    workers: int | None,
    is_lenient: bool = False,
) -> ResolveJob:
    """Return the job that merges files whose bytes have been named.

    Args:
        inputs: What they were given as.
        described: One per header.
        task: One of the files, or its digest; empty: the common model.
        memory_bytes: Budget over all processes.
        workers: As in :class:`ResolveJob`.
        is_lenient: Go on where a group does.
    """
    models = described[: len(inputs.files)]
    inputs = _with_digests(inputs, [file.digest for file in models])
    base = described[len(inputs.files)] if inputs.base is not None else None
    artefacts = {
        file.digest: (named(artefact, file.digest), file)
        for (_, artefact), file in zip(
            inputs.artefacts, described[len(described) - len(inputs.artefacts) :], strict=True
        )
    }
    content = base.manifest.content if base else b""
    choice = _choose(inputs, models, [artefact for artefact, _ in artefacts.values()], content)
    return build_job(
        _policy(inputs, content),
        inputs.schema,
        [file.used for file in models],
        base.used if base else None,
        group_mode=is_lenient,
        artefacts=[
            UsedArtefact(
                artefact, artefacts[artefact.digest][1].manifest, artefacts[artefact.digest][1].sources
            )
            for artefact in choice.artefacts
        ],
        unfit=choice.unfit,
        task=_task(models, task),
        memory_bytes=memory_bytes,
        workers=workers,
        facts={
            "command": "merge",
            "files": _facts(models),
            "base": str(inputs.base) if inputs.base else None,
            "artefacts": _facts([file for _, file in artefacts.values()]),
        },
    )


def job_unread(inputs: Inputs, *, memory_bytes: int, workers: int | None) -> ResolveJob:
    """Return a job with made-up digests: of the right sizes, for an estimate.

    The true ones are known once all files have been read. Artefacts are taken to be of these files.
    """
    subjects: dict[str, None] = {}
    for _, artefact in inputs.artefacts:
        subjects |= dict.fromkeys(artefact.header.get("contributions", ()))
        if artefact.subject:
            subjects[artefact.subject.hex()] = None
    k = len(inputs.files)
    others = (number.to_bytes(32, "big") for number in range(k))
    digests = [*map(bytes.fromhex, subjects), *others][:k]
    inputs = _with_digests(inputs, digests)
    models, rest = inputs.headers[:k], inputs.headers[k:]
    base = _unread(rest[0], bytes(32), WEIGHT_ONE) if inputs.base is not None else None
    content = base.manifest.content if base else b""
    unread = [_unread(item, d, w) for item, d, w in zip(models, digests, inputs.weights, strict=True)]
    artefacts = []
    headers = {file.path: file for file in inputs.headers}
    for number, (path, artefact) in enumerate(inputs.artefacts):
        file = _unread(headers[path], b"", WEIGHT_ONE)
        made_up = number.to_bytes(32, "big")
        artefacts.append(UsedArtefact(named(artefact, made_up), file.manifest, file.sources))
    return build_job(
        _policy(inputs, content),
        inputs.schema,
        unread,
        base,
        group_mode=False,
        artefacts=artefacts,
        memory_bytes=memory_bytes,
        workers=workers,
    )


def _unread(file: Checkpoint, digest: bytes, weight: int) -> UsedModel:
    manifest = Manifest.of(ManifestEntry(spec=entry.spec, blob=bytes(32)) for entry in file.entries)
    sources = {
        entry.spec.name: TensorSource(str(entry.path), entry.begin, entry.end - entry.begin)
        for entry in file.entries
    }
    return UsedModel(digest, weight, manifest, sources)


def _with_digests(inputs: Inputs, digests: Sequence[bytes]) -> Inputs:
    """Return inputs whose parameters name files by these digests, as a group's do."""
    params = InputNames(inputs.files, inputs.weights).resolved(inputs.params, digests)
    return inputs if params == inputs.params else replace(inputs, params=inputs.strategy.normalise(params))


def _policy(inputs: Inputs, base_content: bytes) -> Policy:
    return Policy(
        strategy=inputs.strategy.id,
        strategy_version=inputs.strategy.version,
        params=sorted_params(dict(inputs.params)),
        schema=inputs.schema.id,
        base=base_content or None,
        dtype=inputs.dtype,
    )


def _choose(
    inputs: Inputs, models: Sequence[DescribedFile], artefacts: Sequence[Artefact], base_content: bytes
) -> Choice:
    """Return which of the artefacts are used; of two for one purpose neither is newer: that is refused."""
    needs = needs_of(inputs.strategy, inputs.params)
    choice = choose(
        needs,
        [Offer(artefact=artefact) for artefact in artefacts],
        {file.digest: (b"",) for file in models},
        base_content=base_content,
        named=named_artefact(inputs.params),
        sets_aside=False,
    )
    purposes = {(artefact.type, artefact.subject) for artefact in choice.artefacts}
    unfit = dict(choice.unfit)
    for artefact in artefacts:
        if all(artefact.type != need.type for need in needs):
            unfit[artefact.digest] = Unfit(f"{inputs.strategy.id} does not work with a {artefact.type}")
        elif unfit.get(artefact.digest) == NEWER and (artefact.type, artefact.subject) in purposes:
            raise ParameterError(
                f"Two of the artefacts are a {artefact.type} of the same: {_both(inputs, artefact)}.",
                hint="Give one of them.",
            )
    return Choice(models=choice.models, artefacts=choice.artefacts, lacking=choice.lacking, unfit=unfit)


def _both(inputs: Inputs, artefact: Artefact) -> str:
    """Return the files of artefacts that are for the same purpose as this one."""
    same = (artefact.type, artefact.subject, artefact.set_root)
    return " and ".join(
        str(path) for path, other in inputs.artefacts if (other.type, other.subject, other.set_root) == same
    )


def _task(models: Sequence[DescribedFile], text: str) -> bytes:
    """Return the digest of the file whose task is meant."""
    if not text:
        return b""
    for file in models:
        if str(file.path) == text or file.digest.hex() == text.lower():
            return file.digest
    raise ParameterError(
        f"{text} is none of the files, nor the digest of one.", hint="Name one of the files."
    )


def _check_weights(files: Sequence[Path], weights: Sequence[int] | None) -> Sequence[int]:
    if weights is None:
        return [WEIGHT_ONE] * len(files)
    if len(weights) != len(files):
        raise ParameterError(f"{len(weights)} weights for {len(files)} files.", hint="Give one per file.")
    # More than a group takes (PROTOCOL R14): negative ones make some strategies forget.
    if any(abs(weight) > WEIGHT_MAX for weight in weights):
        limit = WEIGHT_MAX >> 32
        raise ParameterError(
            f"A weight lies between -{limit} and {limit}.", hint="Weights only count relative to each other."
        )
    return weights


def _common_schema(models: Sequence[Checkpoint], *, has_base: bool) -> tuple[Schema, bool]:
    """Return the schema of models, and whether they differ in the element types of float tensors.

    It is that of the base, the last of them; without a base every type is the widest, so that the order of
    the files does not matter.
    """
    model = models[-1 if has_base else 0]
    for each in models:
        require_plain((entry.spec for entry in each.entries), who=str(each.path))
    schema = Schema.of(entry.spec for entry in model.entries)
    found = [Schema.of(entry.spec for entry in other.entries) for other in models]
    for other, theirs in zip(models, found, strict=True):
        who = f"{other.path} (beside {model.path})"
        require_schema(schema, theirs.specs, who=who, any_float=True)
    if all(theirs == schema for theirs in found):
        return schema, False
    if has_base:
        return schema, True
    rows = zip(*(theirs.specs for theirs in found), strict=True)
    return Schema.of(map(_widest, rows)), True


def _widest(specs: Sequence[TensorSpec]) -> TensorSpec:
    if specs[0].dtype not in FLOAT_DTYPES:
        return specs[0]
    return replace(specs[0], dtype=output_dtype("", None, (spec.dtype for spec in specs)))


def _policy_dtype(dtype: str, *, is_mixed: bool) -> str:
    """Return the element type of the output as a policy says it that takes such inputs."""
    if not is_mixed:
        return dtype
    return f"{ANY_FLOAT}:{dtype}" if dtype else ANY_FLOAT


def _facts(files: Sequence[DescribedFile]) -> list[dict[str, str]]:
    return [{"path": str(file.path), "digest": file.digest.hex()} for file in files]
