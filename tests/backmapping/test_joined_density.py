"""Beads of frames and atoms of a flow: their density, what they are distributed as, and beads that do not fit."""

import mdtraj
import numpy as np
import pytest
from molecules import MODELS, load

import openmm_cgflow as cgf
from openmm_cgflow.forcematching import BeadModel, FitSettings, FittedBeads, fit_beads

FIT = FitSettings(members=2, steps=100)


@pytest.fixture(scope="module")
def flow() -> cgf.CGFlow:
    return cgf.CGFlow.load(MODELS / "aldp.cgflow", "cpu")


@pytest.fixture(scope="module")
def frames(flow) -> np.ndarray:
    """Beads that are not the flow's own: angles wider, phi turned by a fifth of a radian."""
    coordinates, drawn = flow.coordinates.bead_coordinates(), flow.sample(2000, seed=3)
    q, _ = flow.internal(drawn.positions)
    q = q[:, : coordinates.dof].clone()
    q[:, 0] += 0.2
    q[:, 4] += 0.02
    return coordinates.to_cartesian(q)[0].contiguous().numpy()


@pytest.fixture(scope="module")
def fitted(flow, frames) -> FittedBeads:
    model = BeadModel.fromTopology(flow.topology, flow.coordinates.bead_atoms)
    return fit_beads(frames, model, settings=FIT)


def test_joined_samples_have_the_density_that_is_said(flow, fitted):
    joined = flow.withBeads(fitted)
    samples = joined.sample(300, seed=0)
    np.testing.assert_allclose(samples.log_densities, joined.logDensity(samples.positions), atol=5e-3)
    assert np.array_equal(samples.positions, joined.sample(300, seed=0).positions)
    mirrored = samples.positions[:3] * [1, 1, -1]
    assert (joined.logDensity(mirrored) == -np.inf).all()
    np.testing.assert_allclose(samples.log_weights, -samples.reduced_energies - samples.log_densities)
    assert samples.check(4) < 0.01  # OpenMM has the same energies


def test_frames_that_were_not_fitted_are_refused(flow, frames):
    with pytest.raises(cgf.InvalidInputError, match=r"withBeads: beads is a ndarray; give what .*fit_beads"):
        flow.withBeads(frames)


def test_joined_samples_have_the_beads_of_the_frames_and_weights_of_the_system(flow, frames, fitted):
    samples = flow.withBeads(fitted).sample(6000, seed=1)
    own = flow.sample(2000, seed=2)
    # log Z of the System by both: the beads are another proposal for the same integral; 4 standard errors
    assert abs(samples.logZ - own.logZ) < 4 * np.hypot(samples.logZ_error, own.logZ_error)
    assert samples.logZ_error < 0.05
    beads = flow.coordinates.bead_coordinates()
    given, drawn = (flow.compute.tensor(x) for x in (frames, samples.positions[:, flow.coordinates.bead_atoms]))
    given, drawn = (beads.to_internal(x.double())[0].numpy() for x in (given, drawn))
    for name, of in (("phi", lambda q: np.cos(q[:, 0])), ("angle", lambda q: q[:, 4]), ("bond", lambda q: q[:, 2])):
        a, b = of(given), of(drawn)
        error = np.hypot(a.std() / len(a) ** 0.5, b.std() / len(b) ** 0.5)
        assert abs(a.mean() - b.mean()) < 5 * error, name  # and the error of the fit
    by_flow = beads.to_internal(flow.compute.tensor(own.positions[:, flow.coordinates.bead_atoms]).double())[0]
    assert abs(float(by_flow[:, 4].mean()) - given[:, 4].mean()) > 0.01  # ten times the error: not the flow's own


def test_drawn_frames_are_those_of_the_density(fitted):
    x = fitted.sample(50, seed=0)
    assert x.shape == (50, 5, 3)
    assert np.array_equal(x, fitted.sample(50, seed=0))
    assert not np.array_equal(x, fitted.sample(50))
    with pytest.raises(cgf.InvalidInputError, match="n is 0"):
        fitted.sample(0)


def refit(model: BeadModel, x: np.ndarray, fixed=()) -> FittedBeads:
    return fit_beads(x, model, settings=FitSettings(members=1, steps=5), fixed=fixed)


def test_beads_that_are_not_those_of_the_flow_are_refused(flow, frames):
    atoms = flow.coordinates.bead_atoms
    turned = BeadModel.fromTopology(flow.topology, atoms[::-1])
    with pytest.raises(cgf.MismatchError, match="bead 0 is N"):
        flow.withBeads(refit(turned, frames[:, ::-1]))
    fewer = BeadModel.fromTopology(flow.topology, atoms[:4])
    with pytest.raises(cgf.MismatchError, match="there are 4 beads, but the flow has 5"):
        flow.withBeads(refit(fewer, frames[:, :4]))
    centres = BeadModel.fromTopology(flow.topology, [*([a] for a in atoms[:4]), [atoms[4], 18]])
    with pytest.raises(cgf.MismatchError, match="is the centre of mass of several atoms"):
        flow.withBeads(refit(centres, frames))
    atoms_gone = BeadModel.fromBeads(mdtraj.Topology.from_openmm(flow.beads.topology))
    assert flow.withBeads(refit(atoms_gone, frames)).sample(3, seed=0).n == 3
    with pytest.raises(cgf.InvalidInputError, match=r"every bond is about 1\.7\d times as long"):
        flow.withBeads(refit(atoms_gone, 1.7 * frames))


def test_beads_must_have_the_constraints_of_the_flow(frames):
    bound = cgf.CGFlow(*load("aldp_vacuum", constraints="AllBonds"), device="cpu")
    model = BeadModel.fromTopology(bound.topology, bound.coordinates.bead_atoms)
    with pytest.raises(cgf.MismatchError, match=r"give fit_beads fixed=\[\(0, 1\), \(1, 2\), \(2, 3\), \(3, 4\)\]"):
        bound.withBeads(refit(model, frames))
    coordinates = bound.coordinates.bead_coordinates()
    own = bound.sample(200, seed=0).positions[:, bound.coordinates.bead_atoms].astype(float)
    joined = bound.withBeads(refit(model, own, sorted(bound.beads.constraints)))
    samples = joined.sample(50, seed=0)
    assert coordinates.layout.constants
    np.testing.assert_allclose(samples.log_densities, joined.logDensity(samples.positions), atol=0.05)
    with pytest.raises(cgf.MismatchError, match=r"distance between the beads .* is constrained"):
        bound.withBeads(refit(model, 1.02 * own, sorted(bound.beads.constraints)))
