"""Low-rank adapters in PEFT's format: merged as the differences they stand for, never factor by factor.

Start reading at ``merging``: ``offline`` calls it for directories, ``group`` for what a group holds.
"""

from .adapter import Adapter
from .files import read_adapter
from .offline import AdapterResult, expand_adapter, merge_adapters

__all__ = ["Adapter", "AdapterResult", "expand_adapter", "merge_adapters", "read_adapter"]
