"""Decompositions that are right to 1e-12 and, to the bit, the same in every setting."""

import functools
import hashlib
import itertools
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from crdt_merge_protocol.strategies.linear_algebra import (
    NotPositiveError,
    cholesky,
    exact_gram,
    exact_matmul,
    fits_exact,
    householder_qr,
    jacobi,
    polar_factor,
    singular_values,
    solve_positive,
    svd,
    symmetric_eigh,
)

SETTINGS = [
    {"OPENBLAS_NUM_THREADS": "1"},
    {"OPENBLAS_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Prescott"},
    {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"},
    {"OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"},
]


def random(*shape, key=7):
    """Return numbers in (-1, 1) from raw words, the same in every numpy release."""
    raw = np.random.Philox(key=key).random_raw(int(np.prod(shape)))
    return ((raw >> 11).astype(np.float64) * 2.0**-52 - 1.0).reshape(shape)


def low_rank(rows, columns, rank):
    return exact_matmul(random(rows, rank), random(rank, columns, key=8))


MATRICES = {
    "zero": np.zeros((5, 3)),
    "one element": np.array([[-3.0]]),
    "one row": random(1, 9),
    "one column": random(9, 1),
    "identity": np.eye(6),
    "minus identity": -np.eye(6),
    "all equal": np.full((4, 7), -2.0),
    "tall": random(70, 20),
    "wide": random(20, 70),
    "odd square": random(37, 37),
    "wider than a panel": random(50, 49),
    "rank three": low_rank(30, 24, 3),
    "zero column": np.concatenate([random(8, 3), np.zeros((8, 1))], axis=1),
    "equal columns": np.repeat(random(12, 4), 2, axis=1),
    "orthogonal": householder_qr(random(24, 24))[0],
    "graded": np.diag(np.ldexp(1.0, -3 * np.arange(30))),
    "huge": np.ldexp(random(9, 12), 1020),
    "tiny": np.ldexp(random(12, 9), -1040),
    "huge beside tiny": np.array([[1e300, 1.0], [0.0, 1e-300]]),
}


@pytest.mark.parametrize("name", MATRICES)
def test_singular_vectors_are_orthonormal_and_make_the_matrix(name):
    matrix = MATRICES[name]
    found = svd(matrix, is_exact=True)
    size = min(matrix.shape)
    scale = max(np.abs(matrix).max(), 5e-324)

    assert np.all(np.diff(found.s) <= 0)
    assert np.all(found.s >= 0)
    np.testing.assert_allclose(found.u.T @ found.u, np.eye(size), atol=1e-13)
    np.testing.assert_allclose(found.vt @ found.vt.T, np.eye(size), atol=1e-13)
    np.testing.assert_allclose((found.u * (found.s / scale)) @ found.vt, matrix / scale, atol=1e-13)


@pytest.mark.parametrize("name", MATRICES)
def test_singular_values_agree_with_lapack(name):
    matrix = MATRICES[name]
    scale = max(np.abs(matrix).max(), 5e-324)

    np.testing.assert_allclose(
        singular_values(matrix, is_exact=True) / scale,
        singular_values(matrix, is_exact=False) / scale,
        atol=1e-13,
    )


@pytest.mark.parametrize("name", MATRICES)
def test_lapacks_vectors_make_the_matrix_too_whether_or_not_it_may_be_squared(name):
    matrix = MATRICES[name]
    found = svd(matrix, is_exact=False)
    scale = max(np.abs(matrix).max(), 5e-324)

    np.testing.assert_allclose(found.u.T @ found.u, np.eye(min(matrix.shape)), atol=2.0**-32)
    np.testing.assert_allclose(found.vt @ found.vt.T, np.eye(min(matrix.shape)), atol=2.0**-32)
    np.testing.assert_allclose((found.u * (found.s / scale)) @ found.vt, matrix / scale, atol=1e-13)


def test_small_singular_values_keep_their_digits_where_squares_would_lose_them():
    turn, other = (householder_qr(random(20, 20, key=key))[0] for key in (1, 2))
    for last in (1e-3, 1e-6, 1e-12):
        expected = np.append(np.linspace(1.0, 0.5, 19), last)
        matrix = (turn * expected) @ other
        for is_exact in (True, False):
            np.testing.assert_allclose(singular_values(matrix, is_exact=is_exact), expected, rtol=1e-3)
            np.testing.assert_allclose(svd(matrix, is_exact=is_exact).s, expected, rtol=1e-3)


@pytest.mark.parametrize("is_exact", [True, False])
def test_the_largest_entry_of_a_left_vector_is_positive_and_the_first_of_equals_counts(is_exact):
    found = svd(random(15, 11), is_exact=is_exact)
    for column in found.u.T:
        assert column[np.argmax(np.abs(column))] > 0
    halves = svd(np.array([[1.0, -1.0], [-1.0, 1.0]]), is_exact=is_exact)
    if is_exact:
        np.testing.assert_allclose(np.abs(halves.u[:, 0]), np.sqrt(0.5), rtol=1e-15)
        assert halves.u[np.argmax(np.abs(halves.u[:, 0])), 0] > 0


def test_scaling_by_a_power_of_two_scales_the_values_and_leaves_the_vectors():
    matrix = random(14, 9)
    plain, scaled = svd(matrix, is_exact=True), svd(np.ldexp(matrix, -300), is_exact=True)

    assert np.array_equal(plain.u, scaled.u)
    assert np.array_equal(plain.vt, scaled.vt)
    assert np.array_equal(np.ldexp(plain.s, -300), scaled.s)


def test_a_matrix_that_needs_many_sweeps_still_ends():
    rows = jacobi.orthogonalise_rows(np.tri(40) + 1e-9 * random(40, 40))
    gram = rows @ rows.T
    lengths = np.sqrt(np.diagonal(gram))
    np.testing.assert_allclose(gram / np.outer(lengths, lengths), np.eye(40), atol=1e-12)


def test_products_are_those_of_rational_arithmetic():
    left, right = random(4, 33), np.ldexp(random(33, 3), -700)
    right[5] *= 2.0**40
    expected = [
        [
            float(sum(Fraction(a) * Fraction(b) for a, b in zip(row, column, strict=True)))
            for column in right.T
        ]
        for row in left
    ]
    np.testing.assert_allclose(exact_matmul(left, right), expected, rtol=1e-13)


def by_definition(left, right, slices):
    """Return the product as ``gemm`` defines it, in integers of any size, one element after the other."""
    inner = left.shape[1]
    bits = (53 - (inner - 1).bit_length()) // 2
    rows, columns = (cuts(vectors, bits, slices) for vectors in (left, right.T))
    out = np.empty((len(rows), len(columns)))
    for (i, (row, up)), (j, (column, down)) in itertools.product(enumerate(rows), enumerate(columns)):
        total = 0.0
        for order in reversed(range(slices)):
            pairs = [(row[n], column[order - n]) for n in range(order + 1)]
            total = (
                float(sum(a * b for x, y in pairs for a, b in zip(x, y, strict=True))) + total * 2.0**-bits
            )
        out[i, j] = np.ldexp(total, up + down - 2 * bits)
    return out


def cuts(vectors, bits, slices):
    """Return the slices of each vector, as integers, and the exponent of its scale."""
    found = []
    for vector in vectors:
        exponent = int(np.frexp(np.abs(vector).max())[1])
        rest, parts = [float(np.ldexp(value, bits - exponent)) for value in vector], []
        for _ in range(slices):
            parts.append([round(value) for value in rest])
            rest = [(value - part) * 2.0**bits for value, part in zip(rest, parts[-1], strict=True)]
        found.append((parts, exponent))
    return found


FACTORS = {
    "float64": random,
    "float32": lambda m, n: random(m, n).astype(np.float32).astype(np.float64),
    "bfloat16": lambda m, n: np.ldexp(np.rint(np.ldexp(random(m, n), 8)), -8),
    "many scales": lambda m, n: np.ldexp(random(m, n), np.resize(np.arange(-90, 90, 7), (m, n))),
    "subnormal": lambda m, n: np.ldexp(random(m, n), np.resize(np.arange(-1070, -1000, 3), (m, n))),
    "nearly one": lambda m, n: np.full((m, n), 1.0 - 2.0**-53),
    "halves in every slice": lambda m, n: np.full((m, n), 1.0 - 2.0**-23 - 2.0**-45),
    "mostly zero": lambda m, n: np.where(random(m, n, key=3) > 0.9, random(m, n), 0.0),
    "minus zero": lambda m, n: -np.zeros((m, n)),
    "transposed": lambda m, n: random(n, m).T,
}


@pytest.mark.parametrize("left", FACTORS)
def test_products_are_to_the_bit_what_their_definition_says(left):
    for right, inner, slices in itertools.product(FACTORS, (1, 32, 33), (2, 3)):
        factors = FACTORS[left](3, inner), FACTORS[right](inner, 2)
        found = exact_matmul(*factors, slices)
        assert found.tobytes() == by_definition(*factors, slices).tobytes(), (right, inner, slices)


@pytest.mark.parametrize("kind", FACTORS)
def test_squares_are_to_the_bit_the_products_that_they_are(kind):
    matrix = FACTORS[kind](150, 33)
    for rows in (1, 127, 128, 129, 150):
        found = exact_gram(matrix[:rows].T)
        # What underflows to zero has no sign in a square.
        assert found.tobytes() == (exact_matmul(matrix[:rows], matrix[:rows].T) + 0.0).tobytes()


def test_long_products_are_cut_and_still_right():
    left, right = random(2, 150_000), random(150_000, 2, key=9)
    np.testing.assert_allclose(exact_matmul(left, right), left @ right, atol=1e-9)


def test_products_of_zeros_are_plus_zero():
    product = exact_matmul(np.array([[-1.0, 0.0]]), np.array([[0.0], [5.0]]))
    assert product[0, 0] == 0.0
    assert not np.signbit(product[0, 0])


def test_products_with_an_empty_side_are_zero():
    assert np.array_equal(exact_matmul(np.empty((2, 0)), np.empty((0, 3))), np.zeros((2, 3)))
    assert exact_matmul(np.empty((0, 4)), np.empty((4, 3))).shape == (0, 3)


def test_two_slices_give_half_the_digits():
    left, right = random(20, 100), random(100, 20, key=3)
    error = np.abs(exact_matmul(left, right, 2) - left @ right).max()
    assert 1e-14 < error < 1e-9


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9), (70, 40), (1, 3), (3, 1)])
def test_qr_gives_an_orthonormal_and_a_triangular_factor(shape):
    matrix = random(*shape)
    q, r = householder_qr(matrix)

    assert np.array_equal(r, np.triu(r))
    np.testing.assert_allclose(q @ r, matrix, atol=1e-14)
    np.testing.assert_allclose(q.T @ q, np.eye(min(shape)), atol=1e-14)


