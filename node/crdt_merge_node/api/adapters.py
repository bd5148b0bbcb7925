"""What is special about groups of adapters: their rules, their schema, and what may be added to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from crdt_merge_protocol.adapter_rules import split_params, write_rules
from crdt_merge_protocol.adapters import judge_header, judge_specs
from crdt_merge_protocol.blobs import Schema
from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.policy import Policy
from crdt_merge_protocol.strategies.contract import Strategy

from crdt_merge_node.checkpoints.reading import Checkpoint
from crdt_merge_node.contents import GroupContents
from crdt_merge_node.errors import InvalidRequestError
from crdt_merge_node.lora.files import is_adapter_directory, read_adapter_file
from crdt_merge_node.services import Services


def check_adapters(chosen: Strategy, rules: Mapping[str, str], *, has_base: bool) -> None:
    """Refuse rules of adapters that could never be followed. Their base is zero, or the policy's."""
    if chosen.output != "model" or any(not need.is_optional for need in chosen.artefacts):
        raise InvalidRequestError(
            f"{chosen.id} works on whole models: it makes several, or needs artefacts of them.",
            hint="For adapters: weight_average, linear, task_arithmetic, or ties and others on differences.",
        )
    if rules["lora.output"] == "model" and not has_base:
        raise InvalidRequestError(
            "a model is made of adapters by adding them to a base.", hint="Name it: --base FILE."
        )


def implied_rules(services: Services, params: Mapping[str, str], like_path: str | None) -> dict[str, str]:
    """Return the rules of a group that shall be like an adapter: its base, by a name that others know too."""
    texts = split_params(params)[1]
    if like_path is None or not is_adapter_directory(services.fs, Path(like_path)):
        return {}
    name = read_adapter_file(Path(like_path), services.fs).header.base_model
    # A path is a name on the author's machine; the name of a hub is the same on all.
    implied = {} if "base" in texts or "\\" in name or name[:1] in ("", "/", ".", "~") else {"base": name}
    return write_rules(implied | texts)


def common_schema(base: Schema, like: Schema, policy: Policy) -> Schema | None:
    """Return the schema of a group with both; None if they contradict each other.

    Adapters may change, and save whole, tensors of either.
    """
    if not split_params(dict(policy.params))[1]:
        return base if like.id == base.id else None
    known = {spec.name: spec for spec in base.specs}
    more = {spec.name: spec for spec in like.specs}
    if any(known[name].shape != more[name].shape for name in known.keys() & more.keys()):
        return None
    return Schema.of((more | known).values())


def refuse_adapter(services: Services, base_path: str | None) -> None:
    """Refuse an adapter in the place of a base."""
    if base_path is not None and is_adapter_directory(services.fs, Path(base_path)):
        raise InvalidRequestError(
            f"{base_path} is an adapter, and a base is a whole model.",
            hint="--like ADAPTER makes a group of adapters.",
        )


def check_adapter(services: Services, contents: GroupContents, path: str, weight: int) -> Checkpoint:
    """Refuse an adapter that every node would set aside; return what its tensors are. Blocks."""
    assert contents.schema is not None, "the caller has looked"
    assert contents.rules is not None, "the group merges adapters"
    file = read_adapter_file(Path(path), services.fs)
    file.packing.encode()  # Refused before a byte is copied if it is too long to be kept.
    specs = [replace(entry.spec, name=name) for name, entry in file.entries.items()]
    cap = contents.view.policy.weight_cap
    problem = judge_specs(contents.rules, contents.schema, cap, specs, weight) or judge_header(
        contents.rules, contents.schema, specs, file.header
    )
    if problem:
        raise ParameterError(f"{path} cannot be merged in this group: {problem}.", hint=_remedy(problem))
    return file.checkpoint


def _remedy(problem: str) -> str:
    """Return what can be done about a problem that keeps an adapter out."""
    if "trained from" in problem:
        return "If it is the same model by another name: policy set GROUP --base-name '' (an administrator)."
    if "over the group's cap" in problem:
        return "An administrator can raise it: policy set GROUP --max-rank N."
    if "schema" in problem:
        return "The schema of the group, from --like or --base, says which weights adapters may change."
    return "Nothing was copied."


def other_kind(path: str, group_name: str, *, is_adapter: bool) -> InvalidRequestError:
    """Return the error that a contribution is not of the kind that a group merges."""
    if is_adapter:
        return InvalidRequestError(
            f'{path} is an adapter, and group "{group_name}" merges whole models.',
            hint="`lora expand ADAPTER --base BASE -o FILE` makes the model of it; a group of adapters is "
            "made by: group create NAME --like ADAPTER.",
        )
    return InvalidRequestError(
        f'{path} is no adapter as PEFT saves it, and group "{group_name}" merges adapters.',
        hint="Name the directory with adapter_config.json; whole models are for a group of their own.",
    )
