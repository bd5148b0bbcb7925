"""``kill -9`` in the middle of a fetch: what is on the disk is not fetched again (TARGETS C5)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from crdt_merge_protocol.limits import FETCH_BYTES_MAX, MIB

from tests.benchmarks.bulk_process import asked_chunks, make_members, said, started, write_model

BLOB_MIB = 256
TIMEOUT_S = 300


def test_c5_a_fetch_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    async def body() -> tuple[int, int, int]:
        make_members(tmp_path)
        write_model(tmp_path, BLOB_MIB)
        async with asyncio.timeout(TIMEOUT_S), started("source", str(tmp_path), str(BLOB_MIB)) as source:
            facts = json.dumps(await said(source))
            fetch = ("fetch", str(tmp_path), str(tmp_path / "store"), facts)
            half = BLOB_MIB * MIB // 2
            async with started(*fetch, str(half)) as first:
                landed = 0
                while landed < half:
                    landed = await said(first)
                first.kill()
                await first.wait()
            asked_before = await asked_chunks(source)
            async with started(*fetch) as second:
                while await said(second) is not None:
                    pass
                assert await second.wait() == 0
            return landed // MIB, asked_before, await asked_chunks(source)

    landed, asked_before, asked = asyncio.run(body())

    assert BLOB_MIB // 2 <= landed <= asked_before < BLOB_MIB, "it was killed in the middle"
    assert asked - asked_before <= BLOB_MIB - landed, "nothing that had landed was asked for again"
    assert (asked - BLOB_MIB) * MIB <= FETCH_BYTES_MAX
