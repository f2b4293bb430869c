"""Samples with their log-density and its gradient, of one pass: what the stiff densities are trained with."""

from typing import NamedTuple

import torch
from torch import Tensor

from openmm_cgflow.flows.by_hand import Gradients, differentiable
from openmm_cgflow.flows.joint import JointFlow

__all__ = ["Given", "ScoredSamples", "draw_with_score"]


class Given(NamedTuple):
    """Soft variables to be taken in place of those made of noise.

    Attributes:
        slow: `(batch, n_slow)`.
        log_prob: the flow's log-density of these, `(batch,)`.
        rotors: `(n, n_rotors)`, of the first n rows; the others are made of noise.
    """

    slow: Tensor
    log_prob: Tensor
    rotors: Tensor | None = None


class ScoredSamples(NamedTuple):
    """Samples of a `JointFlow`.

    Attributes:
        q: `(batch, dof)`, differentiable by the parameters of the stiff densities, at given soft variables.
        log_prob_soft: log-density `(batch,)` of the soft variables.
        log_prob_stiff: log-density `(batch,)` of the stiff coordinates given the soft ones.
        score: gradient `(batch, dof)` of `log_prob_stiff` by the stiff coordinates; 0 for the soft ones.
    """

    q: Tensor
    log_prob_soft: Tensor
    log_prob_stiff: Tensor
    score: Tensor


def draw_with_score(flow: JointFlow, noise: Tensor, given: Given | None = None) -> ScoredSamples:
    """The samples that `flow.sample_from` would make, with the score; but for `q`, nothing is differentiable.

    The atoms see the beads whitened, `w`. What their log-density says about these goes through the beads' colour
    together with the beads' own score.

    Arguments:
        flow: what is sampled.
        noise: from `flow.draw_noise`.
        given: soft variables that are drawn already.
    """
    beads, atoms, rotors = flow.bead_flow.stiff, flow.atom_flow.stiff, flow.atom_flow.rotors
    with torch.no_grad():
        slow_noise, bead_latent, rotor_noise, atom_latent = flow.split_noise(noise)
        if given is None:
            slow = flow.bead_flow.slow.draw(slow_noise, noise[:, :0])
            given = Given(slow, flow.bead_flow.slow.learned_log_prob(slow))
        slow = given.slow
        features = flow.bead_flow.slow.features(slow)
        shown = features.shape[1] + torch.arange(beads.n, device=noise.device)
        bead = beads.push(bead_latent, features, shown[:0])
        context = torch.cat([features, bead.whitened], dim=1)
        rotor = rotors.draw(rotor_noise, context)
        if given.rotors is not None:
            rotor[: len(given.rotors)] = given.rotors
        atom = atoms.push(atom_latent, torch.cat([context, rotors.features(rotor)], dim=1), shown)
        atom_score, change = atoms.colour_score(atom.tape, atom.score)
        bead_score, _ = beads.colour_score(bead.tape, bead.score + atom.context_score + change)
        score = torch.cat([torch.zeros_like(slow), bead_score, torch.zeros_like(rotor), atom_score], dim=1)
        log_prob_soft = given.log_prob + rotors.learned_log_prob(rotor, context)

    def pull_beads(values: Tensor, whitened: Tensor) -> tuple[list[Tensor], Gradients]:
        return [], beads.pull(bead.tape, values, whitened)[1]

    def pull_atoms(values: Tensor) -> tuple[list[Tensor], Gradients]:
        change, gradients = atoms.pull(atom.tape, values)
        return [change], gradients

    bead_values, whitened = differentiable(pull_beads, (bead.values, bead.whitened), (), list(beads.parameters()))
    (atom_values,) = differentiable(pull_atoms, (atom.values,), (whitened,), list(atoms.parameters()))
    q = torch.cat([slow, bead_values, rotor, atom_values], dim=1)
    return ScoredSamples(q, log_prob_soft, bead.log_prob + atom.log_prob, score)
