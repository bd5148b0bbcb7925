"""Finds out how much of a contribution is here, and whether it may be used (PROTOCOL R14, R16).

That is decided from its bytes alone, so every node drops the same ones. Whatever a peer put into those bytes
ends in a reason and never in an exception.
"""

from __future__ import annotations

import asyncio
from typing import Final

from crdt_merge_protocol.adapter_rules import adapter_rules
from crdt_merge_protocol.adapters import (
    ADAPTER,
    header_problem,
    judge_header,
    judge_specs,
    read_adapter_header,
)
from crdt_merge_protocol.blobs import Manifest, Schema
from crdt_merge_protocol.errors import ArtefactInvalidError, ParameterError, RemoteProtocolError
from crdt_merge_protocol.quarantine import judge
from crdt_merge_protocol.strategies.artefacts import HEADER_TENSOR
from crdt_merge_protocol.view import Visible

from .contents import GroupContents, Item, read_payload
from .errors import CorruptError
from .judging import header_entry, read_artefact
from .scans import Scans
from .storage import Store

DISPROVED_MAX: Final = 65_536
LONG_MANIFEST_BYTES: Final = 64 << 10


def is_final(item: Item, visible: Visible, contents: GroupContents, *, is_pending: bool) -> bool:
    """Tell whether another look at a contribution would find what the last one did.

    Of a thousand contributions all but the newest are so: a comparison costs what has changed.
    """
    is_read = item.is_artefact and contents.is_needed(visible.type)
    return (
        item.is_judged
        and (item.has_meta or visible.payload is None)
        and contents.schema is not None
        and item.judged_by == contents.judging
        and item.is_pending == is_pending
        and (bool(item.problem) or (item.artefact is not None) == is_read)
        # The tag is a hash of all that the author said; only who holds it can be another.
        and item.visible.holders == visible.holders
    )


