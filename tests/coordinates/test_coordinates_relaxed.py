"""Inputs that are not relaxed: what is planar, pyramidal or linear is a matter of the System, not of the drawing."""

from itertools import combinations

import numpy as np
import openmm
import pytest
import torch
from molecules import load
from openmm import app

from openmm_cgflow.chemistry import perceive
from openmm_cgflow.coordinates import InternalCoordinates


def turned(x: np.ndarray, moved: list[int], origin: int, axis: np.ndarray, degrees: float) -> np.ndarray:
    """Some atoms turned about an axis through an atom."""
    a = np.deg2rad(degrees)
    u = axis / np.linalg.norm(axis)
    y = x.copy()
    for i in moved:
        v = x[i] - x[origin]
        y[i] = x[origin] + v * np.cos(a) + np.cross(u, v) * np.sin(a) + u * (u @ v) * (1 - np.cos(a))
    return y


def amide_with_a_pyramid(x: np.ndarray, topology) -> np.ndarray:
    """The hydrogen of the amide's nitrogen bent out of its plane."""
    near = {a.index: [] for a in topology.atoms()}
    for a, b in topology.bonds():
        near[a.index].append(b.index)
        near[b.index].append(a.index)
    numbers = [a.element.atomic_number for a in topology.atoms()]
    (nitrogen,) = [i for i, number in enumerate(numbers) if number == 7]
    hydrogens = [i for i in near[nitrogen] if numbers[i] == 1]
    carbon = next(i for i in near[nitrogen] if numbers[i] == 6)
    across = np.cross(x[carbon] - x[nitrogen], x[hydrogens[0]] - x[nitrogen])
    for hydrogen in hydrogens:
        axis = np.cross(x[hydrogen] - x[nitrogen], across)
        x = turned(x, [hydrogen], nitrogen, axis, 55)
    return x


def test_relaxed_amide_is_planar_whatever_the_input():
    topology, system, x = load("acrylamide")
    plain = InternalCoordinates.fromTopology(topology, system, x)
    bent = amide_with_a_pyramid(np.asarray(x), topology)
    drawn = InternalCoordinates.fromTopology(topology, system, bent)
    names = [k for k, name in enumerate(plain.names) if name.startswith("improper")]
    planar = [k for k in names if abs(np.degrees(float(plain.reference[k]))) > 160]
    measured = np.degrees(drawn.to_internal(torch.as_tensor(bent)[None])[0][0, planar].numpy())
    assert np.abs(np.abs(measured) - 180).max() > 42
    assert drawn.names == plain.names
    for k in planar:  # the window is as wide on either side of the plane
        assert np.cos(float(drawn.low[k] + drawn.high[k]) / 2) == pytest.approx(-1, abs=1e-6), drawn.names[k]
        assert float(drawn.high[k] - drawn.low[k]) == pytest.approx(np.pi)
    assert drawn.in_domain(drawn.to_internal(torch.as_tensor(np.asarray(x))[None])[0]).all()
    assert drawn.in_domain(drawn.reference[None]).all()


def test_relaxed_stereocentres_stay_those_of_the_input():
    topology, system, x = load("ALA_PRO")
    mirror = np.asarray(x) * [1, 1, -1]
    c = InternalCoordinates.fromTopology(topology, system, x)
    assert c.in_domain(c.to_internal(torch.as_tensor(np.asarray(x))[None])[0]).all()
    assert not c.in_domain(c.to_internal(torch.as_tensor(mirror)[None])[0]).any()


@pytest.mark.parametrize("degrees", [25, 40])
def test_relaxed_nitrile_is_linear_whatever_the_input(degrees):
    topology, system, x = load("pentanenitrile")
    x = np.asarray(x)
    plain = InternalCoordinates.fromTopology(topology, system, x)
    numbers = [a.element.atomic_number for a in topology.atoms()]
    nitrogen = numbers.index(7)
    (carbon,) = [
        b.index if a.index == nitrogen else a.index for a, b in topology.bonds() if nitrogen in (a.index, b.index)
    ]
    bent = turned(x, [nitrogen], carbon, np.array([0.3, 1.0, 0.2]), degrees)
    drawn = InternalCoordinates.fromTopology(topology, system, bent)
    assert len(drawn.layout.linear) == len(plain.layout.linear) > 0
    assert drawn.names == plain.names
    assert drawn.in_domain(drawn.to_internal(torch.as_tensor(x)[None])[0]).all()


