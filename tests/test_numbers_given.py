"""Counts, indices, seeds, units and arrays that users give: what cannot be meant is refused in one sentence."""

import numpy as np
import pytest
import torch
from molecules import MODELS, load

import openmm_cgflow as cgf
from openmm_cgflow.compute import seeded
from openmm_cgflow.errors import CGFlowError, InvalidInputError, MismatchError
from openmm_cgflow.forcematching import BeadModel, DistilSettings, fit_beads
from openmm_cgflow.openmm_plugin.forces.cg_system import langevin_frames
from openmm_cgflow.openmm_plugin.forces.force import force_from_energy
from openmm_cgflow.potentials import DoubleWell
from openmm_cgflow.units import in_nm, real_array

from openmm import unit  # isort: skip


@pytest.fixture(scope="module")
def aldp() -> cgf.CGFlow:
    return cgf.CGFlow.load(MODELS / "alanine_dipeptide.cgflow")


@pytest.fixture(scope="module")
def samples(aldp) -> cgf.Samples:
    return aldp.sample(50, seed=0)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True, 2**63])
def test_a_seed_is_refused_before_anything_is_done(aldp, samples, seed):
    """-1 got as far as the audit at the end of a training, and ended it with numpy's ValueError."""
    users = [
        lambda: cgf.CGFlow(*load("butane"), seed=seed),
        lambda: cgf.VectorFlow(DoubleWell(), slow=1, width=2.0, seed=seed),
        lambda: aldp.sample(3, seed=seed),
        lambda: samples.resample(3, seed=seed),
        lambda: samples.check(3, seed=seed),
        lambda: aldp.backmap(samples.positions[:1, aldp.coordinates.bead_atoms], seed=seed),
    ]
    for use in users:
        with pytest.raises(InvalidInputError, match="seed is"):
            use()


def test_a_seed_of_numpy_is_that_number():
    assert seeded(np.int64(3)).initial_seed() == seeded(3).initial_seed() == 3


def test_dynamics_of_beads_repeat_with_the_seed_0(aldp):
    """OpenMM's integrators take 0 for "choose one": `openmm-cgflow simulate` gave other frames at each call."""
    system = aldp.createCGSystem("python")
    first, again, other = (langevin_frames(system, aldp.temperature, 0.02, 2.0, 0.02, seed).xyz for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("beads", ["CA", [0.5, 4, 7, 10], [True, 4, 7, 10], 3, [None, 4, 7, 10]])
def test_beads_that_are_no_indices_are_refused(beads):
    with pytest.raises(InvalidInputError, match="beads contain"):
        cgf.CGFlow(*load("butane"), beads=beads)


def test_atoms_of_a_slow_torsion_are_not_rounded():
    with pytest.raises(InvalidInputError, match="slow contains"):
        cgf.CGFlow(*load("butane"), slow=[(0.7, 1.2, 2.4, 3.1)])


@pytest.mark.parametrize("n", [-1, 2.5, "a", None, True])
def test_a_number_of_samples_is_a_whole_one(samples, n):
    for use in (samples.resample, samples.check):
        with pytest.raises(InvalidInputError, match="whole number"):
            use(n)


@pytest.mark.parametrize("values", [np.full(50, 1j), np.ma.masked_equal(np.arange(50), 7), ["a"] * 50, [None] * 50])
def test_observables_that_are_no_real_numbers_are_refused(samples, values):
    """Of a complex one (a structure factor) the imaginary part was dropped."""
    with pytest.raises(InvalidInputError, match="reweight: values are"):
        samples.reweight(values)


def test_observables_may_be_tensors_with_a_gradient_or_quantities(samples):
    values = np.arange(50.0)
    for given in (torch.tensor(values, requires_grad=True), values * unit.degree):
        np.testing.assert_allclose(samples.reweight(given), samples.reweight(values))


def test_lists_of_quantities_have_units():
    rows = [np.eye(3)[0], np.eye(3)[1]]
    np.testing.assert_allclose(in_nm([row * unit.angstrom for row in rows]), 0.1 * np.stack(rows))
    np.testing.assert_allclose(in_nm([[1.0 * unit.angstrom, 0.2, 0.0]]), [[0.1, 0.2, 0.0]])
    with pytest.raises(InvalidInputError, match=r"array with units \(angstrom\)"):
        real_array([[1.0 * unit.angstrom]], "values are", "numbers")


@pytest.mark.parametrize("values", [np.full((14, 3), 1j), np.ma.masked_less(np.eye(3), 0.5), [[None, 0.0, 0.0]]])
def test_positions_that_are_no_real_numbers_are_refused(values):
    with pytest.raises(InvalidInputError, match="positions are"):
        in_nm(values)


@pytest.mark.parametrize("slow", ["a", None, [None, 0.0], 1 * unit.nanometer, np.zeros((2, 2, 1)), [1j, 0], [0.0]])
def test_free_energy_of_what_is_no_angle_is_refused(aldp, slow):
    with pytest.raises((InvalidInputError, MismatchError), match=r"freeEnergy|an angle"):
        aldp.freeEnergy(slow)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": "a"},
        {"scale": None},
        {"scale": np.nan},
        {"scale": 1 * unit.nanometer},
        {"parameter": ""},
        {"parameter": "my scale"},
        {"parameter": "1a"},
        {"parameter": 3},
        {"atoms": [k + 0.5 for k in range(22)]},
        {"atoms": "abcdefghijklmnopqrstuv"},
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["tabulated", "python"])
def test_factors_and_atoms_of_a_force_are_checked(aldp, backend, options):
    with pytest.raises(CGFlowError):
        aldp.createForce(backend, **options)


