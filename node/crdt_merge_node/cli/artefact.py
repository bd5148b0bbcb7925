"""``artefact fisher|gram|snip|role|lambda-table|pack|show``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from crdt_merge_protocol.limits import WEIGHT_ONE

from .app import SuggestingGroup
from .options import Invocation, command
from .output import clean, count, facts, say, say_json, short, size, table
from .values import MODEL, OUTPUT, READABLE, Weights, parse_pairs, read_small, refuse_clashes

if TYPE_CHECKING:
    from crdt_merge_protocol.blobs import Schema, TensorSpec

    from crdt_merge_node.artefacts.files import ArtefactFile, Blocks

DAMAGED: Final = 7
_DIGEST_DIGITS: Final = 64
_LABELS: Final = ("expected", "sampled", "empirical")
_ROLES: Final = ("finetuned", "safety", "aligned", "unaligned", "forget", "unlearned", "base")
_DTYPES: Final = ("F32", "F16", "BF16")


@click.group(cls=SuggestingGroup)
def artefact() -> None:
    """Make and check what some strategies need besides models. No daemon is needed.

    `strategy list` says which strategy needs which; the formats are those of protocol/artefacts.md.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the options common to all that write an artefact say."""

    output: str
    models: tuple[str, ...]
    weights: list[int] | None
    contributions: tuple[str, ...]
    like: str | None
    base: str | None
    note: str

    def write(
        self,
        type_: str,
        fields: dict[str, Any],
        tensors: Sequence[tuple[TensorSpec, Blocks]] = (),
        *,
        digests: Sequence[bytes] | None = None,
    ) -> tuple[dict[str, Any], int]:
        """Write the file; return its header and its size in bytes."""
        from crdt_merge_node.artefacts.files import write_artefact
        from crdt_merge_node.artefacts.headers import bound_header
        from crdt_merge_node.ports import SystemFs, SystemRng
        from crdt_merge_node.resolve.describe import describe_file

        header = bound_header(
            type_,
            fields,
            self.digests() if digests is None else digests,
            base=describe_file(Path(self.base)).manifest.content if self.base else b"",
            note=self.note,
        )
        schema = self.schema() if self.like or self.models else None
        nbytes = write_artefact(
            Path(self.output), header, tensors, schema=schema, fs=SystemFs(), rng=SystemRng()
        )
        return header, nbytes

    def digests(self) -> list[bytes]:
        """Return the contribution digests, as given or of the files as contributions."""
        from crdt_merge_node.resolve.describe import describe_file

        if bool(self.models) == bool(self.contributions):
            raise click.UsageError("Say which model it is of: either --model FILE or --contribution DIGEST.")
        if self.contributions:
            return [_digest(text) for text in self.contributions]
        weights = self.weights or [WEIGHT_ONE] * len(self.models)
        if len(weights) != len(self.models):
            raise click.UsageError(f"--weight has {len(weights)} weights for {len(self.models)} models.")
        pairs = zip(self.models, weights, strict=True)
        return [describe_file(Path(model), weight).digest for model, weight in pairs]

    def schema(self) -> Schema:
        """Return the schema of the model that the artefact is of."""
        file = self.like or next(iter(self.models), None)
        if file is None:
            raise click.UsageError("Give --like FILE: it says which tensors the model has.")
        return _schema(file)


def _writes(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :class:`Target`, which it receives as ``target``."""

    @click.option("-o", "--output", type=OUTPUT, required=True, help="The artefact file to write.")
    @click.option("--model", "models", multiple=True, type=MODEL, help="The model that it is of.")
    @click.option(
        "--weight", "weights", type=Weights(), help="Weight of each --model's contribution, else 1."
    )
    @click.option(
        "--contribution", "contributions", multiple=True, metavar="DIGEST", help="Instead of --model."
    )
    @click.option("--like", type=MODEL, help="A file with the model's tensors; else the first --model.")
    @click.option("--base", type=MODEL, help="The base that it was made with.")
    @click.option("--note", default="", help="Free text in the header.")
    def wrapper(invocation: Invocation, **options: Any) -> None:
        names = ("output", "models", "weights", "contributions", "like", "base", "note")
        target = Target(**{name: options.pop(name) for name in names})
        samples = (*options.get("gradients", ()), *options.get("activations", ()))
        read = (*target.models, target.like, target.base, *(each.rpartition("=")[2] for each in samples))
        refuse_clashes([target.output], read)
        function(invocation, target, **options)

    wrapper.__name__, wrapper.__doc__ = function.__name__, function.__doc__
    return wrapper