@pytest.mark.parametrize("is_exact", [True, False])
@pytest.mark.parametrize("kind", ["positive", "indefinite", "negative", "zero"])
def test_eigenvectors_diagonalise(kind, is_exact):
    matrix = random(23, 23)
    matrix = {
        "positive": exact_gram(matrix),
        "indefinite": matrix + matrix.T,
        "negative": -exact_gram(matrix),
        "zero": np.zeros((23, 23)),
    }[kind]
    values, vectors = symmetric_eigh(matrix, is_exact=is_exact)

    assert np.all(np.diff(values) <= 1e-13)
    np.testing.assert_allclose((vectors * values) @ vectors.T, matrix, atol=1e-12)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(23), atol=1e-13)


@pytest.mark.parametrize("shape", [(12, 12), (30, 7), (7, 30)])
def test_the_polar_factor_is_u_times_v(shape):
    matrix = np.ldexp(random(*shape), 600)
    u, _, vt = np.linalg.svd(np.ldexp(matrix, -600), full_matrices=False)
    np.testing.assert_allclose(polar_factor(matrix), u @ vt, atol=1e-12)


def test_a_matrix_of_less_than_full_rank_has_an_orthogonal_polar_factor_too():
    for matrix in (np.zeros((5, 5)), low_rank(9, 6, 2)):
        factor = polar_factor(matrix)
        np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), atol=1e-13)


