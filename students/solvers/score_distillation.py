"""Score distillation of the image itself: no trajectory, but gradient descent on one image per seed.

What is optimised is the clean image x, which starts as noise. Every step is an update, which evaluates the teacher
once, at a level drawn for each image alone, and follows its score. So what is found is a mode, where the noised image
is likely, and no sample of the distribution.

Levels are drawn evenly between two shares of the process; the larger one falls to the smaller with the updates,
because at the levels of all the process the likeliest image is a mean of many. ProlificDreamer [2305.16213] lowers it
too, once, to a half. DreamFusion keeps to them, with strong guidance. The grid says what is even: in t, if it is
uniform.
"""

from typing import Annotated

import torch
from torch import Tensor

from students.diffusion.denoiser import expand
from students.options import Range

LEAST, MOST = 0.02, 0.98  # shares of the process between which DreamFusion draws t
NEGLIGIBLE = 0.2  # below which NFSD takes the noise in a prediction to be small beside the rest


def sds(denoise, x: Tensor, times: Tensor, *, noise=None, callback=None,
        rate: Annotated[float, Range(0, 2, open=True)] = 1.0) -> Tensor:  # fmt: skip
    """DreamFusion's score distillation sampling (Poole et al. 2022 [2209.14988]), on images.

    x <- x - rate w(t) (eps_hat(x_t) - eps),    x_t = alpha x + sigma eps,    w(t) = sigma^2,

    the teacher's Jacobian left out, t from 0.02 to 0.98 of the process, alpha and sigma of a variance-preserving one.
    One evaluation an update.
    """

    def gradient(x, x0, eps, alpha, sigma):
        return alpha * sigma * (x - x0)  # sigma^2 (eps_hat - eps), as eps_hat = (x_t - alpha x0) / sigma

    return _descend(denoise, x, times, noise, callback, rate, gradient, MOST)


def nfsd(denoise, x: Tensor, times: Tensor, *, noise=None, callback=None,
         rate: Annotated[float, Range(0, 2, open=True)] = 1.0) -> Tensor:  # fmt: skip
    """Noise-free score distillation (Katzir et al. 2023 [2310.17590], Eq. 6), on images.

    x <- x - rate w(t) eps_hat(x_t),    w(t) = sigma^2,

    without the added noise, which is in the gradient of SDS only to cancel what the prediction holds of it. At
    t < 0.2 T that is little, and all of the prediction is followed. Above, the paper follows the difference of two
    predictions, with no prompt and with a negative one; teachers here know no negative prompts, so levels are drawn
    from 0.02 T to 0.2 T. One evaluation an update.
    """

    def gradient(x, x0, eps, alpha, sigma):
        return sigma * (alpha * (x - x0) + sigma * eps)

    return _descend(denoise, x, times, noise, callback, rate, gradient, NEGLIGIBLE)


def _descend(denoise, x: Tensor, times: Tensor, noise, callback, rate: float, gradient, most: float) -> Tensor:
    """Gradient descent on images, which start as the noise of x. most: the largest level, as a share of the process."""
    schedule, n = denoise.schedule, len(times) - 1
    x = x / torch.hypot(schedule.alpha(times[0]), schedule.sigma(times[0])).to(x)
    for i, time in enumerate(times[1:]):
        u = torch.special.ndtr(noise().flatten(1)[:, 0].double())
        t = _between(times.to(u), 1 - LEAST - (most - LEAST) * (1 - i / n) * u)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        eps = noise()
        x0 = denoise(expand(alpha, x) * x + expand(sigma, x) * eps, t)
        norm = torch.hypot(alpha, sigma)
        step = gradient(x, x0, eps, expand(alpha / norm, x), expand(sigma / norm, x))
        x = x - rate * step
        if callback:
            callback(i, time, x, x0)
    return x


def _between(times: Tensor, share: Tensor) -> Tensor:
    """The times, (N,), at shares of the way along a grid, linear between its points."""
    position = share * (len(times) - 1)
    left = position.long().clamp(max=len(times) - 2)
    return torch.lerp(times[left], times[left + 1], position - left)