def test_relaxed_hydrogens_may_be_drawn_too_near():
    """X-H of crystal structures are a tenth too short: what is planar is judged at the minimum all the same."""
    topology, system, x = load("acrylamide")
    bent = amide_with_a_pyramid(np.asarray(x), topology)
    for a, b in topology.bonds():
        h, heavy = (a, b) if a.element.symbol == "H" else (b, a)
        if h.element.symbol == "H":
            bent[h.index] = bent[heavy.index] + 0.86 * (bent[h.index] - bent[heavy.index])
    assert np.abs(perceive(topology, system, bent).relaxed - bent).max() > 0.01
    drawn, plain = (InternalCoordinates.fromTopology(topology, system, y) for y in (bent, x))
    improper = [k for k, name in enumerate(plain.names) if name.startswith("improper")]
    middles = [np.cos((c.low + c.high).numpy()[improper] / 2) for c in (drawn, plain)]
    assert np.allclose(*middles, atol=1e-6)


def cyclopropane() -> tuple[app.Topology, openmm.System, np.ndarray]:
    """With two chains on one of its carbons, whose atoms are beads, and fluorine on another, so that it is chiral."""
    b, half, opened = 0.151, np.deg2rad(30), np.deg2rad(58)
    ring = b * np.array([[0, 0, 0], [np.cos(half), np.sin(half), 0], [np.cos(half), -np.sin(half), 0]])

    def outside(k: int, length: float, side: int) -> np.ndarray:
        out = ring[k] - ring.mean(0)
        out /= np.linalg.norm(out)
        return ring[k] + length * (np.cos(opened) * out + side * np.sin(opened) * np.array([0, 0, 1]))

    def on(place: np.ndarray, towards: list[float]) -> np.ndarray:
        return place + 0.15 * np.array(towards) / np.linalg.norm(towards)

    up, down = outside(0, 0.152, 1), outside(0, 0.152, -1)
    up2, down2 = on(up, [-0.3, 0.2, 1]), on(down, [-0.3, -0.3, -1])
    places = [*ring, up, down, outside(1, 0.135, 1), outside(1, 0.109, -1), outside(2, 0.109, 1), outside(2, 0.109, -1)]
    x = np.array([*places, up2, down2, on(up2, [-1, 0.2, 0.3]), on(down2, [-1, -0.3, -0.3])])
    topology, system = app.Topology(), openmm.System()
    residue = topology.addResidue("MOL", topology.addChain())
    atoms = [topology.addAtom(f"{s}{k}", app.Element.getBySymbol(s), residue) for k, s in enumerate("CCCCCFHHHOOCC")]
    bonds = [(0, 1), (0, 2), (1, 2), (0, 3), (0, 4), (1, 5), (1, 6), (2, 7), (2, 8), (3, 9), (4, 10), (9, 11), (10, 12)]
    near: dict[int, list[int]] = {k: [] for k in range(len(x))}
    stretch, bend, twist = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for atom in atoms:
        system.addParticle(atom.element.mass)
    for i, j in bonds:
        topology.addBond(atoms[i], atoms[j])
        stretch.addBond(i, j, float(np.linalg.norm(x[i] - x[j])), 3e5)
        near[i].append(j)
        near[j].append(i)
    for c, around in near.items():
        for i, k in combinations(around, 2):
            u, v = x[i] - x[c], x[k] - x[c]
            bend.addAngle(i, c, k, float(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))), 500.0)
    for j, k in bonds[3:]:
        for i in near[j]:
            for m in near[k]:
                if i != k and m != j and i != m:
                    twist.addTorsion(i, j, k, m, 3, 0.0, 1.0)
    for force in (stretch, bend, twist):
        system.addForce(force)
    return topology, system, x


def test_relaxed_stereocentres_of_small_rings_are_stereocentres():
    """Impropers between their substituents and their rings are 146 degrees: near planar, and not planar."""
    topology, system, x = cyclopropane()
    c = InternalCoordinates.fromTopology(topology, system, x, beads=[9, 3, 0, 4, 10])
    epimer = x.copy()
    epimer[[3, 4, 9, 10, 11, 12], 2] *= -1
    inside = [bool(c.in_domain(c.to_internal(torch.as_tensor(y)[None])[0])) for y in (x, epimer)]
    assert inside == [True, False]
