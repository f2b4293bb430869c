"""What every placer of atoms around beads keeps to."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import openmm_cgflow as cgf
from openmm_cgflow.backmapping import FlowPlacer, Placer
from openmm_cgflow.compute import seeded
from openmm_cgflow.coordinates import InternalCoordinates

MODEL = Path(__file__).resolve().parents[2] / "examples" / "models" / "alanine_dipeptide.cgflow"
PLACERS: dict[str, Callable[[cgf.CGFlow, Tensor], Placer]] = {"the flow's own": FlowPlacer}


@pytest.fixture
def flow(device) -> cgf.CGFlow:
    return cgf.CGFlow.load(MODEL, device=device)


@pytest.fixture(params=list(PLACERS))
def made(request, flow) -> tuple[Placer, np.ndarray]:
    beads = flow.sample(4, seed=2).positions[:, flow.beads.atoms].astype(float)
    beads[3, 0] += 0.3  # torn off
    return PLACERS[request.param](flow, flow.compute.tensor(beads)), beads


def placed(flow: cgf.CGFlow, placer: Placer, rows: list[int], seed: int = 0) -> tuple[Tensor, ...]:
    with flow.compute.parallel() as parallel, torch.no_grad():
        return tuple(t.cpu() for t in placer.place(torch.tensor(rows), seeded(seed), parallel))


def test_placer_keeps_the_beads_where_they_are(flow, made):
    placer, beads = made
    rows = [2, 0, 0, 1]
    x, log_density, u = placed(flow, placer, rows)
    assert x.shape == (4, flow.coordinates.n_atoms, 3)
    assert log_density.shape == u.shape == (4,)
    np.testing.assert_allclose(x[:, flow.beads.atoms], beads[rows], atol=1e-6)
    assert torch.isfinite(log_density).all()
    assert not torch.equal(x[1], x[2])  # another structure each time
    again = placed(flow, placer, rows)
    torch.testing.assert_close(again[0], x)


def test_placer_says_the_density_of_what_it_draws(flow, made):
    """That of the whole molecule over that of the beads."""
    placer, beads = made
    rows = [0, 1, 2]
    x, log_density, u = placed(flow, placer, rows)
    coordinates: InternalCoordinates = flow.coordinates.bead_coordinates().cpu()
    q, log_det = coordinates.to_internal(torch.as_tensor(beads[rows]))
    of_beads = flow.flow.bead_flow.log_prob(flow.compute.tensor(q).float()).detach().cpu().double() - log_det
    np.testing.assert_allclose(log_density, flow.logDensity(x.numpy()) - of_beads.numpy(), atol=0.02)
    energies = flow.potential.energy(flow.compute.tensor(x.numpy()).float()).cpu() / flow.target.kT
    np.testing.assert_allclose(u, energies, atol=0.02)


def test_placer_says_which_frames_it_does_not_know_and_why(made):
    placer, _ = made
    assert placer.outside.tolist() == [False, False, False, True]
    assert len(placer.reason(3)) > 10
