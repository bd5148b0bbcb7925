"""The strategies beyond the paper's 26 that need nothing but models, in the order they are best read."""

from __future__ import annotations

from typing import Final

from .contract import Strategy
from .coordinates import CoordinateMedian, TrimmedMean
from .fusion import ArceeFusion
from .model_stock import ModelStock
from .nearswap import NearSwap, Passthrough
from .nuslerp import NuSlerp
from .ram import Ram, RamPlus
from .robust import GeometricMedian, Krum, MultiKrum, NormClippedMean
from .sce import Sce
from .spherical import Karcher, MultiSlerp

EXTRA_STRATEGIES: Final[tuple[Strategy, ...]] = (
    Karcher(),
    MultiSlerp(),
    NuSlerp(),
    ModelStock(),
    Sce(),
    Ram(),
    RamPlus(),
    ArceeFusion(),
    NearSwap(),
    Passthrough(),
    CoordinateMedian(),
    TrimmedMean(),
    Krum(),
    MultiKrum(),
    GeometricMedian(),
    NormClippedMean(),
)
