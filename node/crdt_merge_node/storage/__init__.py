"""What survives: operations and small facts in SQLite, tensors as content-addressed files.

Start with ``store.py``. Acknowledged means durable: whatever a call here returned for is still there if the
power fails in the next instant (SCENARIOS 7). Every failure has a name: no room is :class:`FullError` and
passes by itself, a failed write is :class:`StoreFailedError` and ends the process, damage is
:class:`CorruptError` and the damaged thing is set aside, never served.
"""

from .blobs import BlobStore
from .files import RangeReader
from .health import Health, Room
from .kept import Kept
from .layout import DataDir
from .operations import EXCLUDED_FACT, OpRow
from .partial import Partial
from .recovery import RecoveryReport, ReplayReport, compare_root, replay, save_root
from .store import Store

__all__ = [
    "EXCLUDED_FACT",
    "BlobStore",
    "DataDir",
    "Health",
    "Kept",
    "OpRow",
    "Partial",
    "RangeReader",
    "RecoveryReport",
    "ReplayReport",
    "Room",
    "Store",
    "compare_root",
    "replay",
    "save_root",
]
