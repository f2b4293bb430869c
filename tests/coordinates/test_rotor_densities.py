"""The density that is sampled is the density that is evaluated: symmetric rotors, however their input is turned."""

import math
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from coordinate_tools import butane, butyronitrile, cyclohexanol, trifluoroethanol
from molecules import load

import openmm_cgflow as cgf
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.openmm_plugin.moves.structure_density import StructureDensity
from openmm_cgflow.storage import read_file, write_file

HAND_MADE = {f.__name__: f for f in (butane, butyronitrile, cyclohexanol, trifluoroethanol)}
TOLERANCE = 2e-3  # kT: positions and networks are in single precision
# By chance a sample lies so close to the end of a rotor's window that rounding its positions moves it to the other end:
# about once in 10^6 samples.


def flow_of(name: str, degrees: float = 0.0, shake: float = 0.3, **options: Any) -> cgf.CGFlow:
    """A flow whose parameters are all moved from their start, for an input with its rotors turned."""
    system_options = {key: options.pop(key) for key in ("constraints", "solvent") if key in options}
    topology, system, x = HAND_MADE[name]() if name in HAND_MADE else load(name, **system_options)
    flow = cgf.CGFlow(topology, system, turned(topology, np.asarray(x), degrees), seed=1, **options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in flow.flow.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += shake * noise / math.sqrt(max(1, parameter.shape[-1]))
    return flow


def leaves(topology) -> list[tuple[int, int, list[int]]]:
    """Centre, the atom that it is bonded to, and the three equal leaves of each rotor."""
    near: dict[int, list] = {atom.index: [] for atom in topology.atoms()}
    for bond in topology.bonds():
        near[bond[0].index].append(bond[1])
        near[bond[1].index].append(bond[0])
    found = []
    for centre, others in near.items():
        ends = [a for a in others if len(near[a.index]) == 1]
        if len(others) == 4 and len(ends) == 3 and len({a.element for a in ends}) == 1:
            (axis,) = (a.index for a in others if a not in ends)
            found.append((centre, axis, [a.index for a in ends]))
    return found


def turned(topology, x: np.ndarray, degrees: float) -> np.ndarray:
    x, angle = x.copy(), math.radians(degrees)
    for centre, other, ends in leaves(topology):
        axis = (x[centre] - x[other]) / np.linalg.norm(x[centre] - x[other])
        arms = x[ends] - x[centre]
        along = np.outer(arms @ axis, axis)
        x[ends] = x[centre] + along + np.cos(angle) * (arms - along) + np.sin(angle) * np.cross(axis, arms)
    return x


def check(flow: cgf.CGFlow, n: int = 400) -> cgf.Samples:
    samples = flow.sample(n, seed=0)
    inside = flow.coordinates.in_domain(flow.coordinates.to_internal(torch.as_tensor(samples.positions))[0]).numpy()
    inside &= np.isfinite(samples.log_weights)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(
        flow.logDensity(samples.positions)[inside], samples.log_densities[inside], rtol=0, atol=TOLERANCE
    )
    return samples


@pytest.mark.parametrize("degrees", [0, 30, 45, 60, 90, 175])
@pytest.mark.parametrize("name", ["butane", "butyronitrile", "cyclohexanol", "trifluoroethanol"])
def test_the_sampled_density_is_the_evaluated_one(name, degrees):
    """CH3, CF3, a linear group, a ring."""
    check(flow_of(name, degrees))


@pytest.mark.parametrize("degrees", [0, 50])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ALA", {"slow": ["phi"], "solvent": None}),
        ("LYS", {"solvent": None}),
        ("lidocaine", {}),
        ("butane", {"beads": [0, 1, 2, 4, 5]}),
    ],
    ids=["phi", "ammonium", "lidocaine", "beads"],
)
def test_the_sampled_density_is_the_evaluated_one_for_any_choice_of_beads(name, options, degrees):
    check(flow_of(name, degrees, **options))


