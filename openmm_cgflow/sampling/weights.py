"""What importance weights say about themselves."""

import math

import torch
from torch import Tensor

__all__ = [
    "clip_log_weights",
    "effective_sample_size",
    "khat_limit",
    "log_mean_exp",
    "pareto_k",
    "soften_log_weights",
    "trust",
    "trustworthy",
]

_SOFTEST = 66  # powers of 0.9: a thousandth


def log_mean_exp(log_weights: Tensor) -> tuple[float, float]:
    """`log mean exp` of log-weights `(n,)` and its standard error, by the delta method.

    Returns:
        the logarithm and its error; the error is infinite when every weight is zero.
    """
    n = log_weights.numel()
    value = torch.logsumexp(log_weights, 0).item() - math.log(n)
    if not math.isfinite(value):
        return value, math.inf
    relative = torch.exp(log_weights.double() - value)
    return value, (relative.std().item() / math.sqrt(n)) if n > 1 else math.inf


def effective_sample_size(log_weights: Tensor) -> float:
    """Kish's effective sample size over n, in (0, 1], of log-weights `(n,)`; 0 when every weight is zero.

    Example:
        >>> round(effective_sample_size(torch.log(torch.tensor([1.0, 1.0, 1.0, 0.0]))), 6)
        0.75
    """
    return _effective(log_weights).item()


def _effective(log_weights: Tensor) -> Tensor:
    log_weights = log_weights.double()
    top = 2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0)
    return (torch.exp(top) / log_weights.numel()).nan_to_num(0.0, 0.0)


def clip_log_weights(log_weights: Tensor, fraction: float = 1e-4) -> Tensor:
    """Log-weights with the largest `fraction` of them (at least one) lowered to the largest of the rest.

    Example:
        >>> clip_log_weights(torch.tensor([0.0, 5.0, 1.0]))
        tensor([0., 1., 1.])
    """
    n_clipped = min(max(1, math.ceil(fraction * log_weights.numel())), log_weights.numel() - 1)
    ceiling = torch.topk(log_weights, n_clipped + 1).values[-1]
    return torch.minimum(log_weights, ceiling)


def soften_log_weights(log_weights: Tensor, least: float, clipped: float) -> tuple[Tensor, Tensor]:
    """Log-weights times the largest power of 0.9, at most 1, that leaves a share of them effective.

    Arguments:
        log_weights: `(n,)`.
        least: the share, in (0, 1].
        clipped: share of the largest weights that is levelled first.

    Returns:
        the log-weights `(n,)` and the power `()`.
    """
    levelled = clip_log_weights(log_weights, clipped)
    # the more they are softened, the more of them are effective: the first power that is enough is found by halving
    times, step = levelled.new_zeros(()), 2 ** (_SOFTEST - 1).bit_length()
    while step := step // 2:
        less = times + step - 1
        times = torch.where(_effective(0.9**less * levelled) < least, less + 1, times)
    power = 0.9 ** times.clamp(max=_SOFTEST)
    return power * levelled, power


def pareto_k(log_weights: Tensor) -> float:
    """Shape of the generalised Pareto distribution of the largest weights (Vehtari et al., arXiv 1507.02646).

    Below 0.5 the weights have a finite variance; what it says about estimates, `trust` says. The tail are the largest
    `min(n / 5, 3 sqrt(n))` weights; the fit is that of Zhang and Stephens (2009), with the paper's weak prior.

    Returns:
        k-hat; NaN for fewer than 25 finite weights.
    """
    finite = log_weights[torch.isfinite(log_weights)].double()
    n = log_weights.numel()
    n_tail = math.ceil(min(0.2 * n, 3 * math.sqrt(n)))
    if finite.numel() < max(25, n_tail + 1):
        return math.nan
    ordered = torch.sort(finite).values
    ordered = ordered - ordered[-1]
    excess = torch.exp(ordered[-n_tail:]) - torch.exp(ordered[-n_tail - 1])
    return _generalised_pareto_shape(excess.clamp(min=1e-300))


def _generalised_pareto_shape(excess: Tensor) -> float:
    """Empirical-Bayes estimate of the shape from ordered excesses `(n,)`, smallest first."""
    n = excess.numel()
    n_grid = 30 + int(math.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    grid = torch.arange(1, n_grid + 1, dtype=excess.dtype)
    theta = 1 / excess[-1] + (1 - torch.sqrt(n_grid / (grid - 0.5))) / (3 * quartile)
    shape = torch.log1p(-theta[:, None] * excess).mean(1)
    profile = n * (torch.log(-theta / shape) - shape - 1)
    weights = torch.softmax(profile, 0)
    best = (weights * theta).sum()
    k = torch.log1p(-best * excess).mean().item()
    return (n * k + 10 * 0.5) / (n + 10)


def khat_limit(n: int) -> float:
    """The k-hat from which weights of `n` samples are not to be trusted: `min(1 - 1 / log10(n), 0.7)`.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry, arXiv 1507.02646.

    Example:
        >>> khat_limit(100), khat_limit(10_000)
        (0.5, 0.7)
    """
    return min(1 - 1 / math.log10(n), 0.7) if n > 10 else 0.0


def trustworthy(khat: float, n: int) -> bool:
    """Whether weights of `n` samples can be trusted: k-hat is known, and below `khat_limit`."""
    return bool(khat < khat_limit(n))


def trust(khat: float, n: int, covered: bool | None = True) -> str:
    """What the Pareto k-hat of the weights means, in plain words: the one rule for whether they can be trusted.

    Arguments:
        khat: shape of the weights' tail; NaN if it could not be fitted.
        n: number of samples that it was fitted to.
        covered: whether an audit found that the flow reaches every form; None without one.

    Returns:
        One sentence without a full stop.

    Example:
        >>> trust(0.2, 10_000)
        'the weights can be trusted'
    """
    if not math.isfinite(khat):
        return "too few samples to judge the weights: draw more"
    if not trustworthy(khat, n):
        return "the weights are not to be trusted: a few samples dominate; train longer"
    within = {True: "", None: ", among the forms that the flow reaches", False: ", but some forms are missing"}
    if khat < 0.5:
        return f"the weights can be trusted{within[covered]}"
    return f"the weights are usable{within[covered]}, and averages converge slowly: draw more samples or train longer"
