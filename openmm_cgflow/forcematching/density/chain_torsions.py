"""The density of the many torsions of a chain: one network for all of them, in place of one for each."""

import torch
from torch import Tensor, nn

from openmm_cgflow.flows import MixtureDensity, SoftVariables
from openmm_cgflow.flows.by_hand import Gradients, differentiable
from openmm_cgflow.flows.mixture import _learn
from openmm_cgflow.flows.networks import MLP

__all__ = ["ChainMixture", "ChainTorsions"]

_PLACE = 16  # numbers by which the network knows which torsion it is asked for
_MEMORY = 32  # numbers by which it knows of all torsions before


class ChainMixture(MixtureDensity):
    """`q(y) = prod_k q(y_k | y_<k)` of circular variables along a chain, with one network for all `k`.

    It sees the torsions just before, a mean over features of all before, and which torsion it is asked for; each has a
    bias of its own in what comes out, by which it has its own distribution. The number of weights hardly grows with the
    chain, and what neighbours do to one another is learned once.

    Arguments:
        n: number of variables.
        components: of each mixture.
        hidden: width of the network.
        harmonics: Fourier pairs by which variables are shown.
        window: how many variables before are shown one by one.
        min_scale: smallest standard deviation of a component.
    """

    def __init__(
        self,
        n: int,
        components: int = 16,
        hidden: int = 64,
        harmonics: int = 3,
        window: int = 4,
        min_scale: float = 0.03,
    ) -> None:
        nn.Module.__init__(self)  # MixtureDensity's own would make a network for each
        self.n_circular = self.n = n
        self.components, self.harmonics, self.min_scale, self.window = components, harmonics, min_scale, window
        start = self._start(0)
        shown = 2 * harmonics
        self.network = MLP(window * (shown + 1) + _MEMORY + _PLACE, len(start), hidden, bias=start)
        self.bias = nn.Parameter(torch.zeros(n, len(start)))
        self.place = nn.Parameter(0.3 * torch.randn(n, _PLACE))
        self.memory = nn.Linear(shown + _PLACE, _MEMORY)

    def _shown(self, y: Tensor) -> Tensor:
        """Sines and cosines `(batch, m, 2 harmonics)` of variables `(batch, m)`."""
        phases = y.unsqueeze(2).expand(-1, -1, self.harmonics).cumsum(2)
        return torch.cat([torch.sin(phases), torch.cos(phases)], dim=2)

    def _inputs(self, y: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        """What the network sees for variables 0 to m, `(batch, m + 1, inputs)`, of the first m, `(batch, m)`."""
        batch, m = y.shape
        shown = self._shown(y)
        known = torch.cat([shown, torch.ones_like(shown[:, :, :1])], dim=2)
        padded = torch.cat([known.new_zeros(batch, self.window, known.shape[2]), known], dim=1)
        before = torch.cat([padded[:, k : k + m + 1] for k in range(self.window)], dim=2)
        place = self.place.expand(batch, -1, -1)
        kept = torch.nn.functional.silu(self.memory(torch.cat([shown, place[:, :m]], dim=2)))
        total = torch.cat([kept.new_zeros(batch, 1, _MEMORY), kept.cumsum(1)], dim=1)
        mean = total / torch.arange(m + 1, dtype=y.dtype, device=y.device).clamp(min=1)[:, None]
        return torch.cat([before, mean, place[:, : m + 1]], dim=2)

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and scales of what the network gave, as `MixtureDensity` has them."""
        logits, means, scales, uniform = raw.split([self.components] * 3 + [1], dim=1)
        scales = self.min_scale + (1.0 - self.min_scale) * torch.sigmoid(scales)
        weights = torch.cat([logits, uniform.clamp(min=-12.0)], dim=1)
        return torch.log_softmax(weights, dim=1), means, scales

    def _parameters_of(self, k: int, before: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._split(self.network(self._inputs(before, context)[:, k]) + self.bias[k])

    def _raw(self, y: Tensor, context: Tensor) -> Tensor:
        """What the network says of each variable given those before, `(batch, n, outputs)`."""
        inputs = self._inputs(y[:, :-1], context)
        return self.network(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2]) + self.bias

    def log_prob(self, y: Tensor, context: Tensor) -> Tensor:
        """Log-density `(batch,)` of `y (batch, n)`; all factors at once."""
        if not self.n:
            return y.sum(1)
        parameters = self._split(self._raw(y, context).flatten(0, 1))
        return self._log_prob_of(0, y.flatten(), parameters).reshape(y.shape).sum(1)

    def learned_log_prob(self, y: Tensor, context: Tensor) -> Tensor:
        """The same, differentiable by the parameters alone: what comes after the network has its gradient by hand."""
        if not self.n:
            return y.sum(1)
        raw, learning = self._raw(y.detach(), context), torch.is_grad_enabled()
        with torch.no_grad():
            log_prob, slopes = _learn(raw.permute(1, 2, 0), y.T, self.n, self.min_scale, learning)

        def pull(cotangent: Tensor) -> tuple[list[Tensor], Gradients]:
            return [(slopes * cotangent).permute(2, 0, 1)], {}

        return differentiable(pull, (log_prob.sum(0),), (raw,), ())[0]


class ChainTorsions(SoftVariables):
    """As `SoftVariables`, of the torsions along a chain, in their order, by a `ChainMixture`.

    Arguments:
        centre: `(n,)` the middle of each torsion's range.
        components: mixture components of each torsion.
        hidden: width of the network.
        harmonics: Fourier pairs by which torsions are shown.
    """

    def __init__(self, centre: Tensor, components: int = 16, hidden: int = 64, harmonics: int = 3) -> None:
        super().__init__(centre[:0], centre[:0], 0, components, hidden, harmonics)
        self.centre, self.factor = centre.clone(), torch.ones_like(centre)
        self.n = self.n_circular = centre.numel()
        self.density = ChainMixture(self.n, components, hidden, harmonics)
        self.n_noise, self.n_features = 2 * self.n, 2 * harmonics * self.n
