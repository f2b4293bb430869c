"""What a flow owns: nothing that a user does to what was given or handed out changes it."""

import copy

import numpy as np
import pytest
from molecules import load

import openmm_cgflow as cgf
from openmm_cgflow.potentials import DoubleWell

# isort: off
import openmm
from openmm import app

# isort: on


class Nothing:
    """An energy of zero for a PythonForce, at the top level so that it can be pickled."""

    def __call__(self, state):
        return 0.0, np.zeros((len(state.getPositions(asNumpy=True)), 3))


@pytest.fixture
def molecule():
    return load("butane")


@pytest.fixture
def flow(molecule) -> cgf.CGFlow:
    return cgf.CGFlow(*molecule, seed=1)


def spring() -> openmm.HarmonicBondForce:
    force = openmm.HarmonicBondForce()
    force.addBond(0, 3, 0.25, 1e5)
    return force


def xml(flow: cgf.CGFlow) -> str:
    return openmm.XmlSerializer.serialize(flow.system)


def test_alias_of_the_system_given(molecule, flow, tmp_path):
    """The README's own line: what is simulated with the flow's force is not the flow's target."""
    before = flow.sample(50, seed=0)
    molecule.system.addForce(flow.createForce("tabulated"))
    molecule.system.addForce(flow.createForce("python"))
    molecule.system.addForce(spring())
    molecule.system.setParticleMass(0, 0.0)
    assert flow.system.getNumForces() == molecule.system.getNumForces() - 3
    flow.save(tmp_path / "f.cgflow")
    loaded = cgf.CGFlow.load(tmp_path / "f.cgflow")
    assert xml(loaded) == xml(flow)
    np.testing.assert_allclose(loaded.sample(50, seed=0).log_weights, before.log_weights, atol=1e-3)


def test_alias_of_the_system_in_worker_contexts(molecule):
    """Energies by Contexts, made when they are needed, are those of the System as it was."""
    force = openmm.CustomManyParticleForce(3, "0*(distance(p1,p2)+distance(p1,p3))")
    for _ in range(14):
        force.addParticle([])
    molecule.system.addForce(force)
    flow = cgf.CGFlow(*molecule)
    expected = flow.sample(4, seed=0).reduced_energies
    molecule.system.addForce(spring())
    molecule.system.getForce(0).setForceGroup(7)
    np.testing.assert_allclose(flow.sample(4, seed=0).reduced_energies, expected)


def test_alias_of_the_topology_given(molecule, flow):
    names = [atom.name for atom in flow.topology.atoms()]
    for atom in molecule.topology.atoms():
        atom.name = "X"
    molecule.topology.addBond(*list(molecule.topology.atoms())[:2])
    molecule.topology.addAtom("CL", app.element.chlorine, next(molecule.topology.residues()))
    assert [atom.name for atom in flow.topology.atoms()] == names
    assert flow.topology.getNumBonds() == 13


def test_alias_of_the_positions_given(molecule, flow):
    x = molecule.positions.copy()
    molecule.positions[:] = 0
    np.testing.assert_array_equal(flow.positions._value, x)


def test_alias_of_what_is_handed_out(flow):
    density, before = flow.logDensity(flow.positions), xml(flow)
    x = flow.positions._value.copy()
    flow.system.addForce(spring())
    flow.positions._value[:] = 0
    for atom in flow.topology.atoms():
        atom.name = "X"
    flow.topology.addBond(*list(flow.topology.atoms())[:2])
    flow.slow_torsions.clear()
    flow.slow_names.clear()
    flow.coordinates.bead_atoms.clear()
    flow.constraints[0, 1] = 1.0
    assert xml(flow) == before
    assert flow.constraints == {}
    np.testing.assert_array_equal(flow.positions._value, x)
    np.testing.assert_array_equal(flow.logDensity(x), density)
    assert next(flow.topology.atoms()).name != "X"
    assert flow.topology.getNumBonds() == 13


def test_alias_of_bonds_in_a_copied_topology(flow):
    """OpenMM's own deepcopy of a Topology leaves its bonds between the atoms of the original."""
    topology = flow.topology
    atoms = set(topology.atoms())
    assert all(atom in atoms for bond in topology.bonds() for atom in bond)


def test_alias_of_the_cg_system(flow):
    first = flow.createCGSystem("python")
    first.system.addForce(spring())
    first.positions._value[:] = 0
    for atom in first.topology.atoms():
        atom.name = "X"
    second = flow.createCGSystem("python")
    assert second.system.getNumForces() == 1
    assert np.abs(second.positions._value).max() > 0
    assert "X" not in [atom.name for atom in second.topology.atoms()]


def test_alias_of_a_force_that_was_made(flow, molecule):
    """A force keeps the free energy that it was made with, whatever the flow learns afterwards."""
    force = flow.createForce("python")
    system = copy.deepcopy(molecule.system)
    for k in reversed(range(system.getNumForces())):
        system.removeForce(k)
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(molecule.positions)
    before = context.getState(energy=True).getPotentialEnergy()._value
    for parameter in flow.flow.parameters():
        parameter.data += 0.3
    assert context.getState(energy=True).getPotentialEnergy()._value == before


def test_alias_of_samples(flow):
    samples = flow.sample(10, seed=0)
    x, topology = samples.positions.copy(), flow.topology
    samples.trajectory.xyz[:] = 0
    samples.trajectory.superpose(samples.trajectory[3])
    next(samples.topology.atoms()).name = "X"
    np.testing.assert_array_equal(samples.positions, x)
    assert next(flow.topology.atoms()).name == next(topology.atoms()).name
    result = flow.backmap(x[:, flow.coordinates.bead_atoms], seed=0)
    kept = result.positions.copy()
    result.trajectory.xyz[:] = 0
    result.reference[:] = 0
    np.testing.assert_array_equal(result.positions, kept)
    assert np.abs(flow.positions._value).max() > 0


def test_alias_of_a_vector_flows_potential():
    potential = DoubleWell()
    flow = cgf.VectorFlow(potential, slow=[0])
    x = np.random.default_rng(0).normal(size=(5, flow.coordinates.dof))
    before = flow.sample(20, seed=0).reduced_energies
    for buffer in [*potential.parameters(), *potential.buffers()]:
        buffer.data += 1
    potential.evaluations = 10**9
    np.testing.assert_array_equal(flow.sample(20, seed=0).reduced_energies, before)
    assert flow.evaluations < 10**6
    assert np.isfinite(flow.logDensity(x)).all()


def test_alias_free_file_refuses_at_once_what_could_not_be_loaded(molecule, tmp_path, caplog):
    molecule.system.addForce(openmm.PythonForce(Nothing()))
    flow = cgf.CGFlow(*molecule)
    assert "can be trained and used, but not saved" in caplog.text
    path = tmp_path / "f.cgflow"
    path.write_bytes(b"older")
    with pytest.raises(cgf.ModelFileError, match=r"is not written: .*PythonForce.*checkpoint"):
        flow.save(path)
    assert path.read_bytes() == b"older"


def test_alias_of_a_function_that_cannot_be_copied(molecule):
    molecule.system.addForce(openmm.PythonForce(lambda state: (0.0, np.zeros((14, 3)))))
    for door in (cgf.CGFlow, cgf.scanTorsions):
        with pytest.raises(cgf.InvalidInputError, match=r"cannot be copied.*top level of a module"):
            door(*molecule)
