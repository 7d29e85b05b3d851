"""How different clients really are, when each one's score is known with an error.

Clients that are all alike have different scores, for each is taken on few rows. The Q-profile
interval of the variance between studies (Viechtbauer 2007, Statistics in Medicine 26, 37-52) takes
this noise off: it holds the variances tau^2 under which

    Q(tau^2) = sum w_k (x_k - mean_w x)^2,   w_k = 1 / (e_k^2 + tau^2)

is an ordinary value of chi^2 with n - 1 degrees of freedom.
"""

from __future__ import annotations

import math

import numpy as np

from fedbench.metrics.metric import Array


def spread_interval(
    values: Array,
    errors: Array,
    confidence: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float, float] | None:
    """Ends for the standard deviation of the true scores of clients.

    Wide enough for the observed one, which has the noise in it, and never narrower than the
    clients' own errors: equal scores do not prove equal clients.

    Args:
        values: (n,) scores.
        errors: (n,) their standard errors, all above 0.
        confidence: coverage, as a share.
        bounds: the range of a score. Of two or three clients chi^2 says next to nothing, and its
            upper end lies beyond what scores in that range can have.

    Returns:
        None for fewer than two clients.
    """
    from scipy.special import chdtri

    if len(values) < 2:
        return None
    tail = (1 - confidence) / 2
    usual = [float(chdtri(len(values) - 1, share)) for share in (tail, 1 - tail)]
    low, high = (math.sqrt(_variance_at(q, values, errors)) for q in usual)
    observed = float(values.std(ddof=1))
    noise = math.sqrt(float(np.mean(errors**2)))
    most = _largest_spread(len(values), bounds[1] - bounds[0])
    return min(low, observed), min(max(high, observed, noise), most)


def jain_of_spread(mean: float, spread: float, num_clients: int) -> float:
    """Jain's index of n scores with that mean and standard deviation."""
    squares = mean**2 + spread**2 * (num_clients - 1) / num_clients
    return mean**2 / squares if squares else math.nan


def _largest_spread(num: int, width: float) -> float:
    """The standard deviation of so many numbers, half of them at each end of a range."""
    return width * math.sqrt((num // 2) * (num - num // 2) / (num * (num - 1)))


def _variance_at(wanted: float, values: Array, errors: Array) -> float:
    """The tau^2 at which Q, which falls in it, has the wanted value; 0 where it starts below."""
    from scipy.optimize import brentq

    def excess(variance: float) -> float:
        weights = 1 / (errors**2 + variance)
        centre = np.average(values, weights=weights)
        return float((weights * (values - centre) ** 2).sum()) - wanted

    if excess(0.0) <= 0:
        return 0.0
    # At this variance each term is at most what all of them may be together.
    top = float(((values - values.mean()) ** 2).sum()) / wanted
    return float(brentq(excess, 0.0, top))
