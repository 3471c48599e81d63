"""Published sampling conventions: where the authors of a paper put the steps of n, to the last digit.

    heun:convention=edm                     18 steps are 35 evaluations, and end at 0
    ipndm:convention=diff_sampler_polynomial,afs=true
    ddim:convention=trailing,zero_snr=true

A grid (students/diffusion/grids.py) is a rule for the times of the teacher's own schedule. A convention is a list of
noise levels sigma / alpha, the sigma of EDM, which is the same for every teacher (`levels.py`); with it come the scale
of the first state, and whether Heun's correction is made in the last step. Importing this module imports no torch.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Convention:
    """One line of CONVENTIONS; the function of that name in `levels.py` has the list.

    least: the smallest step count that the authors' formula is defined for. to_zero: whether the last level is 0.
    unit: whether the first state is noise of unit variance in variance-preserving coordinates, as of authors who sample
    there; otherwise it is sigma times noise in variance-exploding ones. The two differ by sqrt(1 + 1 / sigma^2).
    corrects_last: whether second-order solvers take their last step as all others (diff-sampler's Heun and DPM-2).
    """

    summary: str
    source: str
    least: int = 1
    to_zero: bool = False
    unit: bool = False
    corrects_last: bool = False


_DIFF = "diff-sampler/diff-solvers-main/solver_utils.py"
_DPM = "[2206.00927]; dpm-solver/dpm_solver_pytorch.py and README.md"
_DDIM = "[2010.02502] App. D.2; ddim/runners/diffusion.py"
_LIN = "[2305.08891] Table 2"

CONVENTIONS = {
    "edm": Convention(
        "n levels, even in sigma^(1/rho), 80 to 0.002, and 0", "[2206.00364] Eq. 5; edm/generate.py", 2, to_zero=True
    ),
    "diff_sampler_polynomial": Convention("even in sigma^(1/rho), 80 to 0.002", _DIFF, corrects_last=True),
    "diff_sampler_logsnr": Convention("even in log sigma, 80 to 0.002", _DIFF, corrects_last=True),
    "diff_sampler_time_uniform": Convention("even in t^(1/rho) of a VP process", _DIFF, corrects_last=True),
    "diff_sampler_discrete": Convention("even in the discrete time of LDM", _DIFF, corrects_last=True),
    "dpm_solver_logsnr": Convention("even in log-SNR, VP, t from 1 to 1e-3 or 1e-4", _DPM, unit=True),
    "dpm_solver_time_uniform": Convention("even in t, VP, t from 1 to 1e-3 or 1e-4", _DPM, unit=True),
    "dpm_solver_time_quadratic": Convention("even in sqrt(t), VP, t from 1 to 1e-3 or 1e-4", _DPM, unit=True),
    "ddim_linear": Convention("every k-th of DDPM's 1000 steps, and 0", _DDIM, 2, to_zero=True, unit=True),
    "ddim_quadratic": Convention("squares up to step 800 of 1000, and 0", _DDIM, 2, to_zero=True, unit=True),
    "leading": Convention("steps k (n - 1) ... k, 0 of 1000, and 0", _LIN, 2, to_zero=True, unit=True),
    "trailing": Convention("steps 999, 999 - k ... of 1000, and 0", _LIN, to_zero=True, unit=True),
    "linspace": Convention("steps 999 ... 0 of 1000, and 0", _LIN, 2, to_zero=True, unit=True),
    "cm": Convention("points of EDM's 40 levels", "consistency_models/scripts/launch.sh, cm/karras_diffusion.py"),
}
