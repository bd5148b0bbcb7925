"""What a strategy needs besides models: the tensors of artefacts, or an error that says what is lacking."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, NoReturn

from crdt_merge_protocol.errors import (
    ArtefactInvalidError,
    ArtefactMissingError,
    ArtefactStaleError,
    ResolveError,
    RoleMissingError,
    UnsupportedCountError,
)
from crdt_merge_protocol.strategies.composite import Effective
from crdt_merge_protocol.strategies.contract import MergeContext, Strategy, Wanted

from .job import ResolveJob
from .steps import Part, TensorPlan

_ROLE: Final = "role"
_NAMED_MAX: Final = 4
_ID_DIGITS: Final = 12
_UNREAD: Final = re.compile(r"contribution 0{12}(, 0{12})*", re.ASCII)
_ARTEFACT: Final = (
    "`artefact --help` makes it; give it by --artefact, or to a group by `contribution add --type`. It is of "
    "one model with one weight."
)
_REMEDIES: Final[Mapping[type[ResolveError], str]] = {
    ArtefactMissingError: _ARTEFACT,
    ArtefactStaleError: "Make it again for these models, or take those that it was made for.",
    RoleMissingError: "`artefact role` says what a model is for; `strategy explain` what has to be given.",
    UnsupportedCountError: "Give as many models as it takes, or change what it is told about them.",
}


def add_parts(
    job: ResolveJob, strategy: Strategy, context: MergeContext, tensors: Sequence[TensorPlan]
) -> tuple[TensorPlan, ...]:
    """Return the plans of tensors with how they are cut and what artefacts come with their blocks.

    Raises:
        ArtefactInvalidError: An artefact lacks a tensor, or has one of another size.
    """
    return tuple(
        tensor
        if tensor.index < 0
        else replace(
            tensor,
            granularity=strategy.granularity(context, tensor.index),
            artefacts=tuple(_part(job, tensor, wanted) for wanted in strategy.wants(context, tensor.index)),
        )
        for tensor in tensors
    )


def _part(job: ResolveJob, tensor: TensorPlan, wanted: Wanted) -> Part:
    item = job.artefacts[wanted.artefact]
    spec, source = item.artefact.spec(wanted.tensor), item.tensors.get(wanted.tensor)
    who = f"{item.artefact.type} {item.artefact.digest.hex()[:12]}"
    if spec is None or source is None:
        raise ArtefactInvalidError(f"{who} has no tensor {wanted.tensor}, which {tensor.spec.name} needs.")
    if wanted.is_aligned and spec.numel != tensor.spec.numel:
        raise ArtefactInvalidError(
            f"Tensor {wanted.tensor} of {who} has {spec.numel} elements and {tensor.spec.name} has "
            f"{tensor.spec.numel}."
        )
    return Part(source, spec.dtype, wanted.is_aligned)


def refuse_unmet(working: Effective, job: ResolveJob) -> NoReturn:
    """Raise the error that says why not even a stand-in can merge these inputs."""
    strategy, context = working.strategy, working.context
    kind = _kind(strategy, context, job)
    text = in_files(f"{'; '.join([*working.reasons, working.unmet or ''])}{_unfit(job)}.", job)
    raise kind(text, hint=f"{_REMEDIES[kind]} Or name a stand-in: --param fallback=STRATEGY.")


@contextmanager
def naming_files(job: ResolveJob) -> Iterator[None]:
    """Name files in what a strategy refuses, and the artefacts that could not help it."""
    try:
        yield
    except RoleMissingError as error:
        text = in_files(f"{error.message.removesuffix('.')}{_unfit(job)}.", job)
        raise RoleMissingError(text, hint=error.hint) from None
    except ResolveError as error:
        raise type(error)(in_files(error.message, job), hint=error.hint) from None


def _unfit(job: ResolveJob) -> str:
    """Return which artefacts were offered in vain, and why."""
    notes = [f"{digest[:12]}: {reason}" for digest, reason in sorted(job.unfit.items())]
    return f"; not used: {'; '.join(notes[:_NAMED_MAX])}" if notes else ""


def in_files(text: str, job: ResolveJob) -> str:
    """Return a text that names contributions and artefacts with their files, where there are files.

    Before files are read, their digests are made up (``offline.job_unread``): then it says how many.
    """
    for file in (*job.facts.get("files", ()), *job.facts.get("artefacts", ())):
        short = str(file["digest"])[:_ID_DIGITS]
        text = text.replace(short, f"{short} ({file['path']})")
    return _UNREAD.sub(lambda found: f"{found[0].count(', ') + 1} of the models", text)


def _kind(strategy: Strategy, context: MergeContext, job: ResolveJob) -> type[ResolveError]:
    if context.k < strategy.k_min or (strategy.k_max is not None and context.k > strategy.k_max):
        return UnsupportedCountError
    lacking = [
        need
        for need in strategy.artefacts
        if need.missing_in(context.artefacts, context.digests, context.set_root) is not None
    ]
    if lacking and job.is_stale:
        return ArtefactStaleError
    if lacking and all(need.type != _ROLE for need in lacking):
        return ArtefactMissingError
    if any(need.type == _ROLE for need in strategy.artefacts):
        return RoleMissingError
    return ArtefactMissingError if strategy.artefacts else UnsupportedCountError
