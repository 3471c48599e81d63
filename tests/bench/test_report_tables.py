"""Tables: statistics over seed blocks, and what a reader sees of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SOLVERS = [
    "ddim",
    "ddpm",
    "euler",
    "heun",
    "dpm2",
    "edm_stochastic",
    "dpm_solver_2",
    "dpm_solver_3",
    "dpm_solver_fast",
    "dpm_solver_pp",
    "dpm_solver_pp_3m",
    "dpm_solver_pp_2s",
    "dpm_solver_pp_sde",
    "unipc",
    "unipc_bh1",
    "deis",
    "pndm",
    "ipndm",
    "ipndm_v",
    "euler_maruyama",
    "predictor_corrector",
    "adaptive_sde",
    "rk45",
    "diffusers:DDIMScheduler",
    "diffusers:UniPCMultistepScheduler",
]
BETTER = {
    "fd_digits_cnn": "lower", "kid_digits_cnn": "lower", "precision_digits_cnn": "higher",
    "recall_digits_cnn": "higher", "memorised": "lower",
}  # fmt: skip
TWO_EVALUATIONS = {"heun", "dpm2", "edm_stochastic", "predictor_corrector", "dpm_solver_pp_2s"}


def make_cells(folder: Path, blocks=3, samples=899, vectors=False) -> pd.DataFrame:
    """Made-up cells of 25 solvers that look like a real sweep, with stored samples under `folder`."""
    rng = np.random.default_rng(0)
    rows = []

    def add(student, steps, block, value, status="ok", reason="", nfe=None):
        path = folder / f"{student}-{steps}-{block}".replace(":", "_")
        row = {
            "task": "digits", "student": student, "family": "real" if student == "real" else "solver", "steps": steps,
            "guidance": 1.0, "dtype": "float32", "seed_block": block, "samples": samples, "status": status,
            "reason": reason, "device": "cpu x2", "cell": path.name, "path": str(path), "setup_nfe": 0.0,
        }  # fmt: skip
        if status == "ok":
            row |= {
                "nfe": float(nfe), "fd_digits_cnn": value, "kid_digits_cnn": value / 900,
                "precision_digits_cnn": 0.97 - value / 400, "recall_digits_cnn": 0.95 - value / 300, "memorised": 0.0,
                "latency_ms": 0.4 + 1.1 * nfe * (1 + 0.1 * rng.random()), "latency_p90_ms": 0.6 + 1.3 * nfe,
                "throughput_batch": 256, "throughput_ms": 0.3 * nfe, "throughput_p90_ms": 0.33 * nfe,
                "network_ms": 1.0 * nfe, "peak_memory_mb": 412.5,
            }  # fmt: skip
            if block == 0:
                path.mkdir(parents=True)
                np.savez(path / "samples.npz", samples=_samples(rng, value, vectors))
        rows.append(row)

    add("real", 0, 0, 5.21, nfe=0)
    for i, student in enumerate(SOLVERS):
        order = 1 + 1.4 * ((i * 7) % 25) / 25
        for steps in (1, 2, 4, 8, 16):
            double = student in TWO_EVALUATIONS
            nfe = 2 * steps - 1 if double else steps * (1.07 if student == "adaptive_sde" and steps > 1 else 1)
            base = 4.1 + 158 * np.exp(-((nfe - 1) ** 0.8) * 0.3 * order) + 0.1 * (i % 7)
            for block in range(blocks):
                if student == "heun" and steps == 1:
                    add(student, steps, block, None, "unsupported", "heun cannot run in 1 steps; it supports 2 and up")
                elif student == "pndm" and steps < 4:
                    add(student, steps, block, None, "unsupported", "pndm needs 4 steps or more")
                elif student == "rk45" and steps == 16 and block == blocks - 1:
                    add(student, steps, block, None, "failed", "rk45 made images that are not finite")
                else:
                    value = base if steps == 1 else base * (1 + 0.04 * rng.standard_normal())
                    add(student, steps, block, value, nfe=nfe)
    return pd.DataFrame(rows)


def _samples(rng, value, vectors) -> np.ndarray:
    if vectors:
        angle = rng.integers(0, 8, 400) * np.pi / 4
        return np.stack([np.cos(angle), np.sin(angle)], 1) + (0.08 + value / 400) * rng.standard_normal((400, 2))
    y, x = np.mgrid[:8, :8]
    ring = np.exp(-((np.hypot(y - 3.5, x - 3.5) - np.arange(16)[:, None, None] / 5) ** 2))
    return (255 * np.clip(ring + value / 300 * rng.standard_normal(ring.shape), 0, 1)).astype(np.uint8)[:, None]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return make_cells(tmp_path_factory.mktemp("run"))
