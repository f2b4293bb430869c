"""What is minimised: reverse Kullback-Leibler divergences, and reweighted maximum likelihood."""

import torch
from torch import Tensor

from openmm_cgflow.flows import Factor, Given, JointFlow, draw_with_score
from openmm_cgflow.sampling import BoltzmannTarget, soften_log_weights

__all__ = [
    "clip_action",
    "negative_log_likelihood",
    "negative_log_soft",
    "reverse_kl",
    "stiff_divergence",
]


def clip_action(action: Tensor, ceiling: Tensor) -> Tensor:
    """The action, growing only logarithmically above `ceiling`, and nothing where it is not finite.

    A clash must neither dominate a batch's gradient nor vanish from it.
    """
    finite = torch.isfinite(action)
    excess = torch.where(finite, action - ceiling, 0.0).clamp(min=0.0)
    bounded = torch.minimum(torch.where(finite, action, ceiling), ceiling) + torch.log1p(excess)
    return torch.where(finite, bounded, bounded.detach())


def _bounded(divergence: Tensor) -> Tensor:
    """`log q + action` of each row, bounded above the median plus 30 kT."""
    finite = torch.isfinite(divergence)
    with torch.no_grad():
        typical = torch.nanmedian(torch.where(finite, divergence, torch.nan)).nan_to_num(0.0)
    return clip_action(torch.where(finite, divergence, torch.inf), typical + 30.0)


def stiff_divergence(
    flow: JointFlow,
    target: BoltzmannTarget,
    noise: Tensor,
    given: Given | None,
    least_ess: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A divergence between `q(stiff | soft)` and `p(stiff | soft)`, on own samples.

    Between the reverse and the forward Kullback-Leibler divergence: samples count by their importance weights raised to
    the power that leaves `least_ess` of them effective. With `least_ess = 1` it is the reverse divergence, and where
    the flow is good it is the forward one, which punishes missing mass. The gradient is that along the path of the
    samples alone: it vanishes for each sample where the densities agree, so that it has little noise near the end, and
    fresh samples cannot be learned by heart.

    Source: Roeder, Wu and Duvenaud 2017 (arXiv 1703.09194) for the reverse divergence; Vaitl, Nicoli, Nakajima and
    Kessel 2022 (arXiv 2207.08219) for the forward one: its path gradient is the reverse one's with importance weights.

    Arguments:
        flow: whose stiff densities are trained.
        target: gives the action.
        noise: from `flow.draw_noise`.
        given: soft variables in place of those made of the noise.
        least_ess: share of the samples that is to be effective, in (0, 1].

    Returns:
        the reverse divergence up to a constant, with the gradient as above; the samples `(batch, dof)`; their
        log-weights and the flow's log-density of their soft variables, `(batch,)` each.
    """
    drawn = draw_with_score(flow, noise, given)
    leaf = drawn.q.detach().requires_grad_(True)
    action = target.action(leaf)
    (slope,) = torch.autograd.grad(action.sum(), leaf)
    action = action.detach()
    log_weights = -action - drawn.log_prob_stiff - drawn.log_prob_soft
    log_weights = torch.where(torch.isfinite(log_weights), log_weights, -torch.inf)
    softened, _ = soften_log_weights(log_weights, least_ess, 5 / len(leaf))
    raw = (drawn.log_prob_stiff + action).requires_grad_(True)
    divergence = _bounded(raw)
    (weights,) = torch.autograd.grad((torch.softmax(softened, 0) * divergence).sum(), raw)
    force = weights.unsqueeze(1) * (drawn.score + slope)
    path = (torch.where(torch.isfinite(force), force, 0.0) * drawn.q).sum()
    return divergence.mean().detach() + path - path.detach(), leaf.detach(), log_weights, drawn.log_prob_soft


def reverse_kl(
    flow: JointFlow, target: BoltzmannTarget, beta: float, noise: Tensor, learned: type[Factor] = Factor
) -> Tensor:
    """`KL(q || p_beta)` up to a constant, by reparameterisation.

    Arguments:
        flow: the density that is trained.
        target: gives the action.
        beta: inverse temperature relative to the target's own.
        noise: from `flow.draw_noise`.
        learned: the kind of densities that have gradients; variables of others are taken as they come.
    """
    q, log_prob, _ = flow.decode(noise, noise[:, :0], learned)
    return _bounded(log_prob + target.action(q, beta)).mean()


def negative_log_likelihood(flow: JointFlow, q: Tensor, blurred: Tensor) -> Tensor:
    """Mean of `-log q` of rows that were drawn by their weights.

    Arguments:
        flow: the density that is trained.
        q: `(batch, dof)`, from which the stiff densities learn.
        blurred: the same with the soft variables spread out a little, from which the soft densities learn.
    """
    return -(flow.log_prob_stiff(q) + flow.log_prob_soft(blurred)).mean()


def negative_log_soft(flow: JointFlow, q: Tensor) -> Tensor:
    """Mean of `-log q` of the soft variables alone, of rows `(batch, dof)` that were drawn by their weights."""
    return -flow.log_prob_soft(q).mean()