@artefact.command(short_help="Make a fisher_diag for fisher_merge, of gradients.")
@click.argument("gradients", nargs=-1, required=True)
@click.option("--label-mode", type=click.Choice(_LABELS), required=True, help="Where the labels came from.")
@click.option("--samples", type=click.IntRange(min=1), help="How many, if each has several gradients.")
@click.option("--loss", default="", help="A note: what was differentiated.")
@click.option("--dtype", type=click.Choice(_DTYPES), default="F32", show_default=True, help="Element type.")
@command
@_writes
def fisher(
    invocation: Invocation,
    target: Target,
    *,
    gradients: tuple[str, ...],
    label_mode: str,
    samples: int | None,
    loss: str,
    dtype: str,
) -> None:
    """Make a fisher_diag of GRADIENTS, one per example, for fisher_merge.

    GRADIENTS are safetensors files or NAME=FILE.npy, tensors named and shaped as the model's, or with one
    more axis of examples in front. A tensor `weight` holds one number per gradient: for --label-mode expected
    the probability of its label.
    """
    from crdt_merge_node.artefacts.fisher import fisher_tensors
    from crdt_merge_node.artefacts.samples import open_samples
    from crdt_merge_node.ports import SystemFs

    files = [open_samples(name, SystemFs()) for name in gradients]
    fields, tensors = fisher_tensors(files, target.schema(), samples=samples, dtype=dtype)
    fields |= {"label_mode": label_mode, **({"loss": loss} if loss else {})}
    _answer(invocation, target, "fisher_diag", *target.write("fisher_diag", fields, tensors))


@artefact.command(short_help="Make a gram for regmean, of activations.")
@click.argument("activations", nargs=-1, required=True)
@click.option("--input", "inputs", multiple=True, metavar="WEIGHT=NAME", help="Activations of a weight.")
@click.option("--transposed", multiple=True, metavar="WEIGHT", help="A weight stored as [in, out].")
@click.option("--dtype", type=click.Choice(_DTYPES), default="F32", show_default=True, help="Element type.")
@command
@_writes
def gram(
    invocation: Invocation,
    target: Target,
    *,
    activations: tuple[str, ...],
    inputs: tuple[str, ...],
    transposed: tuple[str, ...],
    dtype: str,
) -> None:
    """Make a gram of ACTIVATIONS, the inputs of linear layers, for regmean.

    ACTIVATIONS are safetensors files or NAME=FILE.npy. A tensor of shape (..., d) is the input of the weight
    of the same name, or of those that --input says: what several layers share is named once. Gram matrices
    reveal something of the data: share them only with those who may see samples.
    """
    from crdt_merge_node.artefacts.gram import gram_tensors
    from crdt_merge_node.artefacts.samples import open_samples
    from crdt_merge_node.ports import SystemFs

    files = [open_samples(name, SystemFs()) for name in activations]
    pairs = parse_pairs(inputs, option="--input")
    fields, tensors = gram_tensors(files, target.schema(), inputs=pairs, transposed=transposed, dtype=dtype)
    _answer(invocation, target, "gram", *target.write("gram", fields, tensors))


@artefact.command(short_help="Make a snip_score for led_merge, of gradients.")
@click.argument("gradients", nargs=-1, required=True)
@click.option(
    "--base-gradients", multiple=True, required=True, metavar="FILE", help="Gradients at the base's weights."
)
@click.option("--dtype", type=click.Choice(_DTYPES), default="F32", show_default=True, help="Element type.")
@command
@_writes
def snip(
    invocation: Invocation,
    target: Target,
    *,
    gradients: tuple[str, ...],
    base_gradients: tuple[str, ...],
    dtype: str,
) -> None:
    """Make a snip_score of GRADIENTS, one per example, for led_merge.

    GRADIENTS are at the weights of --model, --base-gradients at those of --base, on the same examples of the
    model's task. Files are as for `artefact fisher`.
    """
    from crdt_merge_node.artefacts.samples import open_samples
    from crdt_merge_node.artefacts.snip import snip_tensors
    from crdt_merge_node.ports import SystemFs

    if len(target.models) != 1 or target.base is None:
        raise click.UsageError("Scores need the parameters: give one --model FILE and --base FILE.")
    opened = [[open_samples(name, SystemFs()) for name in names] for names in (base_gradients, gradients)]
    base, model = (open_samples(path, SystemFs()) for path in (target.base, target.models[0]))
    fields, tensors = snip_tensors(*opened, base=base, model=model, schema=target.schema(), dtype=dtype)
    _answer(invocation, target, "snip_score", *target.write("snip_score", fields, tensors))


@artefact.command(short_help="Say what a model is for.")
@click.argument("name", type=click.Choice(_ROLES), metavar="ROLE")
@command
@_writes
def role(invocation: Invocation, target: Target, *, name: str) -> None:
    """Say what a model is for: finetuned, safety, aligned, unaligned, forget, unlearned or base."""
    _answer(invocation, target, "role", *target.write("role", {"role": name}))


