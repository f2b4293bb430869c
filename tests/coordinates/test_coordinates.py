"""Internal coordinates: the bijection, its log-determinant, its domain and its blocks."""

import json
import math

import pytest
import torch
from coordinate_tools import (
    butane,
    butynol,
    butyronitrile,
    coordinates,
    cyclohexanol,
    draw,
    rigid_rmsd,
    trifluoroethanol,
)

from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError

# isort: off
import openmm
from openmmtools import testsystems

# isort: on


def alanine_dipeptide(constraints=None):
    made = testsystems.AlanineDipeptideImplicit(constraints=constraints)
    return made.topology, made.system, made.positions


MOLECULES = [alanine_dipeptide, butane, butyronitrile, butynol, cyclohexanol, trifluoroethanol]
every_molecule = pytest.mark.parametrize("molecule", MOLECULES, ids=lambda f: f.__name__)


@pytest.fixture(scope="module")
def dipeptide():
    return coordinates(alanine_dipeptide())


def difference(c, a, b):
    d = a - b
    period = torch.where(c.period > 0, c.period, torch.ones_like(c.period)).to(d.dtype)
    return torch.where(c.period > 0, d - period * torch.round(d / period), d)


@every_molecule
def test_round_trip_from_q(molecule):
    c = coordinates(molecule())
    q = draw(c, 200)
    q = q[c.in_domain(q)]
    assert len(q) > 190
    x, forward = c.to_cartesian(q)
    back, backward = c.to_internal(x)
    assert difference(c, back, q).abs().max() < 1e-9
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-9)


@every_molecule
def test_round_trip_from_the_input_positions(molecule):
    made = molecule()
    c = coordinates(made)
    x = torch.as_tensor(_nm(made[2]))[None]
    q, _ = c.to_internal(x)
    assert difference(c, q, c.reference[None]).abs().max() < 1e-9
    assert bool(c.in_domain(q))
    assert rigid_rmsd(c.to_cartesian(q)[0], x).item() < 1e-9


@every_molecule
def test_round_trip_in_single_precision(molecule):
    c = coordinates(molecule())
    q = draw(c, 200)
    x, _ = c.to_cartesian(q.float())
    assert x.dtype == torch.float32
    assert rigid_rmsd(x, c.to_cartesian(q)[0]).max() < 1e-5
    back, log_det = c.to_internal(x)
    assert back.dtype == log_det.dtype == torch.float32
    assert rigid_rmsd(c.to_cartesian(back)[0], c.canonical(x)).max() < 1e-5


def _nm(positions):
    from openmm_cgflow.units import in_nm

    return in_nm(positions)


def gauge_log_det(c, q):
    """log |det| of q -> the 3N - 6 Cartesians that the gauge leaves free, and the volume of rigid motion, by autograd.

    Fixing three atoms takes from the measure prod r^2 sin(angle) the factors x1^2 (second atom) and y2 (third).
    """
    rows = q.repeat(len(q), 1).requires_grad_()  # one for each Cartesian: all gradients in one pass
    x = c.to_cartesian(rows)[0][:, c.layout.order]
    free = torch.cat([x[:, 1, :1], x[:, 2, :2], x[:, 3:].flatten(1)], 1)
    (jacobian,) = torch.autograd.grad(free.diagonal().sum(), rows)
    return torch.linalg.slogdet(jacobian)[1] + 2 * x[0, 1, 0].detach().log() + x[0, 2, 1].detach().log()


@every_molecule
def test_log_determinant_against_autograd(molecule):
    c = coordinates(molecule())
    q = draw(c, 4, seed=1)
    expected = torch.stack([gauge_log_det(c, values) for values in q])
    torch.testing.assert_close(c.to_cartesian(q)[1], expected, rtol=0, atol=1e-6)


def test_gauge(dipeptide):
    x = dipeptide.to_cartesian(draw(dipeptide, 5))[0][:, dipeptide.layout.order]
    assert x[:, 0].abs().max() == 0
    assert x[:, 1, 1:].abs().max() == 0
    assert x[:, 2, 2].abs().max() == 0
    assert (x[:, 2, 1] > 0).all()


