"""Linear algebra whose bits are the same on every machine.

BLAS and LAPACK add in an order that depends on the processor and the number of threads, so what they make
differs in its last bits, and after a cut at a rank or a sign not only there. Here

- products are *sliced*: both factors are split into integers so short that no product and no sum of products
  is ever rounded. The library may then do the work in any order (``gemm.py``);
- what must round, rounds elementwise: reflections and rotations use fixed trees of additions (``qr.py``,
  ``jacobi.py``);
- loops end by fixed rules on numbers made that way.

On one core of a 2.6 GHz EPYC: a product of 1,024^2 matrices 0.28 s, of float32 0.19 s (BLAS 0.05), a
positive system of that size 0.56 s (LAPACK 0.14), singular values and vectors of 256^2 0.5 s and of 512^2
3.5 s (LAPACK 0.01 and 0.09). So there is a size, :data:`EXACT_MAX`, up to which strategies use them; beyond
it they use LAPACK and say so (``fp_tolerant``).

Source: STRATEGIES of this project's design, 1.8 and E.3; the papers named in the modules.
"""

from .cholesky import NotPositiveError, cholesky, solve_positive
from .gemm import exact_gram, exact_matmul
from .polar import polar_factor
from .qr import householder_qr
from .svd import EXACT_MAX, Svd, fits_exact, singular_values, svd, symmetric_eigh

__all__ = [
    "EXACT_MAX",
    "NotPositiveError",
    "Svd",
    "cholesky",
    "exact_gram",
    "exact_matmul",
    "fits_exact",
    "householder_qr",
    "polar_factor",
    "singular_values",
    "solve_positive",
    "svd",
    "symmetric_eigh",
]
