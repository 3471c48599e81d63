"""Solvers: pure functions `solver(denoise, x, times, *, noise=None, callback=None, **options) -> x`.

`denoise(x, t) -> x0` carries a `.schedule`; `times` is a decreasing 1-d float64 tensor on the CPU whose
last entry is the data end; `noise()` returns the next standard normal draw in the shape of x, and only
stochastic solvers call it. A solver owns no network, no grid and no seed. Its options are described by its signature,
their ranges and choices by `Annotated` (students/options.py).

`callback(index, time, x, x0)` is called after each step and changes nothing. index: 0, 1, 2, ... time: 0-d, where the
new state lies, `times[index + 1]`. x: the new state, from which the next step starts; the last one is what the solver
returns. x0: the estimate of the clean image that the network gave last within the step. Where that needs more words:

- A corrector changes the state with the evaluation that opens the next step (`unipc`): x is the corrected state, and
  the call comes after that evaluation, whose estimate is x0. `predictor_corrector` corrects before it steps.
- `dpm_solver_fast` takes steps over several entries of `times` and is heard only at those it reaches.
- The adaptive solvers advance each sample at its own pace and are heard once, at the end, with index 0.
"""
