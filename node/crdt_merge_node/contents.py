"""What the contributions of a followed group consist of, what of it is here, and what may be used.

The replicated state says which contributions exist; this room gets their bytes. For every followed group it
compares the view with the blob store and asks for what is missing, again and again until nothing is:

    view -> schema, base manifest, manifests -> blobs -> scan for NaN -> used

It is level-triggered: any change (an operation, a fetched blob, a new peer) leads to one more comparison,
and no step depends on having seen an earlier event. Whether a contribution may be used is decided by
``quarantine.judge`` from its bytes alone, so every node drops the same ones (PROTOCOL R14).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from crdt_merge_protocol.blobs import (
    FLOAT_DTYPES,
    Manifest,
    Schema,
    chunk_count,
    content_id,
    payload_id,
    schema_id,
)
from crdt_merge_protocol.canonical import decode
from crdt_merge_protocol.engine import Engine
from crdt_merge_protocol.errors import CrdtMergeError, RemoteProtocolError
from crdt_merge_protocol.limits import PAYLOAD_BYTES_MAX
from crdt_merge_protocol.operations import Hold, Kind, read_body
from crdt_merge_protocol.quarantine import judge
from crdt_merge_protocol.resolve_key import resolve_key, used_root
from crdt_merge_protocol.view import View, Visible

from .bulk import Fetcher
from .errors import CorruptError
from .gossip import GossipDriver
from .resolve import scan_finite
from .storage import Store
from .telemetry.logging import get_logger

log = get_logger()

WANTS_MAX = 4096
"""Objects and blobs asked for at a time. The fetcher bounds what it works on and parks what nobody has."""
HOLD_TAGS_MAX = 512
"""Tags in one HOLD; they stand in the body and in the references."""
MODEL = "model"


@dataclass(slots=True)
class Item:
    """One visible or pending contribution and how much of it is here."""

    visible: Visible
    is_pending: bool
    manifest: Manifest | None = None
    problem: str = ""
    """Why it is quarantined; empty if it is not, or not yet judged."""
    is_judged: bool = False
    """Nothing about it can change any more: its bytes are here, or it is quarantined without them."""
    missing: dict[bytes, int] = field(default_factory=dict)
    """Blob digest -> size in bytes, of what is not here."""
    meta: dict[str, str] = field(default_factory=dict)

    @property
    def is_used(self) -> bool:
        """Whether it goes into a resolve."""
        return self.is_judged and not self.problem and not self.is_pending and self.visible.type == MODEL


@dataclass(slots=True)
class GroupContents:
    """The last comparison of a group's view with the blob store."""

    view: View
    schema: Schema | None = None
    base: Manifest | None = None
    base_missing: dict[bytes, int] = field(default_factory=dict)
    items: dict[bytes, Item] = field(default_factory=dict)
    """By tag."""
    absent: dict[bytes, str] = field(default_factory=dict)
    """Ids of objects that are not here, and what they are."""

    @property
    def used(self) -> list[Item]:
        """The contributions that go into a resolve, in canonical order."""
        chosen = [item for item in self.items.values() if item.is_used]
        return sorted(chosen, key=lambda item: (item.visible.digest, item.visible.tag))

    @property
    def missing(self) -> dict[bytes, int]:
        """Every blob that is not here, with its size; objects of unknown size count 0."""
        wanted = dict.fromkeys(self.absent, 0) | self.base_missing
        for item in self.items.values():
            wanted |= item.missing
        return wanted

    @property
    def is_complete(self) -> bool:
        """Whether a resolve can begin: all that the view shows is here and judged."""
        waiting = any(not item.is_judged for item in self.items.values() if not item.is_pending)
        return not (waiting or self.absent or self.base_missing)

    def keys(self, without: frozenset[bytes] = frozenset()) -> tuple[bytes, bytes]:
        """Return (used root, resolve key); meaningful once complete."""
        root = used_root(item.visible.digest for item in self.used if item.visible.tag not in without)
        return root, resolve_key(root, self.view.policy.recipe())


