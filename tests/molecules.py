"""The molecules of the tests, by name: `topology, system, positions = load("ARG", solvent="GBn2")`.

Positions are float64 in nm, at an energy minimum (see data/make_molecules.py); `jiggled` moves them off it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np

import torch  # noqa: F401  isort: skip  (before openmm, whose torch plugin needs its libraries)
import openmm as mm
from openmm import app, unit

TESTS = Path(__file__).resolve().parent
DATA, MODELS = TESTS / "data", TESTS.parent / "examples" / "models"

AMINO_ACIDS = [
    *("ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE"),
    *("LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL"),
]
"""Ace-X-Nme with amber14-all.xml; OBC2 unless another solvent is named."""

LIGANDS = ["butane", "pentanenitrile", "biphenyl", "caffeine", "nicotine", "camphor", "ibuprofen", "lidocaine"]
"""GAFF2 with AM1-BCC charges; vacuum unless a solvent is named."""

FORMS = ["vinylether", "acrylamide", "enaminone", "macrolactone", "diyne2", "cyclohexanol"]
"""GAFF2 molecules with forms that were lost once, and a linear chain; vacuum."""

ALDP = ["aldp_vacuum", "aldp_obc1"]
"""Alanine dipeptide of openmmtools (ff96), without constraints."""

PEPTIDES = ["ALA3", "ALA5"]
"""Ace-Ala(3 or 5)-Nme with ff99SB-ILDN, OBC2 (GBSAOBCForce) and HBonds constraints, unless others are named."""

CHARMM = ["ALA_PRO"]
"""Ace-Ala-Pro-Nme with charmm36.xml (CMAP, Urey-Bradley), vacuum unless a solvent is named."""

ALL = [*ALDP, *AMINO_ACIDS, *PEPTIDES, *CHARMM, *LIGANDS]

IMPLICIT = {None: None, "HCT": "hct", "OBC1": "obc1", "OBC2": "obc2", "GBn": "gbn", "GBn2": "gbn2"}


CHARMM_CAPS = {
    "ACE": {"CH3": "CAY", "H1": "HY1", "H2": "HY2", "H3": "HY3", "C": "CY", "O": "OY"},
    "NME": {"N": "NT", "H": "HNT", "C": "CAT", "H1": "HT1", "H2": "HT2", "H3": "HT3"},
}
"""Names of the caps' atoms in CHARMM's patches ACE and CT3."""


class Molecule(NamedTuple):
    """What `load` returns."""

    topology: app.Topology
    system: mm.System
    positions: np.ndarray
    """`(atoms, 3)`, nm."""


@contextmanager
def small_networks() -> Iterator[None]:
    """Flows that are built meanwhile have small networks, for tests of something else: half of a training's time."""
    from openmm_cgflow import model
    from openmm_cgflow.flows import FlowSettings

    small = partial(FlowSettings, slow_hidden=32, hidden=32, bead_couplings=2, atom_couplings=2, rank=4)
    with patch.object(model, "FlowSettings", small):
        yield


def load(name: str, solvent: str | None = "default", constraints: str | None = "default") -> Molecule:
    """One molecule of `ALL`, freshly built.

    Arguments:
        name: one of `ALL` or `FORMS`.
        solvent: None for vacuum, or a key of `IMPLICIT`; the aldp molecules take none.
        constraints: None, "HBonds" or "AllBonds".
    """
    if name in ALDP:
        return _aldp(name, solvent, None if constraints == "default" else constraints)
    if solvent == "default":
        solvent = "OBC2" if name in AMINO_ACIDS or name in PEPTIDES else None
    if constraints == "default":
        constraints = "HBonds" if name in PEPTIDES else None
    options = {"constraints": getattr(app, constraints) if constraints else None}
    if name in LIGANDS or name in FORMS:
        prmtop = app.AmberPrmtopFile(str(DATA / f"{name}.prmtop"))
        crd = app.AmberInpcrdFile(str(DATA / f"{name}.inpcrd"))
        system = prmtop.createSystem(implicitSolvent=getattr(app, solvent) if solvent else None, **options)
        return Molecule(prmtop.topology, system, _nm(crd.positions))
    pdb = app.PDBFile(str(DATA / f"{name}.pdb"))
    topology = caps_merged(pdb.topology) if name in CHARMM else pdb.topology
    if name in CHARMM and solvent is None and constraints is None:  # quicker than the force field, which takes seconds
        system = mm.XmlSerializer.deserialize((DATA / f"{name}_charmm36.xml").read_text())
        return Molecule(topology, system, _nm(pdb.positions))
    return Molecule(topology, _force_field(_files(name, solvent)).createSystem(topology, **options), _nm(pdb.positions))