class Spring(torch.nn.Module):
    """Of particles to the origin."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * x).sum()


def test_the_factor_of_any_energy_is_checked():
    with pytest.raises(InvalidInputError, match="scale is"):
        force_from_energy(Spring(), [[0.1, 0.0, 0.0]], backend="python", scale=np.inf)


@pytest.mark.parametrize("settings", [3, {"batch": 64}])
def test_settings_of_another_type_are_named(settings):
    """It said that the model file was damaged."""
    with pytest.raises(InvalidInputError, match="give TrainSettings"):
        cgf.CGFlow(*load("butane")).train(evaluations=500, settings=settings)


def test_metrics_that_cannot_be_written_end_a_training_before_it_begins(tmp_path):
    flow = cgf.CGFlow(*load("butane"))
    with pytest.raises(InvalidInputError, match="metrics cannot be written"):
        flow.train(evaluations=500, metrics=tmp_path / "nowhere" / "metrics.csv")
    assert not flow.history


@pytest.mark.parametrize("evaluations", ["a", 6000.5, -1, True])
def test_an_audit_has_a_whole_number_of_evaluations(aldp, evaluations):
    with pytest.raises(InvalidInputError, match="audit: evaluations is"):
        aldp.audit(evaluations=evaluations)


def test_the_name_of_a_file_is_not_taken_for_numbers(aldp):
    with pytest.raises(InvalidInputError, match=r"name of a file, 'md\.dcd'"):
        aldp.train(evaluations=500, frames="md.dcd")


def test_a_small_budget_of_evaluations_is_not_spent_on_timing_them():
    """With a limit of time beside it, 73 of 500 went into that, and the next batch of it did not fit any more."""
    flow = cgf.VectorFlow(DoubleWell(), slow=1, width=2.0).train(evaluations=2000, progress=False)
    flow.train(time=60, evaluations=500, progress=False)
    assert 2000 + 400 < flow.provenance["evaluations"] <= 2500


@pytest.mark.parametrize("relax", [-1, 0.5, "a"])
def test_iterations_of_relaxation_are_counted(aldp, samples, relax):
    with pytest.raises(InvalidInputError, match="backmap: relax is"):
        aldp.backmap(samples.positions[:1, aldp.coordinates.bead_atoms], relax=relax)


def test_beads_that_are_nowhere_are_not_inside_what_a_force_field_knows(aldp, samples):
    """NaN was inside, and another number of beads an IndexError or `outside`."""
    settings = DistilSettings(points=200, steps=5)
    force_field = cgf.CGForceField.fromFlow(aldp, settings)
    x = samples.positions[:3, aldp.coordinates.bead_atoms]
    assert force_field.outside(x).shape == (3,)
    with pytest.raises(InvalidInputError, match="NaN"):
        force_field.outside(np.full_like(x, np.nan))
    for other in (x[:, :3], samples.positions[:3]):
        with pytest.raises(MismatchError, match="outside: frames have shape"):
            force_field.outside(other)


def test_weights_and_settings_of_a_fit_are_looked_at(aldp, samples):
    model = BeadModel.fromTopology(aldp.topology, aldp.coordinates.bead_atoms)
    with pytest.raises(InvalidInputError, match="weights are not"):
        fit_beads(samples.trajectory, model, weights="a")
    with pytest.raises(InvalidInputError, match="give FitSettings"):
        fit_beads(samples.trajectory, model, settings=3)