@artefact.command("lambda-table", short_help="Make a lambda_table for ada_merging.")
@click.option(
    "--row", "rows", multiple=True, required=True, metavar="PATTERN=L,...", help="In order of models."
)
@command
@_writes
def lambda_table(invocation: Invocation, target: Target, *, rows: tuple[str, ...]) -> None:
    """Make a lambda_table for ada_merging from learnt coefficients.

    Every --row has a pattern over tensor names and one coefficient per --model or --contribution, in the
    order in which these are given. The first row that fits a tensor counts.
    """
    from crdt_merge_node.artefacts.headers import lambda_rows

    digests = target.digests()
    pairs = [(match, numbers.split(",")) for match, numbers in parse_pairs(rows, option="--row").items()]
    fields = {"rows": lambda_rows(digests, pairs)}
    _answer(invocation, target, "lambda_table", *target.write("lambda_table", fields, digests=digests))


@artefact.command(short_help="Make any artefact of a header and tensors.")
@click.argument("type_", metavar="TYPE")
@click.option("--header", type=READABLE, help="A JSON object with the fields of TYPE.")
@click.option("--tensors", type=READABLE, help="A safetensors file with its tensors.")
@command
@_writes
def pack(
    invocation: Invocation, target: Target, *, type_: str, header: str | None, tensors: str | None
) -> None:
    """Make an artefact of any TYPE from a header and tensors, checked.

    What binds it (subject, or set_root and contributions) is filled in. Lists of a set-bound artefact, and
    tensors `i/...`, are in ascending order of the contribution digests, which `show` prints.
    """
    from crdt_merge_node.artefacts.packing import pack_tensors, parse_fields
    from crdt_merge_node.ports import SystemFs

    fields = parse_fields(read_small(header)) if header else {}
    parts = pack_tensors(Path(tensors), SystemFs()) if tensors else []
    _answer(invocation, target, type_, *target.write(type_, fields, parts))


@artefact.command(short_help="Show an artefact and check it.")
@click.argument("file", type=READABLE)
@click.option("--like", type=MODEL, help="A file with the model's tensors, to check shapes against.")
@command
def show(invocation: Invocation, *, file: str, like: str | None) -> None:
    """Show the artefact FILE and check it; the exit status is 7 if something is wrong with it."""
    from crdt_merge_node.artefacts.files import problems_of, read_artefact
    from crdt_merge_node.ports import SystemFs

    found = read_artefact(Path(file), SystemFs())
    problems = problems_of(found, _schema(like) if like else None, SystemFs())
    if invocation.is_json:
        tensors = [
            {"name": e.spec.name, "dtype": e.spec.dtype, "shape": list(e.spec.shape)} for e in found.tensors
        ]
        say_json(
            "artefact-show/1",
            path=file,
            type=found.type,
            header=dict(found.header),
            tensors=tensors,
            problems=problems,
        )
    else:
        _show(found, problems, is_checked=like is not None)
    if problems:
        raise click.exceptions.Exit(DAMAGED)


def _show(found: ArtefactFile, problems: list[str], *, is_checked: bool) -> None:
    nbytes = sum(entry.end - entry.begin for entry in found.tensors)
    say(f"{found.type}: {count(len(found.tensors), 'tensor')}, {size(nbytes)}")
    say(facts((name, _spell(value)) for name, value in sorted(found.header.items()) if name != "artefact"))
    rows = [(e.spec.name, e.spec.dtype, " x ".join(map(str, e.spec.shape))) for e in found.tensors]
    if rows:
        say(table(("TENSOR", "TYPE", "SHAPE"), rows))
    for problem in problems:
        say(f"wrong: {clean(problem)}")
    if not problems:
        say("it is well formed" if is_checked else "its values are fine; --like MODEL checks its shapes too")


def _spell(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(short(item) if len(item) == _DIGEST_DIGITS else item for item in value)
    return value if isinstance(value, str) else json.dumps(value)


def _answer(invocation: Invocation, target: Target, type_: str, header: dict[str, Any], nbytes: int) -> None:
    if invocation.is_json:
        say_json("artefact-write/1", path=target.output, type=type_, header=header, nbytes=nbytes)
        return
    say(f"wrote {clean(target.output)}: {type_}, {size(nbytes)}")
    bond = header.get("subject") or header["set_root"]
    say(facts((("of", bond), ("contributions", _spell(header.get("contributions", ""))))))


def _schema(file: str) -> Schema:
    from crdt_merge_protocol.blobs import Schema

    from crdt_merge_node.checkpoints.reading import read_checkpoint
    from crdt_merge_node.ports import SystemFs

    return Schema.of(entry.spec for entry in read_checkpoint(SystemFs(), Path(file)).entries)


def _digest(text: str) -> bytes:
    if len(text) != _DIGEST_DIGITS or set(text) - set("0123456789abcdef"):
        raise click.UsageError(f"{text!r} is no contribution digest: 64 lower-case hex digits.")
    return bytes.fromhex(text)
