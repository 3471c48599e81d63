"""Times the Fréchet distance against the general matrix square root of scipy, and compares the two.

python -m tests.speed.frechet [--dims 2048]
"""

import argparse
import time

import numpy as np
from scipy.linalg import sqrtm

from bench.measure.frechet import frechet_distance


def covariance(eigenvalues: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A covariance with the given eigenvalues along random axes."""
    axes = np.linalg.qr(rng.standard_normal((len(eigenvalues),) * 2))[0]
    matrix = axes * eigenvalues @ axes.T
    return (matrix + matrix.T) / 2


def by_sqrtm(mean1, cov1, mean2, cov2) -> float:
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * sqrtm(cov1 @ cov2).real))


def timed(distance, *moments) -> tuple[float, float]:
    start = time.perf_counter()
    value = distance(*moments)
    return value, time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, default=2048)
    dims = parser.parse_args().dims
    rng = np.random.default_rng(0)
    spectra = {
        "flat spectrum": lambda: rng.uniform(0.5, 2, dims),
        "power-law spectrum": lambda: np.arange(1, dims + 1) ** -1.5,
    }
    for name, spectrum in spectra.items():
        moments = [m for _ in range(2) for m in (rng.standard_normal(dims) / dims, covariance(spectrum(), rng))]
        (ours, fast), (theirs, slow) = timed(frechet_distance, *moments), timed(by_sqrtm, *moments)
        print(
            f"{name}, {dims} dims: {fast:.2f} s, sqrtm {slow:.2f} s, {slow / fast:.1f} times faster, "
            f"relative difference {abs(ours / theirs - 1):.1e}"
        )
