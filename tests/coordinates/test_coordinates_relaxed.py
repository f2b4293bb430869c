"""Inputs that are not relaxed: what is planar, pyramidal or linear is a matter of the System, not of the drawing."""

import numpy as np
import pytest
import torch
from molecules import load

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