class Inspector:
    """Looks at contributions one by one, and at what all of a group are judged by."""

    def __init__(self, store: Store, scans: Scans) -> None:
        self._store = store
        self._scans = scans
        self._disproved: dict[tuple[bytes, int], str] = {}
        """(blob, size) -> why no such blob can exist."""

    def note_disproved(self, blob: bytes, nbytes: int, reason: str) -> None:
        """Remember why no blob of that digest and that size can exist."""
        if len(self._disproved) >= DISPROVED_MAX:
            self._disproved.clear()  # What is still needed will be disproved again.
        self._disproved[blob, nbytes] = reason

    async def fill_shared(self, contents: GroupContents, before: GroupContents | None) -> None:
        """Find what every contribution is judged by and merged with."""
        policy = contents.view.policy
        try:
            contents.rules = adapter_rules(dict(policy.params))
        except ParameterError as error:
            contents.problem = f"this release cannot read its policy: {error.message}"
            return
        if before is not None and before.view.policy.schema == policy.schema:
            contents.schema = before.schema
        if before is not None and before.view.policy.base == policy.base:
            contents.base = before.base
        try:
            if contents.schema is None:
                if (data := await self._object(policy.schema)) is None:
                    contents.shared_missing[policy.schema] = 0
                else:
                    contents.schema = Schema.decode(data)
            if policy.base is None:
                return
            if contents.base is None:
                if (data := await self._object(policy.base)) is None:
                    contents.shared_missing[policy.base] = 0
                    return
                contents.base = Manifest.decode(data)
        except RemoteProtocolError as error:
            contents.problem = f"the schema or the base of its policy is unreadable: {error.message}"
            return
        lies = self._lie(contents.base)
        contents.problem = f"the base of its policy is impossible: {lies}" if lies else ""
        if not lies:
            contents.shared_missing |= self._missing_blobs(contents.base)

    async def look_at(
        self, visible: Visible, contents: GroupContents, before: Item | None, *, is_pending: bool
    ) -> Item:
        """Find out how much of one contribution is here and whether it may be used."""
        item = Item(visible=visible, is_pending=is_pending)
        await self._read_meta(item, before)
        if contents.schema is None:
            return item
        item.judged_by = contents.judging
        is_read = item.is_artefact and contents.is_needed(visible.type)
        if (
            before is not None
            and before.is_judged
            and before.judged_by == item.judged_by
            and (before.problem or before.artefact is not None or not is_read)
        ):
            item.manifest, item.tensors, item.nbytes = before.manifest, before.tensors, before.nbytes
            item.problem, item.is_judged = before.problem, True
            item.artefact = before.artefact if is_read else None
            item.adapter = before.adapter
            return item
        problem = _other_kind(item, contents)
        if not problem:
            found = await self._read_manifest(item, contents, before)
            if found is None:
                return item
            problem = found or self._judge_bytes(item)
        if visible.type == ADAPTER and not problem:
            problem = await self._judge_adapter(item, contents)
        if item.is_artefact and not problem:
            problem = await self._judge_artefact(item, contents.schema, is_kept=is_read)
        if problem:
            item.problem, item.is_judged, item.manifest = problem, True, None
            item.is_scanning = False  # Whatever the scan finds, the verdict stands.
            item.missing.clear()
        return item

    async def _read_manifest(self, item: Item, contents: GroupContents, before: Item | None) -> str | None:
        """Get the manifest; return what is wrong with it, empty if nothing is, None if it is not here."""
        visible = item.visible
        if before is not None and before.manifest is not None:
            item.manifest = before.manifest  # One tag has one content.
        else:
            data = await self._object(visible.content)
            if data is None:
                item.missing[visible.content] = 0
                return None
            try:
                item.manifest = await self._decode(data)
            except RemoteProtocolError as error:
                return f"its manifest is unreadable: {error.message}"
        item.tensors, item.nbytes = len(item.manifest.entries), item.manifest.nbytes
        if before is not None and before.manifest is not None and before.judged_by == item.judged_by:
            return self._lie(item.manifest)
        return await self._judge_manifest(item, contents)

    async def _decode(self, data: bytes) -> Manifest:
        """Decode a manifest; a long one off the loop: twenty thousand tensors take a fifth of a second."""
        if len(data) < LONG_MANIFEST_BYTES:
            return Manifest.decode(data)
        return await asyncio.to_thread(Manifest.decode, data)

    async def _judge_manifest(self, item: Item, contents: GroupContents) -> str:
        assert item.manifest is not None, "the caller has read it"
        assert contents.schema is not None, "the caller has looked"
        policy, schema, weight = contents.view.policy, contents.schema, item.visible.weight
        cap = policy.weight_cap
        problem = ""
        if contents.rules is not None and item.is_model:
            specs = [entry.spec for entry in item.manifest.entries]
            problem = await asyncio.to_thread(judge_specs, contents.rules, schema, cap, specs, weight)
        elif item.is_model:
            problem = judge(schema, cap, item.manifest, weight, None, any_float=policy.takes_any_float) or ""
        return problem or self._lie(item.manifest)

    def _judge_bytes(self, item: Item) -> str:
        """Judge by the bytes, if they are here; else note what is missing."""
        assert item.manifest is not None, "the caller has read it"
        content, kind = item.visible.content, item.visible.type
        if not item.is_model and not item.is_artefact:
            item.missing = self._missing_blobs(item.manifest)
            item.is_judged = not item.missing
            return ""
        is_finite = self._scans.verdict(content, kind)
        if is_finite is False:
            return "it holds NaN, infinity or " + (
                f"values that no {kind} has" if item.is_artefact else "a boolean that is neither 0 nor 1"
            )
        item.missing = self._missing_blobs(item.manifest)
        if item.missing:
            return ""
        if is_finite is None:
            item.is_scanning = True
            self._scans.begin(content, item.manifest, kind)
        else:
            item.is_judged = True
        return ""

    async def _judge_adapter(self, item: Item, contents: GroupContents) -> str:
        """Judge an adapter by its header, if that is here; return what is wrong with it."""
        assert item.manifest is not None, "the caller has read it"
        assert contents.schema is not None, "the caller has looked"
        assert contents.rules is not None, "a group of whole models has none"
        entry = next((entry for entry in item.manifest.entries if entry.spec.name == ADAPTER), None)
        problem = header_problem(entry.spec if entry else None)
        if problem or entry is None:
            return problem
        try:
            data = await asyncio.to_thread(self._store.blobs.read_chunk, entry.blob, 0)
        except CorruptError:
            data = None  # It was set aside and is fetched again.
        if data is None:
            item.is_judged = False
            return ""
        specs = [each.spec for each in item.manifest.entries]
        try:
            # Off the loop, as for artefacts.
            header = await asyncio.to_thread(read_adapter_header, data)
        except ParameterError as error:
            return error.message.removesuffix(".")
        if problem := await asyncio.to_thread(judge_header, contents.rules, contents.schema, specs, header):
            return problem
        item.adapter = header if item.is_judged else None
        return ""

    async def _judge_artefact(self, item: Item, schema: Schema, *, is_kept: bool) -> str:
        """Judge an artefact by its header, if that is here; return what is wrong with it."""
        assert item.manifest is not None, "the caller has read it"
        entry = header_entry(item.manifest)
        if entry is None:
            return f"it has no tensor {HEADER_TENSOR} that could be the header of an artefact"
        try:
            header = await asyncio.to_thread(self._store.blobs.read_chunk, entry.blob, 0)
        except CorruptError:
            header = None  # It was set aside and is fetched again.
        if header is None:
            item.is_judged = False
            # It comes first: what it says must fit the schema before the rest may take any room (T19).
            item.missing = {key: size for key, size in item.missing.items() if key == entry.blob}
            return ""
        specs = [each.spec for each in item.manifest.entries]
        try:
            # Off the loop: a header may have megabytes, and name twenty thousand tensors.
            artefact = await asyncio.to_thread(
                read_artefact, item.visible.type, item.visible.digest, header, specs, schema
            )
        except ArtefactInvalidError as error:
            return error.message.removesuffix(".")
        item.artefact = artefact if is_kept and item.is_judged else None
        return ""

    def _lie(self, manifest: Manifest) -> str:
        """Return which tensor cannot have the size that a manifest says, as far as that is proven."""
        for entry in manifest.entries:
            nbytes = entry.spec.nbytes
            actual = self._store.blobs.size(entry.blob)
            if actual is not None and actual != nbytes:
                return f"tensor {entry.spec.name} has {nbytes} bytes and its blob {actual}"
            if reason := self._disproved.get((entry.blob, nbytes)):
                return f"tensor {entry.spec.name}: {reason}"
        return ""

    def _missing_blobs(self, manifest: Manifest) -> dict[bytes, int]:
        blobs = self._store.blobs
        return {entry.blob: entry.spec.nbytes for entry in manifest.entries if not blobs.has(entry.blob)}

    async def _read_meta(self, item: Item, before: Item | None) -> None:
        payload = item.visible.payload
        if before is not None and before.has_meta:
            item.meta, item.packing, item.has_meta = before.meta, before.packing, True
        elif payload is None:
            item.has_meta = True
        elif (data := await self._object(payload)) is not None:
            item.meta, item.packing = read_payload(data)
            item.has_meta = not item.packing or self._store.blobs.has_object(item.packing)

    async def _object(self, object_id: bytes) -> bytes | None:
        if not self._store.blobs.has_object(object_id):
            return None
        try:
            return await asyncio.to_thread(self._store.blobs.get_object, object_id)
        except CorruptError:
            return None  # It was set aside and is fetched again.


def _other_kind(item: Item, contents: GroupContents) -> str:
    """Return why a model or an adapter is not what this group merges; empty if it is."""
    if not item.is_model or item.visible.type == contents.kind:
        return ""
    if contents.rules is None:
        return "it is an adapter, and the group merges whole models"
    return "it is a whole model, and the group merges adapters"
