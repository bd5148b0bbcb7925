"""From what a group holds to the job that merges it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crdt_merge_protocol.blobs import Manifest
from crdt_merge_protocol.errors import ParameterError
from crdt_merge_protocol.limits import WEIGHT_ONE

from crdt_merge_node.contents import GroupContents, Item, Selection
from crdt_merge_node.lora.group import UsedAdapter, build_adapter_job
from crdt_merge_node.resolve.job import ResolveJob, TensorSource, UsedArtefact, UsedModel
from crdt_merge_node.resolve.plan import build_job
from crdt_merge_node.services import Services

from .contributions import idle_items

if TYPE_CHECKING:
    from .resolving import ResolveRequest


def job_of(
    services: Services, group: bytes, contents: GroupContents, selection: Selection, *, task: bytes
) -> ResolveJob:
    """Return the job that merges a selection of what a group holds.

    Raises as ``build_job``.
    """
    policy, config = contents.view.policy, services.config.resolve
    assert contents.schema is not None, "complete contents have their schema"
    base = None
    if contents.base is not None and policy.base is not None:
        base = UsedModel(policy.base, WEIGHT_ONE, contents.base, _sources(services, contents.base))
    facts = _facts(services, group, contents, selection)
    if contents.rules is not None:
        return build_adapter_job(
            policy,
            contents.rules,
            contents.schema,
            [_adapter(services, item) for item in selection.models],
            base,
            fs=services.fs,
            memory_bytes=int(config.memory_bytes),
            workers=config.workers,
            facts=facts,
        )
    used = []
    for item in selection.models:
        assert item.manifest is not None, "used contributions have their manifest"
        visible = item.visible
        used.append(
            UsedModel(visible.digest, visible.weight, item.manifest, _sources(services, item.manifest))
        )
    artefacts = []
    for item in selection.artefacts:
        assert item.manifest is not None, "used contributions have their manifest"
        assert item.artefact is not None, "chosen artefacts were judged"
        artefacts.append(UsedArtefact(item.artefact, item.manifest, _sources(services, item.manifest)))
    return build_job(
        policy,
        contents.schema,
        used,
        base,
        group_mode=True,
        artefacts=artefacts,
        unfit=selection.choice.unfit,
        task=task,
        memory_bytes=int(config.memory_bytes),
        workers=config.workers,
        facts=facts,
    )


def _facts(services: Services, group: bytes, contents: GroupContents, selection: Selection) -> dict[str, Any]:
    """Return what the provenance says of the group."""
    state = services.engine.replicas[group].state
    used = [*selection.models, *selection.artefacts]
    idle = idle_items(contents, selection)
    return {
        "group": group.hex(),
        "group_name": state.genesis.name,
        "node": services.engine.node.hex(),
        "cluster": services.identity.cluster.hex(),
        "policy_version": contents.view.policy.version,
        "sync_root": state.sync_root.hex(),
        "contributions": [
            {
                "tag": item.visible.tag.hex(),
                "author": item.visible.author.hex(),
                "slot": item.visible.slot,
                "type": item.visible.type,
                "digest": item.visible.digest.hex(),
                "content": item.visible.content.hex(),
                "weight": item.visible.weight,
            }
            for item in used
        ],
        "excluded": [
            {
                "tag": tag.hex(),
                "reason": item.problem or idle.get(tag, ("", ""))[1] or "left out on request",
            }
            for tag, item in contents.items.items()
            if item not in used
        ],
    }


def _sources(services: Services, manifest: Manifest) -> dict[str, TensorSource]:
    sources = {}
    for entry in manifest.entries:
        path, offset, nbytes, data = services.store.blobs.source(entry.blob)
        sources[entry.spec.name] = TensorSource(
            str(path) if path else None, offset, nbytes, data, blob=entry.blob
        )
    return sources


def _adapter(services: Services, item: Item) -> UsedAdapter:
    assert item.manifest is not None, "used contributions have their manifest"
    assert item.adapter is not None, "used adapters were judged by their header"
    visible, sources = item.visible, _sources(services, item.manifest)
    return UsedAdapter(visible.digest, visible.weight, item.manifest, sources, item.adapter)


def refuse_unfit(job: ResolveJob, request: ResolveRequest) -> None:
    """Refuse what cannot be asked for of adapters.

    Raises:
        ParameterError: The message says what, and what to do instead.
    """
    if job.adapters is None:
        return
    if request.task:
        raise ParameterError("Adapters are merged into one, not one for each task.", hint="Leave --task out.")
    if request.report_paths:
        raise ParameterError(
            "The layers of adapters are not measured.",
            hint="The provenance beside the output says for each module its rank and what that lost.",
        )
