"""Multistep consistency sampling: what consistency models and one-step generators are sampled by."""

from torch import Tensor


def consistency(denoise, x: Tensor, times: Tensor, *, noise=None, callback=None, clip: bool = False) -> Tensor:
    """Jump to the data and noise again (Consistency Models [2303.01469], Alg. 1). NFE n, stochastic for n > 1.

    x0 = D(x_s, s),    x_t = alpha_t x0 + sqrt(sigma_t^2 - alpha_t^2 u^2) n,    u = sigma_T / alpha_T

    at every time t but the last, T, where x0 is returned as it is. u is the noise that a consistency function leaves
    in its output, 0 where the data end is clean; for a VE schedule this is the paper's sqrt(tau^2 - eps^2).
    clip: limit x0 to [-1, 1], as OpenAI's models are sampled.

    For D that carries any state to the data end of its own trajectory. On the mean E[x_0 | x_t], which a teacher gives,
    it runs but does not converge to the data: many steps leave half of a Gaussian's variance. So it is no solver of
    students/spec.py.
    """
    schedule = denoise.schedule
    end = times[-1]
    u = schedule.sigma(end) / schedule.alpha(end)
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        x0 = denoise(x, s)
        if clip:
            x0 = x0.clamp(-1, 1)
        if t > end:
            alpha = schedule.alpha(t)
            x = alpha * x0 + (schedule.sigma(t) ** 2 - (alpha * u) ** 2).sqrt() * noise()
        else:
            x = x0
        if callback:
            callback(i, t, x, x0)
    return x
