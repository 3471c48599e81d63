"""The reverse SDE of score-based models (Song et al. 2021 [2011.13456]).

The forward process dx = f x dt + g dw passes from t to s > t by x_s = a x_t + b n with

    a = alpha_s / alpha_t,    b^2 = sigma_s^2 - a^2 sigma_t^2,

so over one step f dt is a - 1 and g^2 dt is b^2, whatever the schedule and without its derivatives. With these
the reverse SDE, dx = (f x - g^2 score) dt + g dw, becomes the paper's reverse diffusion (App. E),

    x_t = (2 - a) x_s + b^2 score(x_s, s) + b n,    score = (alpha_s D - x_s) / sigma_s^2,

for VP and VE the predictors of Alg. 3 and 2. All coefficients are finite where alpha_s = 0.
"""

from typing import Annotated

from torch import Tensor

from students.errors import FewstepError
from students.options import Range
from students.solvers.ancestral import posterior_mean


def _predictor_step(schedule, x: Tensor, x0: Tensor, s, t, noise) -> Tensor:
    a = schedule.alpha(s) / schedule.alpha(t)
    b2 = schedule.sigma(s) ** 2 - (a * schedule.sigma(t)) ** 2
    gain = b2 / schedule.sigma(s) ** 2
    return (2 - a - gain) * x + gain * schedule.alpha(s) * x0 + b2.sqrt() * noise()


def _langevin_step(schedule, x: Tensor, x0: Tensor, s, noise, snr: float) -> Tensor:
    step = 2 * snr**2  # in units of sigma^2
    return (1 - step) * x + step * schedule.alpha(s) * x0 + (2 * step) ** 0.5 * schedule.sigma(s) * noise()


def euler_maruyama(denoise, x: Tensor, times: Tensor, *, noise, callback=None) -> Tensor:
    """Euler-Maruyama on the reverse SDE (Song et al. 2021 [2011.13456], Eq. 6) as this module writes it.

    One evaluation a step. The last step is noise-free, to the posterior mean E[x_t | x_s, x_0 = D], which is
    alpha_t D where sigma_t = 0.
    """
    return predictor_corrector(denoise, x, times, noise=noise, callback=callback, corrector_steps=0)


def predictor_corrector(
    denoise,
    x: Tensor,
    times: Tensor,
    *,
    noise,
    callback=None,
    snr: Annotated[float, Range(0)] = 0.16,
    corrector_steps: Annotated[int, Range(0)] = 1,
) -> Tensor:
    """Predictor-corrector sampling (Song et al. 2021 [2011.13456], Alg. 1); NFE n (1 + corrector_steps).

    At each time but the last, `corrector_steps` of Langevin dynamics at that time (Alg. 4),

        x <- x + h score + sqrt(2 h) n,    h = 2 (snr |n| / |score|)^2,

    then a step of `euler_maruyama`, whose last one is noise-free. The last time is not corrected.

    The paper takes both norms as means over the batch, which would make an image depend on its neighbours. They
    are replaced by sqrt(D) and sqrt(D) / sigma, their sizes for noise of D dimensions, so h = 2 (snr sigma)^2.
    (Norms of the single sample would not do: a step size that depends on x changes the stationary distribution.)
    Raises FewstepError for a negative snr or number of corrector steps.
    """
    if snr < 0 or corrector_steps < 0:
        raise FewstepError(f"snr and corrector_steps cannot be negative, got {snr} and {corrector_steps}")
    schedule = denoise.schedule
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        for _ in range(corrector_steps):
            x = _langevin_step(schedule, x, denoise(x, s), s, noise, snr)
        x0 = denoise(x, s)
        if i < len(times) - 2:
            x = _predictor_step(schedule, x, x0, s, t, noise)
        else:
            x = posterior_mean(schedule, x, x0, s, t)
        if callback:
            callback(i, t, x, x0)
    return x
