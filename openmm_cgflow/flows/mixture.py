"""The multimodal density of soft variables: an autoregressive mixture of (wrapped) normal distributions.

Every conditional distribution function is analytic and smooth to all orders, so that the negative log-density is a
free energy whose gradient may be used as a force, and samples have gradients: those at a fixed value of it.
"""

import math

import torch
from torch import Tensor, nn

from openmm_cgflow.flows.by_hand import Gradients, differentiable
from openmm_cgflow.flows.networks import MLP, fourier_features
from openmm_cgflow.flows.side_by_side import gradients_side_by_side, outputs_side_by_side, push_side_by_side

__all__ = ["MixtureDensity"]

# The images of a wrapped normal that are summed. With scales below MAX_CIRCULAR_SCALE, what is left out is < 1e-16.
_DENSITY_IMAGES = (-1, 0, 1)
_CDF_IMAGES = (-2, -1, 0, 1, 2)
MAX_CIRCULAR_SCALE = 1.0
_SQRT_2 = math.sqrt(2.0)
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class MixtureDensity(nn.Module):
    """`q(y | context) = prod_k q(y_k | y_<k, context)`, a mixture of normals, wrapped for angles.

    Circular variables come first, in radians of their own period, in [-pi, pi); one uniform component keeps their
    density positive everywhere. The others live on the real line at about unit scale.

    Arguments:
        n_circular: number of circular variables.
        n_linear: number of variables on the real line.
        n_context: width of the context.
        components: number of mixture components of each factor.
        hidden: width of the conditioning networks.
        harmonics: Fourier pairs by which a circular variable is shown to later factors.
        min_scale: smallest standard deviation of a component.
    """

    def __init__(
        self,
        n_circular: int,
        n_linear: int = 0,
        n_context: int = 0,
        components: int = 16,
        hidden: int = 64,
        harmonics: int = 4,
        min_scale: float = 0.03,
    ) -> None:
        super().__init__()
        self.n_circular, self.n = n_circular, n_circular + n_linear
        self.components, self.harmonics, self.min_scale = components, harmonics, min_scale
        self.conditioners = nn.ModuleList()
        for k in range(self.n):
            before = 2 * harmonics * min(k, n_circular) + max(0, k - n_circular)
            self.conditioners.append(MLP(before + n_context, 3 * components + 1, hidden, bias=self._start(k)))

    def _start(self, k: int) -> Tensor:
        """Parameters of a nearly uniform factor: logits (the last one of the uniform component), means, raw scales."""
        half = math.pi if k < self.n_circular else 2.0
        step = 2 * half / self.components
        means = -half + step * (torch.arange(self.components) + 0.5)
        scale = min(max(1.2 * step, 0.3), 0.9)
        raw = self._raw_scale(torch.tensor(scale), k).expand(self.components)
        return torch.cat([torch.zeros(self.components), means, raw, torch.tensor([-4.0])])

    def _raw_scale(self, scale: Tensor, k: int) -> Tensor:
        if k < self.n_circular:
            return torch.logit((scale - self.min_scale) / (MAX_CIRCULAR_SCALE - self.min_scale))
        return torch.log(scale - self.min_scale)

    def _parameters_of(self, k: int, before: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights `(batch, components + 1)`, means and scales `(batch, components)` of factor `k`."""
        features = fourier_features(before, min(k, self.n_circular), self.harmonics)
        raw = self.conditioners[k](torch.cat([features, context], dim=1))
        logits, means, scales, uniform = raw.split([self.components] * 3 + [1], dim=1)
        if k < self.n_circular:
            scales = self.min_scale + (MAX_CIRCULAR_SCALE - self.min_scale) * torch.sigmoid(scales)
            logits = torch.cat([logits, uniform.clamp(min=-12.0)], dim=1)
        else:
            scales = self.min_scale + torch.exp(scales.clamp(max=4.0))
            logits = torch.cat([logits, torch.full_like(uniform, -math.inf)], dim=1)
        return torch.log_softmax(logits, dim=1), means, scales

    def _log_prob_of(self, k: int, y: Tensor, parameters: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        log_weights, means, scales = parameters
        deviation = y.unsqueeze(1) - means
        if k >= self.n_circular:
            terms = log_weights[:, :-1] - 0.5 * (deviation / scales) ** 2 - torch.log(scales) - _LOG_SQRT_2PI
            return torch.logsumexp(terms, dim=1)
        nearest = torch.remainder(deviation + math.pi, 2 * math.pi) - math.pi
        images = torch.stack([nearest + 2 * math.pi * image for image in _DENSITY_IMAGES], dim=-1)
        exponents = -0.5 * (images / scales.unsqueeze(-1)) ** 2
        terms = log_weights[:, :-1] + torch.logsumexp(exponents, dim=-1) - torch.log(scales) - _LOG_SQRT_2PI
        uniform = log_weights[:, -1:] - math.log(2 * math.pi)
        return torch.logsumexp(torch.cat([terms, uniform], dim=1), dim=1)

    def _cdf_of(self, k: int, y: Tensor, parameters: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        log_weights, means, scales = parameters
        weights = torch.exp(log_weights)
        deviation = y.unsqueeze(1) - means
        if k >= self.n_circular:
            return (weights[:, :-1] * torch.special.ndtr(deviation / scales)).sum(1)
        total = weights[:, -1] * (y + math.pi) / (2 * math.pi)
        for image in _CDF_IMAGES:
            shift = 2 * math.pi * image
            upper = torch.special.ndtr((deviation + shift) / scales)
            lower = torch.special.ndtr((-math.pi - means + shift) / scales)
            total = total + (weights[:, :-1] * (upper - lower)).sum(1)
        return total

    def log_prob(self, y: Tensor, context: Tensor) -> Tensor:
        """Log-density `(batch,)` of `y (batch, n)` given `context (batch, n_context)`."""
        if self.n and not torch.is_grad_enabled():
            raw = outputs_side_by_side(self._networks(), self._inputs(y, context))
            return _learn(raw, y.T, self.n_circular, self.min_scale, learning=False)[0].sum(0)
        total = y[:, :0].sum(1)
        for k in range(self.n):
            total = total + self._log_prob_of(k, y[:, k], self._parameters_of(k, y[:, :k], context))
        return total

    def learned_log_prob(self, y: Tensor, context: Tensor) -> Tensor:
        """The same, differentiable by the parameters alone: all factors at once, with their gradient by hand."""
        if not (self.n and torch.is_grad_enabled()):
            return self.log_prob(y, context)
        networks = self._networks()
        with torch.no_grad():
            raw, tape = push_side_by_side(networks, self._inputs(y, context))
            log_prob, slopes = _learn(raw, y.T, self.n_circular, self.min_scale)

        def pull(cotangent: Tensor) -> tuple[list[Tensor], Gradients]:
            return [], gradients_side_by_side(networks, tape, slopes * cotangent)

        return differentiable(pull, (log_prob.sum(0),), (), list(self.parameters()))[0]

    def _networks(self) -> list[MLP]:
        return [network for network in self.conditioners if isinstance(network, MLP)]

    def _inputs(self, y: Tensor, context: Tensor) -> list[Tensor]:
        """What each network sees, `(n_in, batch)`."""
        n = self.harmonics * self.n_circular
        sine, cosine, linear = fourier_features(y, self.n_circular, self.harmonics).T.tensor_split([n, 2 * n])
        before = [(self.harmonics * min(k, self.n_circular), max(0, k - self.n_circular)) for k in range(self.n)]
        return [torch.cat([sine[:c], cosine[:c], linear[:m], context.T]) for c, m in before]

    def draw_noise(self, batch: int, generator: torch.Generator | None = None, like: Tensor | None = None) -> Tensor:
        """What `sample` makes `batch` samples of: `(batch, 2 n)`, uniform and normal halves."""
        dtype = torch.float32 if like is None else like.dtype
        uniform = torch.rand(batch, self.n, generator=generator, dtype=dtype)
        return torch.cat([uniform, torch.randn(batch, self.n, generator=generator, dtype=dtype)], dim=1)

    def sample(self, noise: Tensor, context: Tensor) -> Tensor:
        """Independent samples `(batch, n)`, one for each row of noise and `context (batch, n_context)`.

        A component is chosen by the uniform noise, and moved to by the normal one. With gradients enabled, samples have
        those of the bijection at a fixed latent (Figurnov, Mohamed and Mnih 2018, arXiv 1805.08498).
        """
        uniform, normal = noise[:, : self.n], noise[:, self.n :]
        y = noise[:, :0]
        for k in range(self.n):
            parameters = self._parameters_of(k, y, context)
            with torch.no_grad():
                value = self._draw(k, uniform[:, k : k + 1], normal[:, k : k + 1], parameters)
            if torch.is_grad_enabled():
                value = self._with_gradient(k, value, self._cdf_of(k, value, parameters).detach(), parameters)
            y = torch.cat([y, value.unsqueeze(1)], dim=1)
        return y

    def _draw(self, k: int, uniform: Tensor, normal: Tensor, parameters: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        log_weights, means, scales = parameters
        cumulative = torch.cumsum(log_weights.exp(), dim=1)
        chosen = (uniform * cumulative[:, -1:] >= cumulative[:, :-1]).sum(1, keepdim=True)
        component = chosen.clamp(max=self.components - 1)
        value = means.gather(1, component) + scales.gather(1, component) * normal
        if k < self.n_circular:
            value = torch.where(chosen == self.components, 2 * math.pi * torch.special.ndtr(normal), value)
            value = torch.remainder(value + math.pi, 2 * math.pi) - math.pi
        return value.squeeze(1)

    def _with_gradient(
        self, k: int, value: Tensor, latent: Tensor, parameters: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """`value`, where the distribution function is `latent`, with gradients by the implicit function theorem.

        One Newton step around the solution, which changes nothing of it.
        """
        with torch.no_grad():
            density = torch.exp(self._log_prob_of(k, value, parameters))
        return value - (self._cdf_of(k, value, parameters) - latent) / density

    def to_latent(self, y: Tensor, context: Tensor) -> Tensor:
        """The uniform latent `(batch, n)` in [0, 1] of `y`; its log-determinant is `log_prob(y, context)`."""
        columns = [self._cdf_of(k, y[:, k], self._parameters_of(k, y[:, :k], context)) for k in range(self.n)]
        return torch.stack(columns, dim=1) if columns else y


def _learn(raw: Tensor, y: Tensor, n_circular: int, min_scale: float, learning: bool = True) -> tuple[Tensor, Tensor]:
    """Log-densities of factors, and their gradient by what the networks gave.

    A component of weight `p`, mean `m` and scale `s` gives `t = log p - v^2 / 2 s^2 - log s` with `v = y - m`; in its
    share `r` of the density, `dt/dm = v / s^2` and `dt/ds = v^2 / s^3 - 1 / s`, and `log p` has the gradient `r - p`.
    Where it is wrapped, `v` is that of the nearest image, the two beside it have `exp(-(2 pi^2 +- 2 pi v) / s^2)` of
    its density, and the means of `v` and of `v^2` over the three stand above.

    Arguments:
        raw: logits, means, raw scales, and the logit of the uniform component, `(factors, 3 components + 1, batch)`.
        y: the variables, `(factors, batch)`, circular ones first.
        n_circular: how many of them are circular.
        min_scale: smallest scale.
        learning: whether the gradient is wanted.

    Returns:
        `(factors, batch)`, and the gradient shaped as `raw`, or something else if it is not wanted.
    """
    parts = zip((raw[:n_circular], raw[n_circular:]), (y[:n_circular], y[n_circular:]), (True, False), strict=True)
    found = [
        _learn_kind(part, values, circular, min_scale, learning) for part, values, circular in parts if len(values)
    ]
    log_prob, slopes = zip(*found, strict=True)
    return torch.cat(log_prob), torch.cat(slopes)


def _learn_kind(raw: Tensor, y: Tensor, circular: bool, min_scale: float, learning: bool) -> tuple[Tensor, Tensor]:
    """The same for factors that are all circular, or all on the real line."""
    n = raw.shape[1] // 3
    logits, means, raw_scales, uniform = raw.split([n, n, n, 1], dim=1)
    v = y.unsqueeze(1) - means
    if circular:
        gate = torch.sigmoid(raw_scales)
        scales = min_scale + (MAX_CIRCULAR_SCALE - min_scale) * gate
        slope = (MAX_CIRCULAR_SCALE - min_scale) * gate * (1 - gate)
        v = torch.remainder(v + math.pi, 2 * math.pi) - math.pi
    else:
        slope = torch.exp(raw_scales.clamp(max=4.0))
        scales = min_scale + slope
        slope = torch.where(raw_scales <= 4.0, slope, 0.0)
    precision = scales.reciprocal().square()
    terms = logits - 0.5 * v * v * precision - torch.log(scales) - _LOG_SQRT_2PI
    if circular:
        above = torch.exp((-2 * math.pi) * (math.pi + v) * precision)
        below = torch.exp((-2 * math.pi) * (math.pi - v) * precision)
        total = 1 + above + below
        terms = terms + torch.log(total)
    last = uniform.clamp(min=-12.0) if circular else torch.full_like(uniform, -math.inf)
    terms = torch.cat([terms, last - math.log(2 * math.pi)], dim=1)
    weights = torch.cat([logits, last], dim=1)
    log_prob = torch.logsumexp(terms, dim=1)
    normalised = log_prob - torch.logsumexp(weights, dim=1)
    if not learning:
        return normalised, normalised
    first, second = v, v * v
    if circular:
        odd, even = (above - below) / total, (above + below) / total
        first = v + 2 * math.pi * odd
        second = second + 4 * math.pi * (v * odd + math.pi * even)
    shares = torch.exp(terms - log_prob.unsqueeze(1))
    by_logit = shares - torch.softmax(weights, dim=1)
    shares = shares[:, :-1]
    by_mean = shares * first * precision
    by_scale = shares * (second * precision - 1) / scales * slope
    by_uniform = by_logit[:, -1:] * (uniform >= -12.0)
    slopes = torch.cat([by_logit[:, :-1], by_mean, by_scale, by_uniform], dim=1)
    return normalised, slopes
