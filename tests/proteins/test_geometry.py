"""Planes keep their bonds on any virtual bond; templates come back from their frames; refinement's kinematics."""

import mdtraj
import numpy as np
import pytest
import torch
from molecules import load

from openmm_cgflow.proteins import local_template
from openmm_cgflow.proteins.chain.geometry import axes_of, place_planes, plane_shape, residue_frames
from openmm_cgflow.proteins.chain.sequence import ProteinSequence
from openmm_cgflow.proteins.fragments.library import FragmentLibrary
from openmm_cgflow.proteins.placing.layout import ProteinLayout, turned


@pytest.mark.parametrize(("cis", "usual"), [(False, 0.3806), (True, 0.2787)])
def test_planes_are_amber_planes_at_the_usual_distance(cis, usual):
    shape = plane_shape(torch.tensor([usual], dtype=torch.float64), torch.tensor([cis]))[0]
    c, o, n, h = shape
    end = torch.tensor([usual, 0.0], dtype=torch.float64)
    for a, b, length in ((0 * c, c, 0.1526), (c, n, 0.1335), (n, end, 0.1449), (c, o, 0.1229), (n, h, 0.1010)):
        assert float((a - b).norm()) == pytest.approx(length, rel=2e-3)
    assert (float(o[1] * h[1]) > 0) is cis  # on one side of the virtual bond if cis
    assert (float(c[1] * n[1]) > 0) is cis


@pytest.mark.parametrize("distance", [0.30, 0.33, 0.36, 0.38, 0.40, 0.42, 0.44])
def test_planes_keep_bonds_and_open_angles_on_other_distances(distance):
    shape = plane_shape(torch.tensor([distance], dtype=torch.float64), torch.tensor([False]))[0]
    end = torch.tensor([distance, 0.0], dtype=torch.float64)
    c, o, n, _ = shape
    worst = max(
        abs(float((a - b).norm()) / length - 1)
        for a, b, length in ((0 * c, c, 0.1526), (c, n, 0.1335), (n, end, 0.1449), (c, o, 0.1229))
    )
    assert worst < (0.02 if 0.35 < distance < 0.41 else 0.06)


def test_planes_turn_about_their_virtual_bond_with_a_measure_that_gamma_does_not_change():
    generator = torch.Generator().manual_seed(0)
    start, end, beside = torch.randn(3, 1, 3, generator=generator, dtype=torch.float64).unbind(0)
    end = start + 0.38 * torch.nn.functional.normalize(end, dim=-1)
    axes, shape = axes_of(start, end, beside), plane_shape(torch.tensor([0.38]).double(), torch.tensor([False]))
    measures = []
    for gamma in (-2.0, 0.3, 1.7):
        jacobian = torch.autograd.functional.jacobian(
            lambda g: place_planes(start, axes, shape, g), torch.tensor([gamma], dtype=torch.float64)
        )
        measures.append(float(jacobian.norm()))
        x = place_planes(start, axes, shape, torch.tensor([gamma], dtype=torch.float64))[0]
        y = place_planes(start, axes, shape, torch.tensor([0.0], dtype=torch.float64))[0]
        torch.testing.assert_close(torch.cdist(x, end), torch.cdist(y, end))
        torch.testing.assert_close(torch.cdist(x, x), torch.cdist(y, y))
    assert measures == pytest.approx([measures[0]] * 3, rel=1e-12)


@pytest.mark.parametrize("name", ["LEU", "PRO", "ARG"])
def test_templates_come_back_from_their_frame(name):
    molecule = load(name)
    residue = next(r for r in molecule.topology.residues() if r.name == name)
    places = {atom.name: molecule.positions[atom.index] for atom in residue.atoms()}
    names, local = local_template(places, name == "PRO")
    n, ca, c = (torch.as_tensor(places[key]) for key in ("N", "CA", "C"))
    axes = residue_frames(n, ca, c, torch.tensor(name == "PRO"))
    again = local @ axes + ca
    np.testing.assert_allclose(again.numpy(), np.array([places[key] for key in names]), atol=1e-12)
    assert torch.linalg.det(axes) == pytest.approx(1.0)


@pytest.mark.parametrize("variant", ["LYS", "ILE", "TYR", "HIE"])
def test_side_chains_have_the_torsions_that_are_asked_for(variant):
    layout = ProteinLayout(ProteinSequence.of([["GLY", variant, "GLY"]]), FragmentLibrary.load())
    side = layout.side_chains[1]
    generator = torch.Generator().manual_seed(1)
    chi = 6 * torch.rand(5, side.n_chi, generator=generator) - 3
    x = turned(side, chi)
    known = layout.template_positions()[[layout.index[1][name] for name in ("N", "CA")]]
    place = {"N": known[0].expand(5, 3), "CA": known[1].expand(5, 3)}
    place |= {name: x[:, k] for k, name in enumerate(side.names)}
    for k, names in enumerate(layout.chi_of(variant)):
        points = np.stack([np.asarray(place[name]) for name in names], 1)
        topology = mdtraj.Topology()
        residue = topology.add_residue("X", topology.add_chain())
        for _ in range(4):
            topology.add_atom("C", mdtraj.element.carbon, residue)
        found = mdtraj.compute_dihedrals(mdtraj.Trajectory(points, topology), [[0, 1, 2, 3]], opt=False)[:, 0]
        assert np.abs(np.angle(np.exp(1j * (found - chi[:, k].numpy())))).max() < 1e-3
    lengths = torch.cdist(x, x)
    bonded = torch.cdist(side.local, side.local) < 0.16
    assert (lengths[:, bonded] - torch.cdist(side.local, side.local)[bonded]).abs().max() < 1e-5
