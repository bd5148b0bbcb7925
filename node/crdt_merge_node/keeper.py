"""Gets the bytes of contributions and finds out which may be used (PROTOCOL R14, R16).

The replicated state says which contributions exist. For every group this compares the view with the blob
store and, if the group is followed, asks for what is missing, until nothing is:

    view -> schema, base manifest, manifests -> blobs -> scan for NaN -> used, HOLD

It is level-triggered: any change (an operation, a fetched blob, damage) leads to one more comparison, and no
step depends on having seen an earlier event. How a contribution is looked at and judged is in ``inspecting``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Final

from crdt_merge_protocol.blobs import Manifest, content_id, payload_id, schema_id
from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.packing import packing_id

from .bulk import Fetcher
from .contents import MODEL, GroupContents, Item, needs_in
from .erasing import Erasures
from .errors import ControlError
from .gossip import GossipDriver
from .holds import Holds
from .inspecting import Inspector, is_final
from .rationing import ration
from .scans import Scans
from .storage import Store
from .stored_ids import read_id
from .unused import Unused
from .watches import Watch
from .wishes import Wish, Wishes

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
        self._erasures = Erasures(engine=engine, driver=driver, store=store, again=self.changed)
        self.unused = Unused(engine=engine, store=store, clock=driver.clock, freed=self.look_again)
        self._scans = Scans(store, found=self._scanned)
        self._inspector = Inspector(store, self._scans)
        self._wishes = Wishes(
            came=self._changed_all,
            partly=self._changed_partly,
            disproved=self._inspector.note_disproved,
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
        await self.unused.load()
        for group in self._engine.replicas:
            await self._erasures.destroy(group)  # Before anybody could ask for it.

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
        await self.unused.close()
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

    # --- the comparison -----------------------------------------------------------------------------------

    async def _compare(self, group: bytes) -> None:
        state = self._engine.state(group)
        assert state is not None, "groups are never dropped"
        await self._erasures.enforce(group)
        self.unused.changed()
        view, before = state.view, self._contents.get(group)
        contents = GroupContents(
            view=view,
            damage=self._damage,
            needs=needs_in(view.policy),
            admins=frozenset(state.genesis.admins),
        )
        if before is not None and before.damage != self._damage:
            before = None
        await self._inspector.fill_shared(contents, before)
        seen: Mapping[bytes, Item] = before.items if before else {}
        for is_pending, shown in ((False, view.visible), (True, view.pending)):
            for visible in shown:
                old = seen.get(visible.tag)
                if old is None or not is_final(old, visible, contents, is_pending=is_pending):
                    old = await self._inspector.look_at(visible, contents, old, is_pending=is_pending)
                contents.items[visible.tag] = old
        ration(contents, seen)
        self._contents[group] = contents
        if any(self._is_scanned(item) for item in contents.items.values()):
            self.changed(group)  # The scan ended before it could be known for whom it was.
        is_followed = self.is_followed(group)
        wishes = list(self._all_wishes(group, contents)) if is_followed else []
        if erased := self._store.blobs.erased_among([wish.id for wish in wishes]):
            await asyncio.to_thread(self._store.blobs.permit, erased)  # Something unbanned needs them.
        self._wishes.need(group, wishes)
        if is_followed:
            await self._holds.tell(group, contents)

    def _is_scanned(self, item: Item) -> bool:
        return item.is_scanning and self._scans.verdict(item.visible.content, item.visible.type) is not None

    # --- wishes -------------------------------------------------------------------------------------------

    def _all_wishes(self, group: bytes, contents: GroupContents) -> Iterator[Wish]:
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
            if item.is_withheld or (not item.missing and (item.has_meta or item.visible.payload is None)):
                continue
            author, visible = item.visible.author, item.visible
            is_erased = visible.payload is not None and self._erasures.is_erased_payload(
                group, visible.payload
            )
            if item.packing and not item.has_meta:
                yield self._object_wish(item.packing, packing_id, author)
            elif visible.payload is not None and not item.has_meta and not is_erased:
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
