"""What is minimised: reverse Kullback-Leibler divergences, and reweighted maximum likelihood."""

import torch
from torch import Tensor

from openmm_cgflow.flows import JointFlow
from openmm_cgflow.training.target import BoltzmannTarget

__all__ = ["clip_action", "joint_reverse_kl", "negative_log_likelihood", "negative_log_soft", "stiff_reverse_kl"]


def clip_action(action: Tensor, ceiling: Tensor) -> Tensor:
    """The action, growing only logarithmically above `ceiling`, and nothing where it is not finite.

    A clash must neither dominate a batch's gradient nor vanish from it.
    """
    finite = torch.isfinite(action)
    excess = torch.where(finite, action - ceiling, 0.0).clamp(min=0.0)
    bounded = torch.minimum(torch.where(finite, action, ceiling), ceiling) + torch.log1p(excess)
    return torch.where(finite, bounded, bounded.detach())


def _mean_divergence(log_prob: Tensor, action: Tensor) -> Tensor:
    divergence = log_prob + action
    finite = torch.isfinite(divergence)
    values = torch.where(finite, divergence, 0.0)
    with torch.no_grad():
        typical = torch.median(values[finite]) if bool(finite.any()) else values.new_zeros(())
    return clip_action(torch.where(finite, divergence, torch.inf), typical + 30.0).mean()


def stiff_reverse_kl(flow: JointFlow, target: BoltzmannTarget, beta: float, soft: Tensor, latent: Tensor) -> Tensor:
    """`KL(q(stiff | soft) || p(stiff | soft))` up to a constant, at given soft variables.

    Its gradient is that along the path of the samples alone (Roeder, Wu and Duvenaud 2017, arXiv 1703.09194): what is
    left out has mean zero, and does not vanish where the densities agree, as this does.

    Arguments:
        flow: whose stiff densities are trained.
        target: gives the action.
        beta: inverse temperature relative to the target's own.
        soft: `(batch, n_slow + n_rotor)` slow torsions and rotors.
        latent: `(batch, n_stiff)` standard normal.
    """
    n_slow, n_bead = flow.sizes[:2]
    slow, rotors = soft[:, :n_slow], soft[:, n_slow:]
    q, _ = flow.place_stiff(slow, rotors, latent[:, :n_bead], latent[:, n_bead:])
    leaf = q.detach().requires_grad_(True)
    divergence = _mean_divergence(flow.log_prob_stiff(leaf), target.action(leaf, beta))
    (force,) = torch.autograd.grad(divergence, leaf)
    path = (torch.where(torch.isfinite(force), force, 0.0) * q).sum()
    return divergence.detach() + path - path.detach()


def joint_reverse_kl(flow: JointFlow, target: BoltzmannTarget, beta: float, latent: Tensor) -> Tensor:
    """`KL(q || p_beta)` up to a constant, by reparameterisation of every variable.

    Arguments:
        flow: the density that is trained.
        target: gives the action.
        beta: inverse temperature relative to the target's own.
        latent: `(batch, dof)`, uniform for soft variables and standard normal for stiff ones, in the flow's order.
    """
    q, logdet = flow.from_latent(latent)
    # log q = log(latent) - logdet, and the latent's own density does not depend on parameters.
    return _mean_divergence(flow.log_prob_latent(latent) - logdet, target.action(q, beta))


def negative_log_likelihood(flow: JointFlow, q: Tensor, blurred: Tensor, gaussian: bool = False) -> Tensor:
    """Mean of `-log q` of rows that were drawn by their weights.

    Arguments:
        flow: the density that is trained.
        q: `(batch, dof)`, from which the stiff densities learn.
        blurred: the same with the soft variables spread out a little, from which the soft densities learn.
        gaussian: leave the couplings out.
    """
    return -(flow.log_prob_stiff(q, gaussian) + flow.log_prob_soft(blurred)).mean()


def negative_log_soft(flow: JointFlow, q: Tensor) -> Tensor:
    """Mean of `-log q` of the soft variables alone, of rows `(batch, dof)` that were drawn by their weights."""
    return -flow.log_prob_soft(q).mean()
