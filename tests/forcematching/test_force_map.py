"""Forces on beads: which linear maps give mean forces, and what they are in internal coordinates, judged by OpenMM."""

import numpy as np
import openmm
import pytest
import torch
from molecules import load
from openmm import unit

from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.forcematching import BeadModel, aggregated_map, generalised_forces, optimal_map

GROUPS = [[0, 1, 2, 3, 4, 5], [6, 7], [8, 9], [14, 15], [16, 17]]


@pytest.fixture(scope="module")
def aldp():
    return load("aldp_vacuum")


@pytest.fixture(scope="module")
def chain() -> np.ndarray:
    """Frames of five beads, `(12, 5, 3)`, nm."""
    step = np.arange(5)
    line = np.stack([0.23 * np.cos(1.7 * step), 0.23 * np.sin(1.7 * step), 0.15 * step], axis=1)
    return line + np.random.default_rng(0).normal(0, 0.02, (12, 5, 3))


def energies_and_forces(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a System of five beads with bonds, angles, torsions and charges, kJ/mol and kJ/mol/nm, by OpenMM."""
    system = openmm.System()
    for _ in range(5):
        system.addParticle(12.0)
    bonds, angles = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    torsions, pairs = openmm.PeriodicTorsionForce(), openmm.CustomNonbondedForce("5/r + 0.001/r^6")
    for k in range(4):
        bonds.addBond(k, k + 1, 0.36, 5000.0)
    for k in range(3):
        angles.addAngle(k, k + 1, k + 2, 1.9, 60.0)
    for k in range(2):
        torsions.addTorsion(k, k + 1, k + 2, k + 3, 2, 0.7, 8.0)
    for _ in range(5):
        pairs.addParticle([])
    for force in (bonds, angles, torsions, pairs):
        system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    found = []
    for frame in x:
        context.setPositions(frame)
        state = context.getState(energy=True, forces=True)
        found.append((state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value))
    return tuple(map(np.array, zip(*found, strict=True)))  # type: ignore[return-value]


@pytest.mark.parametrize("fixed", [(), ((1, 2),)])
def test_generalised_forces_are_the_slopes_of_openmm_s_energy(chain, fixed):
    model = BeadModel.fromSequence("GGGGG")
    if fixed:  # make the bond as long as its constraint
        length = np.linalg.norm(chain[:, 2:3] - chain[:, 1:2], axis=2, keepdims=True)
        chain = chain.copy()
        chain[:, 2:] += (0.37 / length - 1) * (chain[:, 2:3] - chain[:, 1:2])
    coordinates = model.coordinates(chain, fixed=fixed)
    forces = energies_and_forces(chain)[1]
    # what moves or turns all beads must drop out: a solvent does that
    push = np.random.default_rng(1).normal(0, 100, (len(chain), 1, 3))
    turn = np.cross(np.random.default_rng(2).normal(0, 100, (len(chain), 1, 3)), chain)
    found = generalised_forces(coordinates, chain, forces + push + turn, fixed).numpy()
    q = coordinates.to_internal(torch.as_tensor(chain))[0]
    step = 1e-4
    for k in range(coordinates.dof):
        move = torch.zeros_like(q)
        move[:, k] = step
        ends = [energies_and_forces(coordinates.to_cartesian(q + s * move)[0].numpy())[0] for s in (1, -1)]
        assert found[:, k] == pytest.approx(-(ends[0] - ends[1]) / (2 * step), rel=2e-4, abs=2e-2)


def test_generalised_forces_of_another_shape_are_refused(chain):
    coordinates = BeadModel.fromSequence("GGGGG").coordinates(chain)
    with pytest.raises(MismatchError, match="one force for each bead"):
        generalised_forces(coordinates, chain, chain[:, :4])


@pytest.mark.parametrize("mapping", ["dipeptide", GROUPS])
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("kind", ["aggregated", "optimal"])
def test_force_maps_give_mean_forces(aldp, mapping, constrained, kind):
    """The condition for it: applied to the map of positions they give one, and constrained groups have one weight."""
    model = BeadModel.fromTopology(aldp.topology, mapping)
    names = [atom.element.symbol for atom in aldp.topology.atoms()]
    bonds = [(bond[0].index, bond[1].index) for bond in aldp.topology.bonds()]
    constraints = [bond for bond in bonds if "H" in (names[bond[0]], names[bond[1]])] if constrained else []
    if kind == "aggregated":
        made = aggregated_map(model, constraints)
        assert made.matrix.sum(0) == pytest.approx(np.ones(22))  # no force is lost, none counts twice
    else:
        made = optimal_map(model, correlated_forces(), constraints)
        assert np.abs(made.matrix - aggregated_map(model, constraints).matrix).max() > 0.1  # it is another one
    assert made.matrix @ model.shares.T == pytest.approx(np.eye(5), abs=1e-12)
    for i, j in constraints:
        assert made.matrix[:, i] == pytest.approx(made.matrix[:, j])


def correlated_forces() -> np.ndarray:
    """Forces on 22 atoms, in which the methyl carbon CB (10) pulls at ACE C (4) and all hydrogens are noisy."""
    forces = np.random.default_rng(3).normal(0, 50, (400, 22, 3))
    forces[:, 10] = np.random.default_rng(4).normal(0, 300, (400, 3))
    forces[:, 4] -= forces[:, 10]
    return forces


def test_optimal_map_takes_the_noise_out_that_atoms_share(aldp):
    model = BeadModel.fromTopology(aldp.topology, "dipeptide")
    forces = correlated_forces()
    plain, best = aggregated_map(model), optimal_map(model, forces)
    assert best.matrix[0, 10] == pytest.approx(1, abs=0.05)  # gives back to ACE C what CB took
    assert best.matrix[2, 10] == pytest.approx(0, abs=0.05)  # and does not put it on CA
    assert np.square(best(forces)).mean() < 0.3 * np.square(plain(forces)).mean()


def test_optimal_map_is_the_aggregated_one_where_that_is_as_good(aldp):
    """As for a molecule without constraints, whose forces nearly cancel within what hangs on a bead."""
    model = BeadModel.fromTopology(aldp.topology, "dipeptide")
    platform = openmm.Platform.getPlatformByName("Reference")  # the same frames each time
    context = openmm.Context(aldp.system, openmm.LangevinMiddleIntegrator(300, 10, 0.001), platform)
    context.getIntegrator().setRandomNumberSeed(1)
    context.setPositions(aldp.positions)
    context.setVelocitiesToTemperature(300, 1)
    forces = []
    for _ in range(300):
        context.getIntegrator().step(20)
        forces.append(
            context.getState(forces=True)
            .getForces(asNumpy=True)
            .value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        )
    forces = np.array(forces)
    plain = aggregated_map(model)
    assert (optimal_map(model, forces).matrix == plain.matrix).all()
    alone = forces[:, [4, 6, 8, 14, 16]]
    assert np.square(plain(forces)).mean() < 0.7 * np.square(alone).mean()


def forces_that_cancel(model: BeadModel, seed: int, n: int) -> np.ndarray:
    """Noise of heavy tails for which no map is better than the aggregated one: within a bead, it cancels."""
    forces = np.random.default_rng(seed).standard_t(3, (n, 22, 3))
    for bead, (own,) in enumerate(model.groups):
        forces[:, own] -= sum(forces[:, k] for k in np.flatnonzero(model.owners == bead) if k != own)
    return forces


def test_optimal_map_is_not_taken_for_luck(aldp):
    model = BeadModel.fromTopology(aldp.topology, "dipeptide")
    plain = aggregated_map(model).matrix
    # three of these sets gain 2 % on their six held-out frames
    assert all((optimal_map(model, forces_that_cancel(model, k, 30)).matrix == plain).all() for k in range(100))


def test_force_maps_know_units(aldp):
    made = aggregated_map(BeadModel.fromTopology(aldp.topology, "dipeptide"))
    forces = np.ones((2, 22, 3))
    per_angstrom = made(forces * unit.kilocalorie_per_mole / unit.angstrom)
    assert per_angstrom == pytest.approx(41.84 * made(forces))
    assert made(torch.as_tensor(forces)) == pytest.approx(made(forces))
    assert made([frame * unit.kilocalorie_per_mole / unit.angstrom for frame in forces]) == pytest.approx(per_angstrom)
    with pytest.raises(InvalidInputError, match="forces are given in kelvin"):
        made([frame * unit.kelvin for frame in forces])
    with pytest.raises(InvalidInputError, match="forces are given in"):
        made(forces * unit.kilocalorie_per_mole)
    with pytest.raises(InvalidInputError, match="not an array of numbers"):
        made([["a"]])


def test_force_maps_refuse_what_cannot_be(aldp):
    model = BeadModel.fromTopology(aldp.topology, "dipeptide")
    made = aggregated_map(model)
    with pytest.raises(MismatchError, match=r"shape \(2, 5, 3\); give \(frames, 22, 3\)"):
        made(np.ones((2, 5, 3)))
    wrong = np.ones((9, 22, 3))
    wrong[7, 1] = np.inf
    for call in (made, lambda forces: optimal_map(model, forces)):
        with pytest.raises(InvalidInputError, match=r"force of frames 7 \(1 of 9\) hold NaN or infinite"):
            call(wrong)
    with pytest.raises(InvalidInputError, match="of beads alone"):
        aggregated_map(BeadModel.fromSequence("GGGG"))
    with pytest.raises(InvalidInputError, match="constraints join the beads ALA2:N, ALA2:CA"):
        aggregated_map(model, [(6, 8)])
