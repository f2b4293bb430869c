"""Fragments: capped residues built from nothing, what is kept of their flows, and a training that goes on."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from molecules import AMINO_ACIDS, DATA

from openmm_cgflow.errors import InvalidInputError, MismatchError, ModelFileError
from openmm_cgflow.proteins import FragmentLibrary
from openmm_cgflow.proteins.fragments import learned, training
from openmm_cgflow.proteins.fragments.capped import FRAGMENTS, build_capped, fragment_named
from openmm_cgflow.proteins.fragments.flow import FragmentFlow
from openmm_cgflow.proteins.fragments.flow_file import FragmentFlows, flows_beside
from openmm_cgflow.proteins.fragments.learned import Lesson, TrainedFragment, angle_map, grid

# isort: off
import openmm
from openmm import app, unit

# isort: on

SETTINGS = dataclasses.replace(learned.SETTINGS, hidden=16, slow_hidden=16)


@pytest.fixture(scope="module")
def amber():
    return app.ForceField("amber14-all.xml", "implicit/obc2.xml")


def charge(system):
    force = next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    return sum(force.getParticleParameters(i)[0]._value for i in range(force.getNumParticles()))


def bonded_energy(capped):
    """Of bonds and angles, kJ/mol."""
    system = copy.deepcopy(capped.system)
    for k in reversed(range(system.getNumForces())):
        if not isinstance(system.getForce(k), openmm.HarmonicBondForce | openmm.HarmonicAngleForce):
            system.removeForce(k)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(capped.positions)
    return context.getState(energy=True).getPotentialEnergy()._value


CHARGES = {"ASP": -1, "ASH": 0, "HIP": 1, "HIE": 0, "LYS": 1, "LYN": 0, "ARG": 1, "CYX": 0, "N-ALA": 1, "C-GLY": -1}
CHARGES |= {"GLY-PRO": 0, "TRP": 0, "ILE": 0, "THR": 0, "N-PRO": 1}


@pytest.mark.parametrize("name", CHARGES)
def test_fragments_are_built(name, amber):
    capped = build_capped(FRAGMENTS[name], amber)
    assert charge(capped.system) == pytest.approx(CHARGES[name], abs=1e-6)
    # in this force field rings of five are strained: histidine's has 84 kJ/mol in angles of 120 degrees
    assert bonded_energy(capped) < (100 if name.startswith("HI") else 45)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FRAGMENTS) - set(CHARGES)))
def test_all_fragments_are_built(name, amber):
    capped = build_capped(FRAGMENTS[name], amber)
    assert bonded_energy(capped) < (100 if name.startswith("HI") else 45)


@pytest.mark.parametrize("name", ["ILE", "THR", "LEU", "PRO", "TRP"])
def test_fragments_have_the_atoms_and_the_hands_of_natural_ones(name, amber):
    """Against Ace-X-Nme of another program, atom by atom."""
    capped, pdb = build_capped(FRAGMENTS[name], amber), app.PDBFile(str(DATA / f"{name}.pdb"))
    theirs = {(a.residue.index, a.name): a.index for a in pdb.topology.atoms() if a.element.symbol != "H"}
    ours = {(a.residue.index, a.name): a.index for a in capped.topology.atoms() if a.element.symbol != "H"}
    assert set(ours) == set(theirs)
    assert capped.topology.getNumAtoms() == pdb.topology.getNumAtoms()
    for centre, others in (("CA", ("N", "C", "CB")), ("CB", ("CA", "CG1", "CG2")), ("CB", ("CA", "OG1", "CG2"))):
        if name in ("LEU", "PRO", "TRP") and centre == "CB":
            continue
        if (1, others[1]) in ours:
            volumes = []
            for index, x in ((ours, capped.positions), (theirs, np.array(pdb.positions._value))):
                edges = [x[index[1, other]] - x[index[1, centre]] for other in others]
                volumes.append(np.linalg.det(edges))
            assert volumes[0] * volumes[1] > 0


def test_mirror_images_and_unknown_fragments_are_refused():
    with pytest.raises(InvalidInputError, match="D-amino acid"):
        fragment_named("DAL")
    with pytest.raises(InvalidInputError, match="no fragment 'XYZ'; there are ALA, ARG"):
        fragment_named("XYZ")
    with pytest.raises(InvalidInputError, match="needs the fragments PRO too"):
        FragmentLibrary.train("amber14-all.xml", None, "never.safetensors", ["ALA", "GLY"])
    with pytest.raises(InvalidInputError, match=r"amber15-all.xml cannot be read as a force field"):
        FragmentLibrary.train("amber15-all.xml", None, "never.safetensors")


def test_a_temperature_with_a_unit_is_taken(monkeypatch):
    asked = []

    def train_fragments(*arguments: object) -> None:
        asked.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_fragments", train_fragments)
    for temperature in (310 * unit.kelvin, 310):
        with pytest.raises(KeyboardInterrupt):
            FragmentLibrary.train("amber14-all.xml", None, "never.safetensors", temperature=temperature)
    assert [arguments[4] for arguments in asked] == [310.0, 310.0]
    with pytest.raises(InvalidInputError, match="temperature is given in nanometer"):
        FragmentLibrary.train("amber14-all.xml", None, "never.safetensors", temperature=310 * unit.nanometer)


def test_all_residues_and_variants_are_there():
    twenty = {*AMINO_ACIDS} - {"HIS"}
    assert twenty | {"HID", "HIE", "HIP", "ASH", "GLH", "LYN", "CYX", "ALA-PRO", "N-ALA", "C-ALA"} <= set(FRAGMENTS)
    total = sum(map(learned.budget_of, FRAGMENTS.values()))
    assert 1.2e7 < total < 1.8e7  # at 2,500 a second, two hours


@pytest.mark.slow
@pytest.mark.parametrize("field", ["amber19-all.xml", "charmm36.xml"])
def test_fragments_of_other_force_fields(field):
    capped = build_capped(FRAGMENTS["HIP"], app.ForceField(field))
    assert charge(capped.system) == pytest.approx(1, abs=1e-6)
    beads = learned.backbone_of(FRAGMENTS["HIP"], capped)
    assert len(beads) == 11
    names = learned.names_of(capped, beads)
    assert {(-1, "CA"), (0, "CA"), (1, "CA"), (0, "CB")} <= set(names)
    assert len(set(names)) == len(names)


@pytest.fixture(scope="module")
def untrained(amber):
    """Ace-Ala-Nme, with parameters as they are at the beginning but a little changed, so that nothing is trivial."""
    capped = build_capped(FRAGMENTS["ALA"], amber)
    beads = learned.backbone_of(FRAGMENTS["ALA"], capped)
    flow = TrainedFragment(capped, list(beads.values()), 300.0, SETTINGS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.flow.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    kept = FragmentFlow.of(learned.names_of(capped, beads), flow.coordinates, flow.flow, SETTINGS)
    return capped, flow, kept


def test_beads_of_a_fragment_are_its_backbone(untrained):
    _, _, kept = untrained
    backbone = {(-1, "CA"), (-1, "C"), (-1, "O"), (0, "N"), (0, "H"), (0, "CA"), (0, "C"), (0, "O")}
    assert set(kept.beads) == backbone | {(1, "N"), (1, "H"), (1, "CA")}
    own = {name for shift, name in kept.others if shift == 0}
    assert own == {"HA", "CB", "HB1", "HB2", "HB3"}


def test_fragments_are_the_atom_half_of_their_flow(untrained):
    """Log-densities against those of the whole flow and of its beads, which other code computes."""
    _, flow, kept = untrained
    samples = flow.sample(50, seed=3)
    x = torch.as_tensor(np.asarray(samples.trajectory.xyz)).double()
    q, measure = flow.coordinates.to_internal(x)
    n = sum(flow.coordinates.sizes[:2])
    with torch.no_grad():
        whole = flow.flow.log_prob(q.float()) - measure
        beads = flow.flow.bead_flow.log_prob(q[:, :n].float()) - flow.coordinates.bead_coordinates().log_measure(
            q[:, :n]
        )
    torch.testing.assert_close(kept.log_density(x.float()).double(), (whole - beads).double(), rtol=0, atol=5e-3)


def test_fragments_draw_atoms_around_given_beads_with_their_density(untrained):
    _, flow, kept = untrained
    x = torch.as_tensor(np.asarray(flow.sample(30, seed=4).trajectory.xyz))
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    turn = turn * torch.linalg.det(turn)
    beads = x[:, flow.coordinates.bead_atoms] @ turn + 1.5
    others, log_density = kept.draw(beads, torch.Generator().manual_seed(2))
    whole = torch.empty_like(x)
    whole[:, flow.coordinates.bead_atoms] = beads
    whole[:, [k for k in range(x.shape[1]) if k not in flow.coordinates.bead_atoms]] = others
    torch.testing.assert_close(kept.log_density(whole), log_density, rtol=0, atol=0.02)
    again, _ = kept.draw(beads @ turn.T, torch.Generator().manual_seed(2))
    torch.testing.assert_close(again @ turn, others, rtol=0, atol=2e-5)


def test_fragments_are_kept_in_half_precision(untrained, tmp_path):
    _, flow, kept = untrained
    x = torch.as_tensor(np.asarray(flow.sample(50, seed=5).trajectory.xyz))
    FragmentFlows({"ALA": kept}, {"ALA": torch.ones(2, 72, 72)}, {"by": "a test"}).save(tmp_path / "flows")
    again = FragmentFlows.load(tmp_path / "flows")
    assert (again.flows["ALA"].log_density(x) - kept.log_density(x)).abs().max() < 0.1
    assert again.flows["ALA"].beads == kept.beads
    assert again.provenance == {"by": "a test"}
    assert not any("couplings" in k for k in kept.tensors() if k.startswith("bead_flow"))
    damaged = kept.tensors() | {"atom_flow.stiff.log_diagonal": torch.zeros(3)}
    with pytest.raises(ModelFileError, match="not those that are declared"):
        FragmentFlow.from_stored(kept.described(), damaged)


def test_the_angle_over_phi_and_psi_is_found_from_weighted_samples():
    generator = torch.Generator().manual_seed(0)
    phi, psi = (2 * np.pi * (torch.rand(2, 20_000, generator=generator) - 0.5)).unbind(0)
    width = 0.06 * torch.exp(0.4 * torch.sin(psi))
    angle = 1.92 + 0.05 * torch.cos(phi) - 0.03 * torch.sin(phi) * torch.sin(psi)
    angle = angle + width * torch.randn(20_000, generator=generator)
    weights = torch.exp(0.5 * torch.randn(20_000, generator=generator)).double()
    mean, deviation = angle_map(phi, psi, angle, weights / weights.sum())
    first, second = torch.meshgrid(grid(), grid(), indexing="ij")
    expected = 1.92 + 0.05 * torch.cos(first) - 0.03 * torch.sin(first) * torch.sin(second)
    assert (mean - expected).abs().max() < 0.012  # 25 coefficients of 16,000 effective samples: 0.0025, rms
    assert (deviation / (0.06 * torch.exp(0.4 * torch.sin(second))) - 1).abs().max() < 0.2


def test_free_energies_of_samples_are_those_of_their_density():
    """Where phi or psi is no slow variable: von Mises samples, whose kernel estimate is known."""
    generator = np.random.default_rng(0)
    phi = torch.as_tensor(generator.vonmises(-1.2, 20.0, 20_000))
    log = torch.log((learned._kernel(phi, 0.1) / 20_000).sum(1))
    wide = 20.0 / (1 + 20.0 * 0.1**2)  # variances add
    expected = wide * torch.cos(grid().double() + 1.2)
    near = (grid() + 1.2).abs() < 0.5
    error = (log - log.max() - expected + expected.max())[near]
    assert error.abs().max() < 0.15


def lessons_of(kept, counted, failing=()):
    def learn(fragment, capped, kelvin, evaluations, checkpoint, progress):
        counted.append(fragment.name)
        if fragment.name in failing:
            raise KeyboardInterrupt
        names = [a.name for a in capped.topology.atoms() if a.residue.index == capped.middle]
        positions = [capped.positions[a.index] for a in capped.topology.atoms() if a.residue.index == capped.middle]
        x = torch.as_tensor(np.array(positions)).float()
        figures = {"ess": 0.5, "conditional": 0.6, "evaluations": float(evaluations), "seconds": 60.0}
        energy, angle = torch.rand(72, 72), torch.ones(2, 72, 72)
        return Lesson(fragment, energy, angle, torch.tensor([1.9, 0.1]), kept, names, x, figures)

    return learn


def test_a_training_of_fragments_goes_on_where_it_was(untrained, tmp_path, monkeypatch):
    _, _, kept = untrained
    monkeypatch.setattr(learned, "SETTINGS", SETTINGS)
    out, wanted, counted = tmp_path / "library.safetensors", ["GLY", "ALA", "HIP", "PRO"], []
    arguments = ("amber14-all.xml", "implicit/obc2.xml", out, wanted, 300.0, 0.1, False)
    monkeypatch.setattr(training, "learn", lessons_of(kept, counted, failing=["HIP"]))
    with pytest.raises(KeyboardInterrupt):
        FragmentLibrary.train(*arguments)
    assert counted == ["GLY", "ALA", "HIP"]
    counted.clear()
    monkeypatch.setattr(training, "learn", lessons_of(kept, counted))
    library = FragmentLibrary.train(*arguments)
    assert counted == ["HIP", "PRO"]
    assert set(library.free_energy) == set(wanted)
    assert set(library.templates) == set(wanted)
    assert library.provenance["fragments"]["GLY"]["evaluations"] == 30_000
    assert {"CB", "HD1", "HE2", "HA"} <= set(library.atoms["HIP"])
    assert set(FragmentFlows.load(flows_beside(out)).flows) == set(wanted)
    page = (tmp_path / "library.report" / "report.html").read_text()
    assert "HIP" in page
    assert "60.0 %" in page
    changed = (*arguments[:4], 310.0, *arguments[5:])
    with pytest.raises(MismatchError, match="another force field, temperature"):
        FragmentLibrary.train(*changed)


def test_hands_of_fragments_are_all_the_same(amber):
    """CA of every kind of chain, charged ends included, by the triple product of N, C and CB."""
    for name in ("ALA", "N-ALA", "C-ALA", "ALA-PRO", "CYX"):
        capped = build_capped(FRAGMENTS[name], amber)
        n, ca, c, cb = (capped.positions[capped.atom(atom)] for atom in ("N", "CA", "C", "CB"))
        assert np.linalg.det([n - ca, c - ca, cb - ca]) > 0