@pytest.mark.parametrize("size", [1, 5, 64, 150])
def test_positive_systems_are_solved(size):
    matrix = exact_gram(random(size + 9, size))
    right = random(size, 3, key=4)

    np.testing.assert_allclose(matrix @ solve_positive(matrix, right), right, atol=1e-11)
    np.testing.assert_allclose(cholesky(matrix) @ cholesky(matrix).T, matrix, atol=1e-12)


@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), -np.eye(2), np.diag([1.0, 0.0])])
def test_what_is_not_positive_is_refused(matrix):
    with pytest.raises(NotPositiveError):
        cholesky(matrix)


def test_the_shorter_side_decides_whether_a_matrix_is_small():
    assert fits_exact(512, 100_000)
    assert not fits_exact(513, 513)


@functools.cache
def output_digest():
    """Return SHA-256 over everything that these functions make of matrices of many kinds."""
    state = hashlib.sha256()
    for matrix in (*MATRICES.values(), random(90, 70)):
        found = svd(matrix, is_exact=True)
        for part in (found.u, found.s, found.vt, polar_factor(matrix)):
            state.update(np.ascontiguousarray(part).tobytes())
    state.update(exact_matmul(random(300, 400), random(400, 350, key=6)).tobytes())
    gram = exact_gram(random(120, 90))
    for part in (*symmetric_eigh(gram, is_exact=True), solve_positive(gram, random(90, 20, key=5))):
        state.update(np.ascontiguousarray(part).tobytes())
    return state.hexdigest()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: " ".join(setting.values()))
def test_everything_has_one_digest_in_every_setting(setting):
    code = f"import runpy; print(runpy.run_path({__file__!r})['output_digest']())"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENBLAS", "NPY"))}

    other = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **setting}, capture_output=True, text=True, check=True
    )

    assert output_digest() == other.stdout.strip()


def test_the_digest_is_the_one_of_every_release():
    """Pinned: other bits from equal inputs need new versions of the strategies, or groups fall apart."""
    assert output_digest() == "d9945285a0c9eb6357dd06dfaf18ac0aeebd14f2eaf62a6637a5435a1e589def"
