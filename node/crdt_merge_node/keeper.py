"""Gets the bytes of contributions and finds out which may be used (PROTOCOL R14, R16).

The replicated state says which contributions exist. For every group this compares the view with the blob
store and, if the group is followed, asks for what is missing, until nothing is:

    view -> schema, base manifest, manifests -> blobs -> scan for NaN -> used, HOLD

It is level-triggered: any change (an operation, a fetched blob, damage) leads to one more comparison, and no
step depends on having seen an earlier event. Whether a contribution may be used is decided from its bytes
alone, so every node drops the same ones. Whatever a peer put into those bytes ends in a reason and never in
an exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Final

from crdt_merge_protocol.blobs import Manifest, Schema, content_id, payload_id, schema_id
from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.errors import ArtefactInvalidError, RemoteProtocolError
from crdt_merge_protocol.packing import packing_id
from crdt_merge_protocol.quarantine import judge
from crdt_merge_protocol.strategies.artefacts import HEADER_TENSOR
from crdt_merge_protocol.view import Visible

from .bulk import Fetcher
from .contents import MODEL, GroupContents, Item, needs_in, read_payload
from .errors import ControlError, CorruptError
from .gossip import GossipDriver
from .holds import Holds
from .judging import header_entry, read_artefact
from .scans import Scans
from .storage import Store
from .stored_ids import read_id
from .telemetry.logging import get_logger
from .watches import Watch
from .wishes import Wish, Wishes

log = get_logger()

DISPROVED_MAX: Final = 65_536
LONG_MANIFEST_BYTES: Final = 64 << 10
PARTLY_S: Final = 0.25
"""How long a comparison waits if nothing has come yet that it could decide by."""


class ContentKeeper:
    """Fetches and judges the contents of all followed groups."""

    def __init__(self, *, engine: Engine, driver: GossipDriver, store: Store, fetcher: Fetcher) -> None:
        self._engine = engine
        self._driver = driver
        self._store = store
        self._fetcher = fetcher
        self._contents: dict[bytes, GroupContents] = {}
        self._watches: dict[bytes, Watch] = {}
        self._unfollowed: set[bytes] = set()
        self._holds = Holds(engine, driver, again=self.changed)
        self._disproved: dict[tuple[bytes, int], str] = {}
        """(blob, size) -> why no such blob can exist."""
        self._scans = Scans(store, found=self._scanned)
        self._wishes = Wishes(
            came=self._changed_all,
            partly=self._changed_partly,
            disproved=self._note_disproved,
            fatal=driver.fail,
        )
        self._damage = 0
        self._late: dict[bytes, asyncio.TimerHandle] = {}
        """Groups to compare after a while."""
        self._is_closing = False

    async def load(self) -> None:
        """Read what is remembered over restarts; called before anything changes."""
        for key, _ in await self._store.scan_meta("unfollowed/"):
            if group := read_id(key.removeprefix("unfollowed/")):
                self._unfollowed.add(group)
        await self._scans.load()

    def start(self) -> None:
        """Begin with all groups that are here."""
        self._changed_all(self._engine.replicas)

    async def close(self) -> None:
        """Stop; a later start continues where this stopped."""
        self._is_closing = True
        for timer in self._late.values():
            timer.cancel()
        await asyncio.gather(*(watch.close() for watch in self._watches.values()))
        await self._wishes.close()
        await self._scans.close()

    # --- what others ask ----------------------------------------------------------------------------------

    def changed(self, group: bytes) -> None:
        """Compare the group again soon."""
        if not self._is_closing:
            self._watch(group).look_again()

    def look_again(self) -> None:
        """Compare every group again soon, from the start: blobs have gone away."""
        self._damage += 1
        self._changed_all(list(self._watches))

    def contents(self, group: bytes) -> GroupContents | None:
        """Return the last comparison, or None before the first."""
        return self._contents.get(group)

    async def current(self, group: bytes) -> GroupContents:
        """Return a comparison that began after this call.

        Raises:
            StorageError: The store could not be read.
            ControlError: The node is stopping.
        """
        if self._is_closing:
            raise ControlError("the node is stopping.")
        await self._watch(group).current()
        return self._contents[group]

    def generation(self, group: bytes) -> int:
        """Return the number of the last comparison, to wait for a later one."""
        return self._watch(group).generation

    async def beyond(self, group: bytes, generation: int) -> None:
        """Return once there is a comparison later than ``generation``.

        Raises:
            ControlError: The node is stopping.
        """
        await self._watch(group).beyond(generation)

    def remaining(self, missing: Mapping[bytes, int]) -> int:
        """Return how many bytes of these are still to come, those on disk of unfinished ones aside."""
        underway = self.underway() if missing else {}
        has = self._store.blobs.has  # A comparison may not have seen yet what has just come.
        return sum(underway.get(blob, nbytes) for blob, nbytes in missing.items() if not has(blob))

    def underway(self) -> dict[bytes, int]:
        """Return what is being fetched, with the number of bytes still to come."""
        return {want.id: want.missing_bytes for want in self._fetcher.missing()}

    def is_followed(self, group: bytes) -> bool:
        """Whether the blobs of the group are fetched."""
        return group not in self._unfollowed

    async def follow(self, group: bytes, *, follow: bool) -> None:
        """Fetch the blobs of a group from now on, or stop it; remembered."""
        key = f"unfollowed/{group.hex()}"
        if follow:
            await self._store.delete_meta(key)
            self._unfollowed.discard(group)
        else:
            await self._store.put_meta(key, b"1")
            self._unfollowed.add(group)
        self.changed(group)

    async def note_finite(self, content: bytes, kind: str = MODEL, *, is_finite: bool) -> None:
        """Remember what a scan of all tensors of a content found."""
        await self._scans.note(content, kind, is_finite=is_finite)

    def named_blobs(self) -> frozenset[bytes]:
        """Return every blob that a contribution or base of any group consists of, as far as it is known."""
        manifests: list[Manifest | None] = [contents.base for contents in self._contents.values()]
        manifests += [item.manifest for one in self._contents.values() for item in one.items.values()]
        return frozenset(entry.blob for manifest in manifests if manifest for entry in manifest.entries)

    # --- what leads to a comparison -----------------------------------------------------------------------

    def _watch(self, group: bytes) -> Watch:
        if group not in self._watches:
            self._watches[group] = Watch(
                partial(self._compare, group), fatal=self._driver.fail, name=group.hex()[:8]
            )
        return self._watches[group]

    def _changed_all(self, groups: Iterable[bytes]) -> None:
        for group in groups:
            self.changed(group)

    def _changed_partly(self, groups: Iterable[bytes]) -> None:
        """Compare soon, but not for every blob of a contribution of which more are on their way."""
        loop = asyncio.get_running_loop()
        for group in groups:
            if group not in self._late and not self._is_closing:
                self._late[group] = loop.call_later(PARTLY_S, self._changed_late, group)

    def _changed_late(self, group: bytes) -> None:
        del self._late[group]
        self.changed(group)

    def _scanned(self, content: bytes) -> None:
        for group, contents in self._contents.items():
            if any(item.visible.content == content for item in contents.items.values()):
                self.changed(group)

    def _note_disproved(self, blob: bytes, nbytes: int, reason: str) -> None:
        if len(self._disproved) >= DISPROVED_MAX:
            self._disproved.clear()  # What is still needed will be disproved again.
        self._disproved[blob, nbytes] = reason

    # --- the comparison -----------------------------------------------------------------------------------

    async def _compare(self, group: bytes) -> None:
        state = self._engine.state(group)
        assert state is not None, "groups are never dropped"
        view, before = state.view, self._contents.get(group)
        contents = GroupContents(
            view=view,
            damage=self._damage,
            needs=needs_in(view.policy),
            admins=frozenset(state.genesis.admins),
        )
        if before is not None and before.damage != self._damage:
            before = None
        await self._fill_shared(contents, before)
        seen: Mapping[bytes, Item] = before.items if before else {}
        for is_pending, shown in ((False, view.visible), (True, view.pending)):
            for visible in shown:
                old = seen.get(visible.tag)
                if old is None or not self._is_final(old, visible, contents, is_pending=is_pending):
                    old = await self._look_at(visible, contents, old, is_pending=is_pending)
                contents.items[visible.tag] = old
        self._contents[group] = contents
        if any(self._is_scanned(item) for item in contents.items.values()):
            self.changed(group)  # The scan ended before it could be known for whom it was.
        is_followed = self.is_followed(group)
        self._wishes.need(group, self._all_wishes(contents) if is_followed else ())
        if is_followed:
            await self._holds.tell(group, contents)

    def _is_scanned(self, item: Item) -> bool:
        return item.is_scanning and self._scans.verdict(item.visible.content, item.visible.type) is not None

    def _is_final(self, item: Item, visible: Visible, contents: GroupContents, *, is_pending: bool) -> bool:
        """Tell whether another look at a contribution would find what the last one did.

        Of a thousand contributions all but the newest are so: a comparison costs what has changed.
        """
        is_read = item.is_artefact and contents.is_needed(visible.type)
        return (
            item.is_judged
            and (item.has_meta or visible.payload is None)
            and contents.schema is not None
            and item.judged_by == (contents.view.policy.schema, contents.view.policy.weight_cap)
            and item.is_pending == is_pending
            and (bool(item.problem) or (item.artefact is not None) == is_read)
            # The tag is a hash of all that the author said; only who holds it can be another.
            and item.visible.holders == visible.holders
        )

    async def _fill_shared(self, contents: GroupContents, before: GroupContents | None) -> None:
        """Find what every contribution is judged by and merged with."""
        policy = contents.view.policy
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

    async def _look_at(
        self, visible: Visible, contents: GroupContents, before: Item | None, *, is_pending: bool
    ) -> Item:
        """Find out how much of one contribution is here and whether it may be used."""
        item = Item(visible=visible, is_pending=is_pending)
        await self._read_meta(item, before)
        if contents.schema is None:
            return item
        item.judged_by = (contents.view.policy.schema, contents.view.policy.weight_cap)
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
            return item
        problem = await self._read_manifest(item, contents.schema, before)
        if problem is None:
            return item
        problem = problem or self._judge_bytes(item)
        if item.is_artefact and not problem:
            problem = await self._judge_artefact(item, contents.schema, is_kept=is_read)
        if problem:
            item.problem, item.is_judged, item.manifest = problem, True, None
            item.is_scanning = False  # Whatever the scan finds, the verdict stands.
            item.missing.clear()
        return item

    async def _read_manifest(self, item: Item, schema: Schema, before: Item | None) -> str | None:
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
        return self._judge_manifest(item, schema)

    async def _decode(self, data: bytes) -> Manifest:
        """Decode a manifest; a long one off the loop: twenty thousand tensors take a fifth of a second."""
        if len(data) < LONG_MANIFEST_BYTES:
            return Manifest.decode(data)
        return await asyncio.to_thread(Manifest.decode, data)

    def _judge_manifest(self, item: Item, schema: Schema) -> str:
        assert item.manifest is not None, "the caller has read it"
        assert item.judged_by is not None, "the caller has set it"
        problem = ""
        if item.is_model:
            problem = judge(schema, item.judged_by[1], item.manifest, item.visible.weight, None) or ""
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
                "a boolean that is neither 0 nor 1" if item.is_model else f"values that no {kind} has"
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

    # --- wishes -------------------------------------------------------------------------------------------

    def _all_wishes(self, contents: GroupContents) -> Iterator[Wish]:
        policy = contents.view.policy
        names: dict[bytes, Callable[[bytes], bytes]] = {policy.schema: schema_id}
        if policy.base is not None:
            names[policy.base] = content_id
        for key, nbytes in contents.shared_missing.items():
            name = names.get(key)
            yield (
                self._blob_wish(key, nbytes, b"", policy.base or b"")
                if name is None
                else (self._object_wish(key, name, b""))
            )
        for item in contents.items.values():
            if not item.missing and (item.has_meta or item.visible.payload is None):
                continue
            author, visible = item.visible.author, item.visible
            if item.packing and not item.has_meta:
                yield self._object_wish(item.packing, packing_id, author)
            elif visible.payload is not None and not item.has_meta:
                yield self._object_wish(visible.payload, payload_id, author)
            for key, nbytes in item.missing.items():
                if key == visible.content:
                    yield self._object_wish(key, content_id, author)
                else:
                    yield self._blob_wish(key, nbytes, author, visible.content)

    def _blob_wish(self, blob: bytes, nbytes: int, owner: bytes, content: bytes) -> Wish:
        start = partial(self._fetcher.want_blob, blob, nbytes, owner=owner, content=content)
        return Wish(id=blob, nbytes=nbytes, owner=owner, start=start, content=content)

    def _object_wish(self, object_id: bytes, name: Callable[[bytes], bytes], owner: bytes) -> Wish:
        async def start() -> None:
            await self._fetcher.want_object(object_id, lambda found: name(found) == object_id, owner=owner)

        return Wish(id=object_id, nbytes=0, owner=owner, start=start)
