"""The compliance matrix: which laws every strategy keeps as a plain operator, and which through the state.

The first two tiers of the paper's evaluation (arXiv:2605.19373), measured and nothing extrapolated. Start
reading at ``matrix.py``; ``raw.py`` and ``replicas.py`` are the two halves of an entry.
"""

from .matrix import Entry, Matrix, run
from .models import Gap, Size, size_of

__all__ = ["Entry", "Gap", "Matrix", "Size", "run", "size_of"]