@pytest.mark.parametrize("constraints", ["HBonds", "AllBonds"])
def test_the_sampled_density_is_the_evaluated_one_with_constraints(constraints):
    topology, system, x = load("pentanenitrile", constraints=constraints)
    x = turned(topology, x, 45)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(x)
    context.applyConstraints(1e-9)
    x = context.getState(positions=True).getPositions(asNumpy=True)._value
    check(cgf.CGFlow(topology, system, x, seed=1))


def test_every_rotor_has_one_window():
    """That of the flow and that of the coordinates, the lowest torsion energy in its middle."""
    at_rest = flow_of("butane", 0, shake=0)
    for degrees in (0, 30, 45, 59, 61, 90):
        flow = flow_of("butane", degrees, shake=0)
        c, n_soft = flow.coordinates, flow.flow.bead_flow.n
        rotors = slice(n_soft, n_soft + c.sizes[2])
        torch.testing.assert_close(flow.flow.atom_flow.rotors.centre, c.centre[rotors].float())
        away = (c.centre - at_rest.coordinates.centre)[rotors]
        away = away - c.period[rotors] * torch.round(away / c.period[rotors])
        assert away.abs().max() < math.radians(5.01)  # the grid on which the minimum is looked for


@pytest.mark.parametrize("name", ["butane", "trifluoroethanol"])
def test_densities_do_not_depend_on_place_orientation_or_labels(name):
    flow = flow_of(name, 45)
    samples = check(flow)
    x, rng = samples.positions.astype(float), np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    before, density = flow.logDensity(x), StructureDensity.of(flow)
    other = x @ rotation.T + rng.normal(size=3)
    for _, _, (a, b, c) in leaves(flow.topology):
        other[:, [a, b, c]] = other[:, [b, c, a]]
    np.testing.assert_allclose(flow.logDensity(other), before, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose([density.log_prob(y) for y in other[:50]], before[:50], rtol=0, atol=TOLERANCE)
    a, b, _ = leaves(flow.topology)[0][2]
    other[:, [a, b]] = other[:, [b, a]]  # not a rotation of the rotor but its mirror image
    assert (flow.logDensity(other) == -np.inf).all()


@pytest.mark.parametrize("name", ["butane", "diyne2", "ALA_PRO"])
def test_one_structure_has_the_density_that_it_has_among_many(name):
    flow = flow_of(name, 45)
    density = StructureDensity.of(flow)
    x, log_q = density.draw(40, seed=3)
    np.testing.assert_allclose(x.mean(1), 0, atol=1e-9)
    fine = np.isfinite(log_q)
    np.testing.assert_allclose(flow.logDensity(x)[fine], log_q[fine], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose([density.log_prob(y) for y in x], flow.logDensity(x), rtol=0, atol=TOLERANCE)
    mirrored = x[0] * [1, 1, -1]
    assert density.log_prob(mirrored) == flow.logDensity(mirrored)[0]


def test_an_old_file_keeps_the_window_that_its_flow_was_trained_in(tmp_path):
    """Flows of the first version had it around the input's angle, coordinates around the minimum."""
    flow = flow_of("butane", 45)
    c = flow.coordinates
    new, old = tmp_path / "new.cgflow", tmp_path / "old.cgflow"
    flow.save(new)
    tensors, header = read_file(new, "model")
    header["coordinates"]["version"] = 1
    rotors = slice(flow.flow.bead_flow.n, flow.flow.bead_flow.n + c.sizes[2])
    tensors["flow.atom_flow.rotors.centre"] = c.reference[rotors].float().clone()
    write_file(old, "model", tensors, header)
    for path in (new, old):
        check(cgf.CGFlow.load(path))
    loaded = cgf.CGFlow.load(old)
    loaded.save(new)
    check(cgf.CGFlow.load(new))
    torch.testing.assert_close(loaded.coordinates.centre[rotors], c.reference[rotors])
    assert not torch.allclose(c.centre[rotors], c.reference[rotors], atol=0.1)
    again = InternalCoordinates.from_state(loaded.coordinates.state())
    assert torch.equal(again.centre, loaded.coordinates.centre)
