"""PNDM: pseudo numerical methods (Liu et al. 2022 [2202.09778]) and their relatives.

A pseudo numerical method combines slopes as a classical one does and crosses the step with DDIM
([2202.09778], Eq. 11), here for every schedule: z_t = z_s + (u_t - u_s) sum_j w_j d_j in straight coordinates.
The classical coefficients take the steps to be equal. In u they are not, on most grids: there `ndm` and `ipndm`
are of second order, and `ipndm_v`, whose coefficients know the steps, of fourth.
"""

import torch
from torch import Tensor

from students.errors import FewstepError, UnsupportedSteps
from students.solvers.deis import lagrange_basis, multistep
from students.solvers.euler import slope, slope_step

# Adams-Bashforth on equal steps, the newest slope first
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
