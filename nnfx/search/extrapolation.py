"""Extrapolation of learning curves: the probability, given its first epochs, that a run gets below a given loss."""

import numpy as np

EXPONENTS = np.geomspace(0.05, 3.0, 24)
"""The exponents of the mixed power laws, from nearly logarithmic curves to curves that flatten in a few epochs."""


def chance_below(losses: np.ndarray, epochs: int, target: float) -> np.ndarray:
    """Return the probability that each learning curve gets below a target loss in its remaining epochs.

    A curve is modelled as a power law with normal noise, `y(t) = a + b t⁻ᶜ + ε`. For each exponent c on a grid, the
    prior is flat in a, b and log σ, so that y(t) of a later epoch follows Student's t-distribution with n − 2 degrees
    of freedom around the least-squares fit. The exponents are weighted by the marginal likelihood of the curve. After
    few epochs the tails are heavy, and few curves have a probability near 0. Epochs are combined as if independent, by
    `1 − ∏ (1 − pₜ)`, which overestimates the probability, since all epochs share the errors of the fit.

    Args:
        losses: `(points, n)`, the held-out loss of each of the first n epochs, n ≥ 3.
        epochs: the number of epochs of a run, more than n.
        target: the target loss.

    Returns:
        `(points,)`: the probability that y(t) < target for an epoch t from n + 1 to `epochs`; 0 for curves with values
        that are not finite.

    Raises:
        ValueError: for fewer than 3 epochs, or no remaining epochs.

    Example:
        >>> t = np.arange(1.0, 11)
        >>> chance_below(np.stack([1 / t, 0.5 + 1 / t]), 20, target=0.06).round(2).tolist()
        [0.99, 0.0]

    References:
        Domhan, Springenberg and Hutter, *Speeding up automatic hyperparameter optimization of deep neural networks by
        extrapolation of learning curves*, IJCAI 2015, for the idea; Gelman et al., *Bayesian data analysis*, section
        14.2, for the distribution.
    """
    from scipy.special import logsumexp, stdtr

    count = losses.shape[-1]
    if not 3 <= count < epochs:
        raise ValueError(f"losses: expected 3 to {epochs - 1} epochs, got {count}")
    is_finite = np.isfinite(losses).all(-1)
    curves = np.where(is_finite[:, None], losses, 0.0).astype(np.float64)
    degrees = count - 2
    seen, ahead = np.arange(1.0, count + 1), np.arange(count + 1.0, epochs + 1)
    # losses are rounded to float32, so the noise is at least the rounding error
    rounding = count * (1e-7 * np.abs(curves).max(-1)) ** 2 + np.finfo(np.float64).tiny
    evidence, chances = [], []
    for exponent in EXPONENTS:
        known, later = (np.stack([np.ones_like(t), t**-exponent], axis=-1) for t in (seen, ahead))
        inverse = np.linalg.inv(known.T @ known)
        fitted = curves @ known @ inverse
        squares = ((curves - fitted @ known.T) ** 2).sum(-1) + rounding
        variance = squares[:, None] / degrees * (1 + ((later @ inverse) * later).sum(-1))
        below = stdtr(degrees, (target - fitted @ later.T) / np.sqrt(variance))
        chances.append(1 - np.prod(1 - below, axis=-1))
        evidence.append((np.linalg.slogdet(inverse)[1] - degrees * np.log(squares)) / 2)
    shares = np.exp(np.array(evidence) - logsumexp(evidence, axis=0))
    return np.where(is_finite, (shares * np.array(chances)).sum(0), 0.0)
