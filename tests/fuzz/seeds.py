"""Small files that are fine, from which damaged ones are made; and a System whose XML would run code."""

import tempfile
from pathlib import Path

import numpy as np
import openmm
from openmm import app

from openmm_cgflow import storage
from openmm_cgflow.beads import BeadParticles
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.flows import FlowSettings
from openmm_cgflow.force_field import CGForceField, Fitted
from openmm_cgflow.forcematching import BeadNetwork, StudentSettings
from openmm_cgflow.trained import TrainedFlow
from openmm_cgflow.trained.stored import Molecule
from openmm_cgflow.units import KB, in_nm

SMALL = FlowSettings(
    components=2, rotor_components=2, slow_hidden=4, harmonics=1, bead_couplings=1, atom_couplings=2, hidden=4, rank=2
)
RAN: list[str] = []
"""What a pickle leaves behind that was read although it must not be."""


def run() -> None:
    """What the hostile pickle calls."""
    RAN.append("a pickle was read")


class Hostile:
    """Its pickle calls `run`."""

    def __reduce__(self) -> tuple:
        return run, ()

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        return 0.0, np.zeros((4, 3))


def peroxide() -> tuple[app.Topology, openmm.System, np.ndarray]:
    """Hydrogen peroxide with bonds, angles, a torsion, a formula with a table and collective variables."""
    topology, system = app.Topology(), openmm.System()
    residue = topology.addResidue("HOOH", topology.addChain())
    atoms = [topology.addAtom(name, app.Element.getBySymbol(name[0]), residue) for name in ("O1", "O2", "H1", "H2")]
    for atom in atoms:
        system.addParticle(atom.element.mass)
    bonds, angles, torsions = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for i, j, length in ((0, 1, 0.145), (0, 2, 0.097), (1, 3, 0.097)):
        topology.addBond(atoms[i], atoms[j])
        bonds.addBond(i, j, length, 300_000)
    angles.addAngle(2, 0, 1, 1.75, 500)
    angles.addAngle(0, 1, 3, 1.75, 500)
    torsions.addTorsion(2, 0, 1, 3, 2, 0.0, 4)
    pair = openmm.CustomBondForce("k*step(r-a)*f(r)^2; a=b/2; b=0.1")
    pair.addPerBondParameter("k")
    pair.addBond(2, 3, [1.5])
    inner = openmm.CustomTorsionForce("1+cos(theta)")
    inner.addTorsion(2, 0, 1, 3, [])
    combined = openmm.CustomCVForce("c*g(c)")
    combined.addCollectiveVariable("c", inner)
    combined.addTabulatedFunction("g", openmm.Continuous1DFunction([0.1, 0.2, 0.3], 0, 2))
    table = openmm.CustomCompoundBondForce(2, "0.1*f(distance(p1, p2))")
    table.addTabulatedFunction("f", openmm.Continuous1DFunction([0.1, 0.2, 0.3], 0, 2))
    table.addBond([2, 3], [])
    for force in (bonds, angles, torsions, table, combined, openmm.NonbondedForce(), openmm.CMMotionRemover()):
        if isinstance(force, openmm.NonbondedForce):
            for charge in (-0.4, -0.4, 0.4, 0.4):
                force.addParticle(charge, 0.1, 0.1)
            force.addException(0, 1, 0, 0.1, 0)
        system.addForce(force)
    x = np.array([[0, 0, 0], [0.145, 0, 0], [-0.0172, 0.0955, 0], [0.1622, -0.04, 0.0865]])
    return topology, system, x


def model(topology: app.Topology, system: openmm.System, positions: object) -> bytes:
    """The file of an untrained model with small networks."""
    x = in_nm(positions)
    molecule = Molecule(topology, system, x, InternalCoordinates.fromTopology(topology, system, x))
    flow = TrainedFlow(molecule, 300.0, SMALL)
    flow.history = [{"stage": "laplace", "seconds": 1.0, "evaluations": 10, "beta": None, "loss": 0.5, "dropped": 0}]
    return storage.pack("model", *flow._contents())


def force_field(topology: app.Topology, system: openmm.System, positions: object) -> bytes:
    """The file of a force field that was never fitted, with a small network."""
    x = in_nm(positions)
    molecule = Molecule(topology, system, x, InternalCoordinates.fromTopology(topology, system, x))
    beads, coordinates = TrainedFlow(molecule, 300.0, SMALL).beads, molecule.coordinates.bead_coordinates()
    student = BeadNetwork(coordinates, KB * 300.0, StudentSettings(hidden=4, layers=1))
    fitted = Fitted(0.1, 0.2, 1000, 10, 0, 1.0)
    particles = BeadParticles(beads.topology, beads.positions, beads.masses, {(0, 1): 0.145})
    made = CGForceField(student, particles, 300.0, fitted)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.cgff"
        made.save(path)
        return path.read_bytes()


def hostile_system() -> str:
    """XML of a System with a PythonForce, whose pickle calls `run`."""
    system = peroxide()[1]
    system.addForce(openmm.PythonForce(Hostile()))
    return openmm.XmlSerializer.serialize(system)


EXPRESSIONS = [
    "a*r^2; a=2*b",
    "138.9*(q1*q2/f - 1/(2*r)) + select(step(r-r0), exp(-r/l), min(a, max(b, 1e-3)))",
    "A*exp(-alpha*r)-C/r^6; A=sqrt(A1*A2); C=(C1*C2)^0.5; alpha=or1+lambda; or1=-0.5",
    "erfc(x)*atan2(y,z)+cot(csc(sec(u)))-recip(v)+square(w)*cube(w)*delta(w)",
    "k*(distance(p1,p2)-d0)^2+angle(p1,p2,p3)",
    "2^-3^x--y",
]
