"""Solvers: pure functions `solver(denoise, x, times, *, noise=None, **options) -> x`.

`denoise(x, t) -> x0` carries a `.schedule`; `times` is a decreasing 1-d float64 tensor on the CPU whose
last entry is the data end; `noise()` returns the next standard normal draw in the shape of x, and only
stochastic solvers call it. A solver owns no network, no grid and no seed.
"""