def test_invariant_to_rigid_motion(dipeptide):
    x, _ = dipeptide.to_cartesian(draw(dipeptide, 20))
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    rotation = rotation * torch.linalg.det(rotation)
    q, _ = dipeptide.to_internal(x)
    moved, _ = dipeptide.to_internal(x @ rotation.T + 3.0)
    assert difference(dipeptide, q, moved).abs().max() < 1e-9


def test_torsions_are_those_of_mdtraj(dipeptide):
    import mdtraj

    topology, _, _ = alanine_dipeptide()
    x, _ = dipeptide.to_cartesian(draw(dipeptide, 20))
    frames = mdtraj.Trajectory(x.numpy(), mdtraj.Topology.from_openmm(topology))
    expected = mdtraj.compute_dihedrals(frames, dipeptide.slow_torsions)
    q, _ = dipeptide.to_internal(x)
    torch.testing.assert_close(q[:, :2], torch.as_tensor(expected, dtype=q.dtype), rtol=0, atol=1e-4)
    assert mdtraj.compute_phi(frames)[0].tolist() == [list(dipeptide.slow_torsions[0])]
    assert mdtraj.compute_psi(frames)[0].tolist() == [list(dipeptide.slow_torsions[1])]


def test_second_derivatives(dipeptide):
    q = draw(dipeptide, 1)[0]

    def energy(values):
        x, log_det = dipeptide.to_cartesian(values[None])
        return (x**2).sum() + log_det.sum()

    hessian = torch.autograd.functional.hessian(energy, q)
    step, k = 1e-5, 7
    moved = [torch.autograd.functional.jacobian(energy, q + s * step * torch.eye(dipeptide.dof)[k]) for s in (1, -1)]
    torch.testing.assert_close(hessian[k], (moved[0] - moved[1]) / (2 * step), rtol=1e-5, atol=1e-5)


def test_blocks_of_alanine_dipeptide(dipeptide):
    assert dipeptide.dof == 60
    assert dipeptide.sizes == (2, 7, 3, 48)
    assert dipeptide.names[:2] == ["ALA2:phi", "ALA2:psi"]
    assert dipeptide.slow_torsions == [(4, 6, 8, 14), (6, 8, 14, 16)]
    assert dipeptide.bead_atoms == [4, 6, 8, 14, 16]
    assert set(dipeptide.names[9:12]) == {"rotor ALA2:CB", "rotor ACE1:CH3", "rotor NME3:C"}
    expected = [2 * math.pi] * 2 + [0.0] * 7 + [2 * math.pi / 3] * 3 + [0.0] * 48
    torch.testing.assert_close(dipeptide.period, torch.tensor(expected, dtype=torch.float64))
    assert dipeptide.log_symmetry == pytest.approx(3 * math.log(3))


def test_beads_do_not_depend_on_the_fast_variables(dipeptide):
    q = draw(dipeptide, 2)
    q[1, :9] = q[0, :9]
    x, _ = dipeptide.to_cartesian(q)
    beads = x[:, dipeptide.bead_atoms]
    assert (beads[0] - beads[1]).abs().max() < 1e-12
    assert (x[0] - x[1]).abs().max() > 0.01


def test_constrained_bonds_leave_q():
    topology, system, x = alanine_dipeptide(openmm.app.HBonds)
    c = coordinates((topology, system, x))
    assert c.dof == 60 - system.getNumConstraints() == 48
    drawn, log_det = c.to_cartesian(draw(c, 10))
    for k in range(system.getNumConstraints()):
        i, j, length = system.getConstraintParameters(k)
        assert ((drawn[:, i] - drawn[:, j]).norm(dim=1) - length._value).abs().max() < 1e-9
    plain = coordinates(alanine_dipeptide())
    torch.testing.assert_close(log_det, plain.to_internal(drawn)[1], rtol=0, atol=1e-9)


def test_domain_refuses_the_mirror_image_and_other_isomers(dipeptide):
    x, _ = dipeptide.to_cartesian(draw(dipeptide, 50))
    assert dipeptide.in_domain(dipeptide.to_internal(x)[0]).all()
    mirror = x * torch.tensor([1.0, 1.0, -1.0])
    assert not dipeptide.in_domain(dipeptide.to_internal(mirror)[0]).any()
    cis = dipeptide.reference[None].clone()
    omega = next(k for k, name in enumerate(dipeptide.names) if name == "torsion ACE1:CH3 ACE1:C ALA2:N ALA2:CA")
    cis[0, omega] += math.pi
    assert not dipeptide.in_domain(cis)
    for kind, value in (("bond", -0.1), ("angle", -0.1), ("angle", 3.2)):
        wrong = dipeptide.reference[None].clone()
        wrong[0, next(k for k, name in enumerate(dipeptide.names) if name.startswith(kind))] = value
        assert not dipeptide.in_domain(wrong)