def jiggled(positions: np.ndarray, batch: int, sigma: float = 0.003, seed: int = 0) -> np.ndarray:
    """Copies with Gaussian noise of `sigma` nm, `(batch, atoms, 3)`; 0.003 nm is about a bond's thermal width."""
    noise = np.random.default_rng(seed).normal(size=(batch, *positions.shape))
    return positions + sigma * noise


def thermal(molecule: Molecule, frames: int, temperature: float = 300.0, seed: int = 0) -> np.ndarray:
    """Frames of a short Langevin run, `(frames, atoms, 3)` in nm: 0.1 ps apart, constraints kept, not equilibrated."""
    integrator = mm.LangevinMiddleIntegrator(temperature, 5.0, 0.001)
    integrator.setRandomNumberSeed(seed + 1)
    context = mm.Context(molecule.system, integrator, mm.Platform.getPlatformByName("CPU"), {"Threads": "1"})
    context.setPositions(molecule.positions)
    context.applyConstraints(1e-8)
    context.setVelocitiesToTemperature(temperature, seed + 1)
    rows = []
    for _ in range(frames):
        integrator.step(100)
        rows.append(_nm(context.getState(getPositions=True).getPositions()))
    return np.stack(rows)


def caps_merged(topology: app.Topology) -> app.Topology:
    """The same atoms with ACE and NME made part of their neighbours' residues, as CHARMM's patches want them."""
    merged = app.Topology()
    chain = merged.addChain()
    residues = list(topology.residues())
    atoms = {}
    for inner in residues[1:-1]:
        whole = merged.addResidue(inner.name, chain)
        parts = [residues[0]] * (inner is residues[1]) + [inner] + [residues[-1]] * (inner is residues[-2])
        for part in parts:
            names = CHARMM_CAPS.get(part.name, {})
            for atom in part.atoms():
                atoms[atom] = merged.addAtom(names.get(atom.name, atom.name), atom.element, whole)
    for first, second in topology.bonds():
        merged.addBond(atoms[first], atoms[second])
    return merged


def _files(name: str, solvent: str | None) -> tuple[str, ...]:
    fields = dict.fromkeys(CHARMM, "charmm36.xml") | dict.fromkeys(PEPTIDES, "amber99sbildn.xml")
    field = fields.get(name, "amber14-all.xml")
    if solvent is None:
        return (field,)
    if name in PEPTIDES and solvent == "OBC2":
        return (field, "amber99_obc.xml")
    return (field, f"implicit/{IMPLICIT[solvent]}.xml")


@cache
def _force_field(files: tuple[str, ...]) -> app.ForceField:
    return app.ForceField(*files)


def _aldp(name: str, solvent: str | None, constraints: str | None) -> Molecule:
    from openmmtools import testsystems

    if solvent != "default":
        raise ValueError(f"{name} has its own solvent")
    kind = testsystems.AlanineDipeptideVacuum if name == "aldp_vacuum" else testsystems.AlanineDipeptideImplicit
    test = kind(constraints=getattr(app, constraints) if constraints else None)
    return Molecule(test.topology, test.system, _nm(test.positions))


def _nm(positions) -> np.ndarray:
    return np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64)
