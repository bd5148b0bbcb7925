"""Low-rank adapters in PEFT's format: merged as the differences they stand for, never factor by factor."""

from .adapter import Adapter, read_adapter
from .merging import expand_adapter, merge_adapters
from .writing import AdapterResult

__all__ = ["Adapter", "AdapterResult", "expand_adapter", "merge_adapters", "read_adapter"]