class ContentKeeper:
    """Fetches and judges the contents of all followed groups."""

    def __init__(self, *, engine: Engine, driver: GossipDriver, store: Store, fetcher: Fetcher) -> None:
        self._engine = engine
        self._driver = driver
        self._store = store
        self._fetcher = fetcher
        self._contents: dict[bytes, GroupContents] = {}
        self._wake: dict[bytes, asyncio.Event] = {}
        self._compared: dict[bytes, asyncio.Event] = {}
        self._loops: dict[bytes, asyncio.Task[None]] = {}
        self._wants: dict[bytes, asyncio.Task[None]] = {}
        self._unfollowed: set[bytes] = set()
        self._held: dict[bytes, set[bytes]] = {}
        self._finite: dict[bytes, bool] = {}
        self._is_closing = False

    async def start(self) -> None:
        """Begin with all groups that are here."""
        for key, _ in await self._store.scan_meta("unfollowed/"):
            self._unfollowed.add(bytes.fromhex(key.removeprefix("unfollowed/")))
        for key, value in await self._store.scan_meta("finite/"):
            self._finite[bytes.fromhex(key.removeprefix("finite/"))] = value == b"1"
        for group in self._engine.replicas:
            self.changed(group)

    async def close(self) -> None:
        """Stop; a later start continues where this stopped."""
        self._is_closing = True
        tasks = [*self._loops.values(), *self._wants.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def changed(self, group: bytes) -> None:
        """Compare the group again soon."""
        if self._is_closing:
            return
        if group not in self._loops:
            self._wake[group] = asyncio.Event()
            self._compared[group] = asyncio.Event()
            self._loops[group] = asyncio.create_task(self._loop(group), name=f"contents-{group.hex()[:8]}")
            self._loops[group].add_done_callback(self._loop_ended)
        self._wake[group].set()

    def look_again(self) -> None:
        """Compare every group again soon: blobs may have been set aside as damaged."""
        for group in list(self._loops):
            self.changed(group)

    def contents(self, group: bytes) -> GroupContents | None:
        """Return the last comparison, or None before the first."""
        return self._contents.get(group)

    async def current(self, group: bytes) -> GroupContents:
        """Return a comparison made after this call."""
        self.changed(group)
        await self.next_comparison(group)
        return self._contents[group]

    async def next_comparison(self, group: bytes) -> None:
        """Return after the next comparison of the group."""
        await self._compared[group].wait()

    def remaining(self, missing: Mapping[bytes, int]) -> int:
        """Return how many bytes of these blobs are still to come, those on disk of unfinished ones aside."""
        underway = {want.id: want.missing_bytes for want in self._fetcher.missing()}
        return sum(underway.get(blob, nbytes) for blob, nbytes in missing.items())

    def is_followed(self, group: bytes) -> bool:
        """Whether the blobs of the group are fetched."""
        return group not in self._unfollowed

    async def follow(self, group: bytes, *, follow: bool) -> None:
        """Fetch the blobs of a group from now on, or stop it; remembered."""
        key = f"unfollowed/{group.hex()}"
        if follow:
            self._unfollowed.discard(group)
            await self._store.delete_meta(key)
        else:
            self._unfollowed.add(group)
            await self._store.put_meta(key, b"1")
        self.changed(group)

    async def note_finite(self, content: bytes, *, is_finite: bool) -> None:
        """Remember what a scan of all tensors of a content found."""
        self._finite[content] = is_finite
        await self._store.put_meta(f"finite/{content.hex()}", b"1" if is_finite else b"0")

    # --- the comparison ---------------------------------------------------------------------------------

    async def _loop(self, group: bytes) -> None:
        while True:
            await self._wake[group].wait()
            self._wake[group].clear()
            await self._compare(group)
            done, self._compared[group] = self._compared[group], asyncio.Event()
            done.set()

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._driver.callbacks.fatal(error)

    async def _compare(self, group: bytes) -> None:
        state = self._engine.state(group)
        assert state is not None, "groups are never dropped"
        view = state.view
        contents = GroupContents(view=view)
        contents.schema = await self._schema(group, contents)
        if view.policy.base is not None:
            contents.base = await self._manifest(group, view.policy.base, contents, "manifest of the base")
            contents.base_missing = self._missing_blobs(contents.base)
        for is_pending, shown in ((False, view.visible), (True, view.pending)):
            for visible in shown:
                item = Item(visible=visible, is_pending=is_pending)
                contents.items[visible.tag] = item
                await self._fill(group, item, contents)
        self._contents[group] = contents
        if self.is_followed(group):
            sizes = contents.base_missing | {
                blob: nbytes for item in contents.items.values() for blob, nbytes in item.missing.items()
            }
            for blob, nbytes in sizes.items():
                self._want(group, blob, partial(self._fetcher.want_blob, blob, nbytes))
            await self._hold(group, contents)

    async def _fill(self, group: bytes, item: Item, contents: GroupContents) -> None:
        """Find out how much of one contribution is here and whether it may be used."""
        visible = item.visible
        item.meta = await self._meta(group, visible.payload)
        try:
            item.manifest = await self._manifest(group, visible.content, contents, "manifest")
        except RemoteProtocolError as error:
            item.problem, item.is_judged = f"its manifest is unreadable: {error.message}", True
            return
        if item.manifest is None or contents.schema is None:
            return
        policy = contents.view.policy
        if visible.type == MODEL:
            problem = judge(contents.schema, policy.weight_cap, item.manifest, visible.weight, None)
            if problem:
                item.problem, item.is_judged = problem, True
                return
        item.missing = self._missing_blobs(item.manifest)
        if item.missing:
            return
        is_finite = await self._is_finite(visible.content, item.manifest)
        if visible.type == MODEL:
            item.problem = (
                judge(contents.schema, policy.weight_cap, item.manifest, visible.weight, is_finite) or ""
            )
        item.is_judged = True

    async def _schema(self, group: bytes, contents: GroupContents) -> Schema | None:
        schema = contents.view.policy.schema
        data = await self._object(group, schema, schema_id)
        if data is None:
            contents.absent[schema] = "schema"
            return None
        return Schema.decode(data)

    async def _manifest(
        self, group: bytes, content: bytes, contents: GroupContents, what: str
    ) -> Manifest | None:
        data = await self._object(group, content, content_id)
        if data is None:
            contents.absent[content] = what
            return None
        return Manifest.decode(data)

    async def _meta(self, group: bytes, payload: bytes | None) -> dict[str, str]:
        if payload is None:
            return {}
        data = await self._object(group, payload, payload_id)
        return read_payload(data) if data else {}

    async def _object(self, group: bytes, object_id: bytes, name: Callable[[bytes], bytes]) -> bytes | None:
        """Return an object if it is here; otherwise ask for it."""
        data = await asyncio.to_thread(self._store.blobs.get_object, object_id)
        if data is None and self.is_followed(group):
            self._want(group, object_id, lambda: self._fetch_object(object_id, name))
        return data

    async def _fetch_object(self, object_id: bytes, name: Callable[[bytes], bytes]) -> None:
        await self._fetcher.want_object(object_id, lambda found: name(found) == object_id)

    def _missing_blobs(self, manifest: Manifest | None) -> dict[bytes, int]:
        if manifest is None:
            return {}
        return {
            entry.blob: entry.spec.nbytes
            for entry in manifest.entries
            if not self._store.blobs.has(entry.blob)
        }

    async def _is_finite(self, content: bytes, manifest: Manifest) -> bool:
        if content not in self._finite:
            found = await asyncio.to_thread(self._scan, manifest)
            await self.note_finite(content, is_finite=found)
        return self._finite[content]

    def _scan(self, manifest: Manifest) -> bool:
        """Read every tensor of a contribution once, chunk by chunk (SCENARIOS T23)."""
        for entry in manifest.entries:
            if entry.spec.dtype not in FLOAT_DTYPES and entry.spec.dtype != "BOOL":
                continue
            for index in range(chunk_count(entry.spec.nbytes)):
                chunk = self._store.blobs.read_chunk(entry.blob, index)
                if chunk is None:
                    raise CorruptError(f"blob {entry.blob.hex()[:12]} went away while it was scanned.")
                if not scan_finite(entry.spec.dtype, chunk):
                    return False
        return True

    def _want(self, group: bytes, key: bytes, start: Callable[[], Awaitable[None]]) -> None:
        if key in self._wants or len(self._wants) >= WANTS_MAX:
            return
        task = asyncio.ensure_future(self._fetch(key, start))
        self._wants[key] = task
        task.add_done_callback(lambda _: self._fetched(group, key))

    async def _fetch(self, key: bytes, start: Callable[[], Awaitable[None]]) -> None:
        try:
            await start()
        except CrdtMergeError as error:
            log.warning("blob.failed", blob=key, error=error)
            # Named in `why`; asked for again when peers or operations change, or after a while.
            await asyncio.sleep(RETRY_S)

    def _fetched(self, group: bytes, key: bytes) -> None:
        task = self._wants.pop(key)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._driver.callbacks.fatal(error)
        self.changed(group)
        if len(self._wants) == WANTS_MAX - 1:
            for other in self._loops:
                self.changed(other)

    # --- HOLD ---------------------------------------------------------------------------------------------

    async def _hold(self, group: bytes, contents: GroupContents) -> None:
        """Tell the group which contributions are whole here, if its policy asks for it (PROTOCOL R16)."""
        if contents.view.policy.holders == 0:
            return
        held = self._held.setdefault(group, self._held_before(group))
        tags = sorted(
            tag
            for tag, item in contents.items.items()
            if item.is_judged
            and not item.missing
            and tag not in held
            and item.visible.author != self._engine.node
        )
        for start in range(0, len(tags), HOLD_TAGS_MAX):
            page = tuple(tags[start : start + HOLD_TAGS_MAX])
            held.update(page)
            await self._driver.author(group, Kind.HOLD, Hold(tags=page).encode(), page)

    def _held_before(self, group: bytes) -> set[bytes]:
        state = self._engine.state(group)
        assert state is not None, "groups are never dropped"
        held: set[bytes] = set()
        for signed in state.causal():
            body = read_body(signed.operation) if signed.operation.author == self._engine.node else None
            if isinstance(body, Hold):
                held.update(body.tags)
        return held


RETRY_S = 5.0


def read_payload(data: bytes) -> dict[str, str]:
    """Return the notes in a payload, or nothing if it is not one: notes never change an output."""
    try:
        value = decode(data, bytes_max=PAYLOAD_BYTES_MAX)
    except RemoteProtocolError:
        return {}
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], list):
        return {}
    return {pair[0]: pair[1] for pair in value[1] if _is_note(pair)}


def _is_note(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


def notes(meta: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return notes in the order in which a payload has them."""
    return sorted([key, value] for key, value in meta)
