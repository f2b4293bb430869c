"""Free energies as forces on a molecule that is somewhere in a larger System, with solvent and a box."""

import mdtraj
import numpy as np
import openmm
import pytest
from molecules import MODELS
from openmm import app

import openmm_cgflow as cgf
from openmm_cgflow.openmm_plugin.forces.torch_force import why_no_torch_force

N_WATERS = 5
WHERE = 3 * 2  # the molecule comes after two of the waters
BACKENDS = ("tabulated", "python", "torch")


@pytest.fixture(scope="module")
def flow() -> cgf.CGFlow:
    return cgf.CGFlow.load(MODELS / "alanine_dipeptide.cgflow", device="cpu")


def waters(topology: app.Topology, n: int) -> None:
    for _ in range(n):
        residue = topology.addResidue("HOH", topology.addChain())
        oxygen, *hydrogens = (
            topology.addAtom(name, app.Element.getBySymbol(name[0]), residue) for name in ("O", "H1", "H2")
        )
        for hydrogen in hydrogens:
            topology.addBond(oxygen, hydrogen)


def molecule(topology: app.Topology, flow: cgf.CGFlow, order: list[int]) -> None:
    """The flow's molecule, its atoms in another order."""
    template = flow.topology
    chain, own = topology.addChain(), list(template.atoms())
    residues = {residue: topology.addResidue(residue.name, chain, residue.id) for residue in template.residues()}
    made = {}
    for residue in residues:  # a Topology holds the atoms of a residue together
        for k in order:
            if own[k].residue is residue:
                made[own[k]] = topology.addAtom(own[k].name, own[k].element, residues[residue])
    for bond in template.bonds():
        topology.addBond(made[bond[0]], made[bond[1]])


def solvated(flow: cgf.CGFlow, copies: int = 1) -> app.Topology:
    topology = app.Topology()
    waters(topology, WHERE // 3)
    for _ in range(copies):
        molecule(topology, flow, list(range(22))[::-1])
    waters(topology, N_WATERS - WHERE // 3)
    return topology


def test_a_molecule_is_found_by_its_names_and_bonds(flow):
    topology = solvated(flow)
    found, atoms = flow.findAtoms(topology), list(topology.atoms())
    assert found != sorted(found)
    assert [atoms[k].name for k in found] == [atom.name for atom in flow.topology.atoms()]
    assert [atoms[k].residue.name for k in found] == [atom.residue.name for atom in flow.topology.atoms()]
    assert flow.findAtoms(mdtraj.Topology.from_openmm(topology)) == found
    assert flow.findAtoms(app.Modeller(topology, [])) == found
    with pytest.raises(cgf.InvalidInputError, match="findAtoms: topology is a ndarray"):
        flow.findAtoms(np.zeros(3))


@pytest.mark.parametrize(("copies", "message"), [(0, "no molecule"), (2, "2 molecules")])
def test_what_is_not_there_once_is_refused(flow, copies, message):
    with pytest.raises(cgf.MismatchError, match=message):
        flow.findAtoms(solvated(flow, copies))


def test_another_molecule_of_as_many_atoms_is_refused(flow):
    topology = app.Topology()
    molecule(topology, flow, list(range(22)))
    atoms = list(topology.atoms())
    topology.addBond(atoms[0], atoms[21])
    with pytest.raises(cgf.MismatchError, match="no molecule"):
        flow.findAtoms(topology)


def evaluated(force: openmm.Force, x: np.ndarray, platform: str) -> tuple[float, np.ndarray]:
    system = openmm.System()
    for _ in x:
        system.addParticle(1.0)
    system.setDefaultPeriodicBoxVectors([3, 0, 0], [0, 3, 0], [0, 0, 3])
    water = openmm.CustomExternalForce("0*periodicdistance(x, y, z, 0, 0, 0)")  # a force that has a box
    system.addForce(water)
    system.addForce(force)
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
    context.setPositions(x)
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


CASES = [
    *((backend, "slow", platform) for backend in BACKENDS for platform in ("Reference", "CPU")),
    ("python", "beads", "Reference"),  # which take seconds to record
    ("torch", "beads", "CPU"),
]


@pytest.mark.parametrize(("backend", "kind", "platform"), CASES)
def test_the_force_is_that_of_the_molecule_alone(flow, backend, kind, platform):
    if backend == "torch" and why_no_torch_force():
        pytest.skip(why_no_torch_force())
    create = flow.createForce if kind == "slow" else flow.createBeadForce
    atoms = flow.findAtoms(solvated(flow))
    alone = np.asarray(flow.sample(1, seed=3).positions[0], dtype=float)
    x = np.random.default_rng(0).uniform(0, 3, (22 + 3 * N_WATERS, 3))
    x[atoms] = alone + np.array([2.9, 0.1, 1.5])  # across the edge of the box
    energy, forces = evaluated(create(backend, scale=0.7), alone, platform)
    found, felt = evaluated(create(backend, scale=0.7, atoms=atoms), x, platform)
    assert found == pytest.approx(energy, abs=2e-3)
    np.testing.assert_allclose(felt[atoms], forces, atol=2e-3 * np.abs(forces).max())
    others = np.setdiff1d(np.arange(len(x)), atoms)
    assert not felt[others].any()
    expected = flow.freeEnergy(flow.slowVariables(alone))[0]._value if kind == "slow" else None
    assert expected is None or energy == pytest.approx(0.7 * expected, abs=0.1)


def test_there_is_no_table_of_beads(flow):
    with pytest.raises(cgf.InvalidInputError, match="backend"):
        flow.createBeadForce("tabulated")


@pytest.mark.parametrize("atoms", [range(21), [0] * 22, [*range(21), -1]])
def test_atoms_that_cannot_be_the_molecule_are_refused(flow, atoms):
    with pytest.raises(cgf.InvalidInputError, match="22 different"):
        flow.createForce("python", atoms=atoms)


@pytest.mark.parametrize("backend", ["python", "torch"])
def test_atoms_that_the_system_lacks_are_named(flow, backend):
    if backend == "torch" and why_no_torch_force():
        pytest.skip(why_no_torch_force())
    force = flow.createForce(backend, atoms=range(100, 122))
    with pytest.raises(Exception, match=r"on particle 1\d\d, but the System has 30"):
        evaluated(force, np.random.default_rng(0).uniform(0, 3, (30, 3)), "Reference")
