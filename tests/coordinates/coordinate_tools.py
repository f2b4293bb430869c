"""What the tests of the coordinates share: small molecules built by hand, and comparisons up to rigid motion."""

import torch

# isort: off
import numpy as np
import openmm
from openmm import app

from openmm_cgflow.coordinates import InternalCoordinates

# isort: on

DEGREE = np.pi / 180


def build(atoms, extra_bonds=()):
    """A molecule from a hand-made Z-matrix.

    atoms: (name, bonded to, angle with, torsion with, length nm, angle deg, torsion deg), indices into the list;
    the element is the letters at the start of the name.
    """
    x = np.zeros((len(atoms), 3))
    for i, (_, b, c, d, length, angle, torsion) in enumerate(atoms):
        if i == 1:
            x[1] = [length, 0, 0]
        elif i > 1:
            along = (x[b] - x[c]) / np.linalg.norm(x[b] - x[c])
            other = x[d] - x[c] if i > 2 else np.array([0.0, 1.0, 0.0])
            normal = np.cross(along, other)
            normal /= np.linalg.norm(normal)
            side = np.cross(normal, along)
            bend, turn = angle * DEGREE, torsion * DEGREE
            x[i] = x[b] + length * (
                -np.cos(bend) * along + np.sin(bend) * (np.cos(turn) * side + np.sin(turn) * normal)
            )
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    placed = []
    for name, *_ in atoms:
        element = app.element.get_by_symbol("".join(c for c in name if c.isalpha())[:2].strip("0123456789"))
        placed.append(topology.addAtom(name, element, residue))
    for i, (_, b, *_rest) in enumerate(atoms):
        if i:
            topology.addBond(placed[b], placed[i])
    for i, j in extra_bonds:
        topology.addBond(placed[i], placed[j])
    return topology, system_for(topology, x), x


def system_for(topology, x, torsion=4.0, stiff=()):
    """Bonds, angles, three-fold torsions of `torsion` kJ/mol about each bond, and of 60 about those in `stiff`."""
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    near = [set() for _ in x]
    bonds, angles, torsions = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for bond in topology.bonds():
        i, j = bond[0].index, bond[1].index
        near[i].add(j)
        near[j].add(i)
        bonds.addBond(i, j, float(np.linalg.norm(x[i] - x[j])), 250000.0)
    for j in range(len(x)):
        for i in near[j]:
            for k in near[j]:
                if i < k:
                    angles.addAngle(i, j, k, angle(x, i, j, k), 400.0)
    for bond in topology.bonds():
        j, k = bond[0].index, bond[1].index
        ends = [(i, m) for i in near[j] - {k} for m in near[k] - {j} if i != m]
        for i, m in ends:
            torsions.addTorsion(i, j, k, m, 3, 0.0, torsion / 2 / len(ends))
        if {j, k} in [set(s) for s in stiff]:
            i, m = min(ends)
            torsions.addTorsion(i, j, k, m, 2, np.pi, 30.0)
    for force in (bonds, angles, torsions):
        system.addForce(force)
    return system


def angle(x, i, j, k):
    u, v = x[i] - x[j], x[k] - x[j]
    return float(np.arctan2(np.linalg.norm(np.cross(u, v)), np.dot(u, v)))


def methyl(name, centre, bonded_to, beyond, start, element="H", length=0.109):
    """Rows of three leaves on a centre, 120 degrees apart."""
    return [(f"{element}{name}{k}", centre, bonded_to, beyond, length, 109.5, start + 120 * k) for k in range(3)]


def butane():
    rows = [("C0", 0, 0, 0, 0, 0, 0), ("C1", 0, 0, 0, 0.153, 0, 0), ("C2", 1, 0, 0, 0.153, 112, 0)]
    rows += [("C3", 2, 1, 0, 0.153, 112, 170)]
    rows += [(f"H1{k}", 1, 2, 3, 0.109, 109, s) for k, s in enumerate((60, -60))]
    rows += [(f"H2{k}", 2, 1, 0, 0.109, 109, s) for k, s in enumerate((50, -70))]
    return build(rows + methyl("0", 0, 1, 2, 60) + methyl("3", 3, 2, 1, 65))


