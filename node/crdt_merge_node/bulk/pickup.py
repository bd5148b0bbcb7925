"""How a want is met, once it is its turn: step by step, verified, durable.

An object is one step. A blob of one chunk is one, too, for its digest follows from its bytes; a larger one
needs the list of its chunk digests first, unless that is known from what is on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, Final, TypeVar

from crdt_merge_protocol.blobs import blob_digest, chunk_count
from crdt_merge_protocol.errors import MalformedMessageError
from crdt_merge_protocol.fetch import Item, ItemKind
from crdt_merge_protocol.limits import CHUNK_BYTES, INLINE_BLOB_BYTES_MAX

from .exchange import Exchange
from .landing import Landing, check_size, is_stored, known_digests, proves_size, store_chunk
from .ports import BlobStoreLike
from .wants import Land, Stage, Step, Want

T = TypeVar("T")

OBJECT_GUESS_BYTES: Final = 256 * 1024
DIGEST_BYTES: Final = 32


class NothingYetError(Exception):
    """Parked with nothing on disk: begin again instead of keeping a file open."""


class Pickup:
    """Takes wants through their steps."""

    def __init__(self, blobs: BlobStoreLike, exchange: Exchange, executor: Executor | None) -> None:
        self._blobs = blobs
        self._exchange = exchange
        self._executor = executor
        self.owners: dict[Step, Want] = {}
        """The steps under way, and whose they are."""

    async def take_object(self, want: Want) -> bytes:
        """Return an object, stored and durable."""
        object_id = want.key.id
        data = None
        if self._blobs.has_object(object_id):
            data = await self._in_executor(self._blobs.get_object, object_id)
        if data is None:
            data = bytes(await self._take_one(want, want.key, OBJECT_GUESS_BYTES, want.verify))
            await _durable(self._blobs.put_object_soon(object_id, data))
        return data

    async def take_blob(self, want: Want) -> None:
        """Return once a blob is here, whole and durable.

        Raises:
            MalformedMessageError: The digest proves that it has another size than is wanted.
            FullError: There is no room for it.
            NothingYetError: It was parked before anything of it came; call again when it is its turn.
        """
        digest, nbytes = want.key.id, want.nbytes
        if is_stored(self._blobs, digest, nbytes):
            return
        if nbytes == 0:
            if blob_digest(0, ()) != digest:
                raise MalformedMessageError(
                    f"blob {digest.hex()[:12]} is not empty, as a manifest says it is."
                )
            await _durable(self._blobs.put_inline_soon(digest, b""))
        elif nbytes <= CHUNK_BYTES:
            data = await self._take_one(want, want.key, nbytes, want.verify)
            if len(data) <= INLINE_BLOB_BYTES_MAX:
                # No thread waits for each: those that come together share a transaction.
                await _durable(self._blobs.put_inline_soon(digest, bytes(data)))
            else:
                await self._in_executor(store_chunk, self._blobs, digest, data)
        else:
            await self._take_chunks(want)

    async def _take_chunks(self, want: Want) -> None:
        digest, nbytes = want.key.id, want.nbytes
        digests = known_digests(self._blobs, digest, nbytes)
        if digests is None:
            found = await self._take_one(
                want,
                Item(ItemKind.CHUNK_LIST, digest),
                DIGEST_BYTES * chunk_count(nbytes),
                lambda answer: proves_size(digest, answer.nbytes, answer.digests),
            )
            check_size(digest, claimed=nbytes, actual=found.nbytes)
            digests = found.digests
        landing = await self._in_executor(Landing.begin, self._blobs, digest, nbytes, digests)
        try:
            await self._take(
                want, want.key, nbytes, landing.write, count=len(digests), present=landing.present
            )
            await self._in_executor(landing.finish)
        finally:
            # In the executor, since a write may still hold the file when the want was cancelled.
            await asyncio.gather(self._in_executor(landing.abandon), return_exceptions=True)

    async def _take_one(self, want: Want, item: Item, nbytes: int, verify: Callable[[Any], bool]) -> Any:
        """Return the single piece of an item, verified."""
        found: list[Any] = []

        def land(pieces: list[tuple[int, Any]]) -> list[tuple[int, ...] | None]:
            right = [verify(value) for _, value in pieces]
            found.extend(value for (_, value), is_right in zip(pieces, right, strict=True) if is_right)
            return [(0,) if is_right else None for is_right in right]

        await self._take(want, item, nbytes, land)
        return found[0]

    async def _take(
        self, want: Want, item: Item, nbytes: int, land: Land, *, count: int = 1, present: int = 0
    ) -> None:
        """Return once all pieces of an item have landed."""
        if present == (1 << count) - 1:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        step = Step(
            item=item,
            nbytes=nbytes,
            count=count,
            present=present,
            land=land,
            done=done,
            likely=want.likely,
        )
        want.step = step
        self.owners[step] = want
        try:
            if want.stage is Stage.ACTIVE:
                self._exchange.enter(step)
            await done
        finally:
            want.step = None
            del self.owners[step]
            self._exchange.leave(step)
            if step.lander is not None:
                # The thread that writes cannot be cancelled, and the file must not change under it.
                await asyncio.gather(step.lander, return_exceptions=True)

    async def _in_executor(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)


async def _durable(stored: Future[None]) -> None:
    """Return once something is stored."""
    if stored.done():
        stored.result()
    else:
        await asyncio.wrap_future(stored)
