"""Runs where scipy is installed: methods written out with its decompositions and solvers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import numpy as np
from scipy import linalg, optimize, spatial, stats

Arrays = list[np.ndarray]
DTYPES = {"f64": np.float64, "f32": np.float32, "bf16": np.float64}
"""scipy knows no bf16: elements of eight bits, arithmetic in f64."""


def dual_projection(models: Arrays, _extra: Arrays, case: dict) -> np.ndarray:
    """Solve the Sylvester equation of the two projections, from a base of zeros."""
    shares = np.array(case["weights"]) / sum(case["weights"])
    left = sum(share * x @ x.T for share, x in zip(shares, models, strict=True))
    right = sum(share * x.T @ x for share, x in zip(shares, models, strict=True))
    both = sum(share * (x @ x.T @ x + x @ x.T @ x) for share, x in zip(shares, models, strict=True))
    return linalg.solve_sylvester(left, right, both)


def regmean(models: Arrays, grams: Arrays, case: dict) -> np.ndarray:
    """Solve the normal equations by Cholesky."""
    kept = [case["a"] * gram + (1 - case["a"]) * np.diag(np.diag(gram)) for gram in grams]
    values = sum(gram @ x.T for gram, x in zip(kept, models, strict=True))
    return linalg.solve(sum(kept), values, assume_a="pos").T


def adarank(taus: Arrays, masks: Arrays, case: dict) -> np.ndarray:
    """Add differences of which masks keep singular components."""
    total = np.zeros_like(taus[0])
    for tau, mask, coefficient in zip(taus, masks, case["lambdas"], strict=True):
        u, s, vt = linalg.svd(tau, full_matrices=False)
        total += coefficient * (u * (s * mask)) @ vt
    return total


def truncated(taus: Arrays, _extra: Arrays, case: dict) -> np.ndarray:
    """Add differences cut to their leading directions."""
    total = np.zeros_like(taus[0])
    for tau in taus:
        u, s, vt = linalg.svd(tau, full_matrices=False)
        r = max(1, len(s) * case["numerator"] // case["denominator"])
        total += (u[:, :r] * s[:r]) @ vt[:r]
    return total


def star(taus: Arrays, _extra: Arrays, case: dict) -> np.ndarray:
    """Average differences cut by a share of their nuclear norm and scaled up to it."""
    shares = np.array(case["weights"]) / sum(case["weights"])
    total = np.zeros_like(taus[0])
    for share, tau in zip(shares, taus, strict=True):
        u, s, vt = linalg.svd(tau, full_matrices=False, lapack_driver="gesvd")
        r = int(np.searchsorted(np.cumsum(s), case["eta"] / 100 * s.sum())) + 1
        total += share * (u[:, :r] * s[:r]) @ vt[:r] * (s.sum() / s[:r].sum())
    return total


def slerp(models: Arrays, _extra: Arrays, case: dict) -> np.ndarray:
    """Go along the great circle, with the length in between."""
    one, other = (x.reshape(-1).astype(np.float64) for x in models)
    lengths = linalg.norm(one), linalg.norm(other)
    t = case["t"]
    point = spatial.geometric_slerp(one / lengths[0], other / lengths[1], t)
    return (point * ((1 - t) * lengths[0] + t * lengths[1])).reshape(models[0].shape)


def geometric_median(models: Arrays, _extra: Arrays, _case: dict) -> np.ndarray:
    """Minimise the sum of distances."""
    points = np.stack([x.reshape(-1).astype(np.float64) for x in models])

    def cost(v: np.ndarray) -> tuple[float, np.ndarray]:
        away = linalg.norm(v - points, axis=1)
        return away.sum(), ((v - points) / away[:, None]).sum(axis=0)

    found = optimize.minimize(
        cost, points.mean(axis=0) + 1e-3, jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 5000}
    )
    return found.x.reshape(models[0].shape)


def median(models: Arrays, _extra: Arrays, _case: dict) -> np.ndarray:
    """Take the median of each element."""
    return stats.quantile(np.stack(models), 0.5, axis=0, method="linear")


def trimmed(models: Arrays, _extra: Arrays, case: dict) -> np.ndarray:
    """Leave out the ends of each element."""
    return stats.trim_mean(np.stack(models), (case["f"] + 0.5) / len(models), axis=0)


def krum(models: Arrays, _extra: Arrays, case: dict) -> np.ndarray:
    """Average the models nearest to their neighbours."""
    points = np.stack([x.reshape(-1) for x in models])
    apart = np.sort(spatial.distance.cdist(points, points, "sqeuclidean"), axis=1)
    near = len(models) - case["f"] - 2
    best = np.argsort(apart[:, 1 : near + 1].sum(axis=1))[: case["m"] or near]
    return np.mean([models[i] for i in best], axis=0)


METHODS: dict[str, Callable[[Arrays, Arrays, dict], np.ndarray]] = {
    "solve_sylvester = dual_projection": dual_projection,
    "solve = regmean": regmean,
    "svd = adarank": adarank,
    "svd = svd_truncated_ta": truncated,
    "svd = star": star,
    "geometric_slerp = slerp": slerp,
    "minimize = geometric_median": geometric_median,
    "quantile = coordinate_median": median,
    "trim_mean = trimmed_mean": trimmed,
    "cdist = krum": krum,
    "cdist = multi_krum": krum,
}


def main() -> None:
    """Answer the cases in argv[1] into argv[2]."""
    request = np.load(sys.argv[1])
    outputs = {}
    for case in json.loads(str(request["cases"])):
        name, dtype = case["id"], DTYPES[case["dtype"]]
        models = [request[f"{name}/{i}"].astype(dtype) for i in range(case["k"])]
        extra = [request[f"{name}/e{i}"].astype(dtype) for i in range(case["extra"])]
        outputs[name] = np.asarray(METHODS[case["method"]](models, extra, case), np.float64)
    np.savez(sys.argv[2], **outputs)


if __name__ == "__main__":
    main()