def test_one_swapped_pair_of_hydrogens_is_outside_the_domain():
    c = coordinates(butane())
    x, _ = c.to_cartesian(c.reference[None])
    swapped = x[:, [0, 1, 2, 3, 5, 4, *range(6, 14)]]
    assert not c.in_domain(c.to_internal(swapped)[0])


def test_relabelled_hydrogens_are_the_same_state(dipeptide):
    q = draw(dipeptide, 50)
    x, log_det = dipeptide.to_cartesian(q)
    h = [11, 12, 13]
    for shift in (1, 2):
        turned = x.clone()
        turned[:, h] = x[:, h[shift:] + h[:shift]]
        back, again = dipeptide.to_internal(turned)
        assert difference(dipeptide, back, q).abs().max() < 1e-9
        torch.testing.assert_close(again, log_det, rtol=0, atol=1e-9)
        assert (dipeptide.canonical(turned) - x).abs().max() < 1e-12


def test_turning_a_methyl_by_120_degrees_only_permutes(dipeptide):
    """One third of a turn and the relabelling undo each other: theta + 2 pi / 3 is the same state."""
    k = dipeptide.names.index("rotor ALA2:CB")
    q = draw(dipeptide, 20)
    turned = q.clone()
    turned[:, k] += 2 * math.pi / 3
    first, second = (dipeptide.canonical(dipeptide.to_cartesian(v)[0]) for v in (q, turned))
    hydrogens = [11, 12, 13]
    others = [i for i in range(22) if i not in hydrogens]
    assert (first - second)[:, others].abs().max() < 1e-12
    back, _ = dipeptide.to_internal(dipeptide.to_cartesian(turned)[0])
    inside = dipeptide._middle[k]
    assert ((back[:, k] - inside).abs() <= math.pi / 3 + 1e-9).all()
    assert difference(dipeptide, back, q)[:, k].abs().max() < 1e-9


def test_circular_coordinates_are_wrapped(dipeptide):
    q, _ = dipeptide.to_internal(dipeptide.to_cartesian(draw(dipeptide, 200) + 4 * math.pi * (dipeptide.period > 0))[0])
    assert (q[:, :2] >= -math.pi).all()
    assert (q[:, :2] < math.pi).all()


def test_state_survives_json(dipeptide):
    again = InternalCoordinates.from_state(json.loads(json.dumps(dipeptide.state(), allow_nan=False)))
    q = draw(dipeptide, 10)
    assert torch.equal(again.to_cartesian(q)[0], dipeptide.to_cartesian(q)[0])
    assert again.names == dipeptide.names
    assert torch.equal(again.in_domain(q), dipeptide.in_domain(q))
    with pytest.raises(InvalidInputError, match="version 7"):
        InternalCoordinates.from_state({"version": 7})
    with pytest.raises(InvalidInputError, match="incomplete"):
        InternalCoordinates.from_state({"version": 2})


def test_gradients_at_a_straight_chain():
    c = coordinates(butynol())
    q = c.reference[None].clone()
    for k, name in enumerate(c.names):
        if name.startswith("planar"):
            q[0, k] = 0.0
    q.requires_grad_()
    x, log_det = c.to_cartesian(q)
    (gradient,) = torch.autograd.grad((x**3).sum() + log_det.sum(), q)
    assert torch.isfinite(gradient).all()
    back, _ = c.to_internal(x)
    torch.testing.assert_close(back, q, rtol=0, atol=1e-9)


def test_is_one_graph_for_the_compiler(dipeptide):
    """Traced whole and made functional, as for any backend; machine code itself is tested with energies and forces."""
    q = draw(dipeptide, 16, dtype=torch.float32)
    x, log_det = torch.compile(dipeptide.to_cartesian, fullgraph=True, backend="aot_eager")(q)
    expected = dipeptide.to_cartesian(q)
    torch.testing.assert_close(x, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(log_det, expected[1], rtol=0, atol=1e-3)