def butyronitrile():
    """CH3-CH2-CH2-C#N, the nitrile bent by one degree."""
    rows = [("C0", 0, 0, 0, 0, 0, 0), ("C1", 0, 0, 0, 0.153, 0, 0), ("C2", 1, 0, 0, 0.153, 112, 0)]
    rows += [("C3", 2, 1, 0, 0.147, 112, 65), ("N4", 3, 2, 1, 0.116, 179, 30)]
    rows += [(f"H1{k}", 1, 2, 3, 0.109, 109, s) for k, s in enumerate((185, -55))]
    rows += [(f"H2{k}", 2, 1, 0, 0.109, 109, s) for k, s in enumerate((-55, -175))]
    return build(rows + methyl("0", 0, 1, 2, 60))


def butynol():
    """CH3-C#C-CH2-OH: a rotation about the linear chain, exactly linear."""
    rows = [("C0", 0, 0, 0, 0, 0, 0), ("O1", 0, 0, 0, 0.142, 0, 0), ("C2", 0, 1, 0, 0.147, 111, 0)]
    rows += [("C3", 2, 0, 1, 0.120, 180, 0), ("C4", 3, 2, 1, 0.147, 180, 0)]
    rows += [("H5", 1, 0, 2, 0.096, 108, 60), ("H6", 0, 1, 5, 0.109, 109, 60), ("H7", 0, 1, 5, 0.109, 109, 180)]
    return build(rows + methyl("8", 4, 3, 1, 20))


def cyclohexanol():
    """A chair with OH: nine ring and exocyclic torsions, of which only C-O turns."""
    carbons = [[0.145 * np.cos(k * 60 * DEGREE), 0.145 * np.sin(k * 60 * DEGREE), 0.025 * (-1) ** k] for k in range(6)]
    x, topology = list(map(np.array, carbons)), app.Topology()
    residue = topology.addResidue("CHX", topology.addChain())
    atoms = [topology.addAtom(f"C{k}", app.element.carbon, residue) for k in range(6)]
    for k in range(6):
        topology.addBond(atoms[k], atoms[(k + 1) % 6])
    for k in range(6):
        out = x[k] / np.linalg.norm(x[k])
        for sign in (1, -1):
            direction = out * (0.94 if sign * (-1) ** k < 0 else 0.3) + np.array(
                [0, 0, sign * (0.35 if sign * (-1) ** k < 0 else 0.95)]
            )
            oxygen = k == 0 and sign < 0
            name, element = ("O", app.element.oxygen) if oxygen else (f"H{k}{sign}", app.element.hydrogen)
            atom = topology.addAtom(name, element, residue)
            topology.addBond(atoms[k], atom)
            x.append(x[k] + direction / np.linalg.norm(direction) * (0.143 if oxygen else 0.109))
            if oxygen:
                hydroxyl = topology.addAtom("HO", app.element.hydrogen, residue)
                topology.addBond(atom, hydroxyl)
                x.append(x[-1] + np.array([0.03, 0.09, -0.01]))
    x = np.array(x)
    return topology, system_for(topology, x), x


def trifluoroethanol():
    """CF3-CH2-OH: a symmetric rotor that is no methyl."""
    rows = [("C0", 0, 0, 0, 0, 0, 0), ("C1", 0, 0, 0, 0.152, 0, 0), ("O2", 1, 0, 0, 0.142, 109, 0)]
    rows += [("H3", 2, 1, 0, 0.096, 108, 70), ("H4", 1, 0, 2, 0.109, 109, 120), ("H5", 1, 0, 2, 0.109, 109, -120)]
    return build(rows + methyl("", 0, 1, 2, 60, element="F", length=0.135))


def coordinates(molecule, **options):
    topology, system, x = molecule
    return InternalCoordinates.fromTopology(topology, system, x, **options)


def draw(c, n, seed=0, width=1.0, dtype=torch.float64):
    """Random q around the reference: circular coordinates anywhere in their period, the others within their width."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, c.dof, generator=generator, dtype=torch.float64) * c.scale * width
    turn = (torch.rand(n, c.dof, generator=generator, dtype=torch.float64) - 0.5) * c.period
    middle = torch.where(c.period == 2 * np.pi, torch.zeros_like(c.reference), c._middle)
    return torch.where(c.period > 0, middle + turn, c.reference + noise).to(dtype)


def rigid_rmsd(a, b):
    """Root mean square deviation of each pair of structures after superposition without reflection (Kabsch), nm."""
    a, b = a.double() - a.double().mean(1, keepdim=True), b.double() - b.double().mean(1, keepdim=True)
    u, _, vt = torch.linalg.svd(a.transpose(1, 2) @ b)
    sign = torch.linalg.det(u @ vt)
    u = torch.cat([u[:, :, :2], u[:, :, 2:] * sign[:, None, None]], 2)
    return ((a @ (u @ vt) - b) ** 2).sum(-1).mean(-1).sqrt()
