"""CHARMM files: nonbonded energies against a sum by hand; refusals of what readers pass over."""

import itertools
import re

import molecules
import numpy as np
import pytest

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.inputs import load_system
from openmm_cgflow.inputs.readings import term_energies

from openmm import unit  # isort: skip

DATA = molecules.DATA / "readers"
KE, KCAL = 332.0637 * 4.184, 4.184  # kJ/mol Angstrom
PSF, CRD, PRM = ((DATA / name).read_text() for name in ("mol.psf", "mol.crd", "par.prm"))
CHARGES = [0.418, -0.648, 0.05, 0.09, 0.09, 0.05, 0.09, 0.09, -0.648, 0.418]
TYPES = ["HP", "O", "C", "H", "H", "C", "H", "H", "O", "HP"]
BONDS = [(0, 1), (1, 2), (2, 3), (2, 4), (2, 5), (5, 6), (5, 7), (5, 8), (8, 9)]
LJ = {"C": (0.056, 2.01), "O": (0.1921, 1.765), "HP": (0.046, 0.2245), "H": (0.035, 1.34)}
LJ14 = LJ | {"C": (0.01, 1.9)}
NBFIX = {frozenset("O"): (0.3, 3.8), frozenset(("HP", "O")): (0.1, 2.4)}


def load(folder, psf=PSF, prm=PRM, **options):
    (folder / "mol.psf").write_text(psf)
    (folder / "par.prm").write_text(prm)
    _, system, positions = load_system(folder / "mol.psf", DATA / "mol.crd", folder / "par.prm", **options)
    x = positions.value_in_unit(unit.nanometer)
    return {term: float(e[0]) for term, e in term_energies(system, x[None]).items()}, x


def by_hand(x, mode=5, e14fac=1.0, nbfix=NBFIX, nbfix14=NBFIX):
    far = np.full((10, 10), 99)
    np.fill_diagonal(far, 0)
    for i, j in BONDS:
        far[i, j] = far[j, i] = 1
    for k, i, j in itertools.product(range(10), repeat=3):
        far[i, j] = min(far[i, j], far[i, k] + far[k, j])
    total = 0.0
    for i, j in itertools.combinations(range(10), 2):
        near = far[i, j] == 3
        if far[i, j] < 3 or (near and mode == 4):
            continue
        special = near and mode == 5
        table, fixed = (LJ14, nbfix14) if special else (LJ, nbfix)
        (e1, r1), (e2, r2) = table[TYPES[i]], table[TYPES[j]]
        e, r_min = fixed.get(frozenset((TYPES[i], TYPES[j])), (np.sqrt(e1 * e2), r1 + r2))
        r = 10 * np.linalg.norm(x[i] - x[j])
        total += (e14fac if special else 1) * KE * CHARGES[i] * CHARGES[j] / r
        total += KCAL * e * ((r_min / r) ** 12 - 2 * (r_min / r) ** 6)
    return total


def test_readers_nbfix_of_1_4_pairs(tmp_path):
    """NBFIX holds for 1-4 pairs too: 130.105 kJ/mol; parmed leaves their Lennard-Jones term out (94.633)."""
    found, x = load(tmp_path)
    assert found["nonbonded"] == pytest.approx(by_hand(x), abs=0.02)
    assert found["nonbonded"] == pytest.approx(130.105, abs=0.002)
    assert sum(found.values()) == pytest.approx(134.19, abs=0.01)


@pytest.mark.parametrize(
    ("old", "new", "options"),
    [
        ("e14fac 1.0", "e14fac 0.4", {"e14fac": 0.4}),
        ("nbxmod 5", "nbxmod 4", {"mode": 4}),
        ("nbxmod 5", "nbxmod 3", {"mode": 3}),
        ("-0.30 3.80 -0.30 3.80", "-0.30 3.80 -0.20 3.00", {"nbfix14": NBFIX | {frozenset("O"): (0.2, 3.0)}}),
        ("OG311 OG311 -0.30 3.80 -0.30 3.80\n", "", {"nbfix": {k: v for k, v in NBFIX.items() if "HP" in k},
                                                     "nbfix14": {k: v for k, v in NBFIX.items() if "HP" in k}}),
    ],
    ids=["e14fac", "nbxmod4", "nbxmod3", "nbfix14", "nbfix1"],
)  # fmt: skip
def test_readers_charmm_pairs(tmp_path, old, new, options):
    """E14FAC, NBXMOD and parameters of 1-4 pairs."""
    assert old in PRM
    found, x = load(tmp_path, prm=PRM.replace(old, new))
    assert found["nonbonded"] == pytest.approx(by_hand(x, **options), rel=1e-4, abs=0.02)


def test_readers_charmm_bonds_and_urey_bradley(tmp_path):
    """Springs of bonds and of the 1-3 distances of angles, k (r - r0)^2 in kcal/mol and Angstrom."""
    found, x = load(tmp_path)
    kinds = {frozenset("C"): (222.5, 1.53), frozenset("CO"): (428.0, 1.42), frozenset("CH"): (309.0, 1.111)}
    kinds[frozenset(("O", "HP"))] = (545.0, 0.96)
    total = 0.0
    for i, j in BONDS:
        k, r0 = kinds[frozenset((TYPES[i], TYPES[j]))]
        total += k * (10 * np.linalg.norm(x[i] - x[j]) - r0) ** 2
    springs = [(5, 3), (5, 4), (2, 6), (2, 7)], [(3, 4), (6, 7)]
    for pairs, (k, r0) in zip(springs, ((22.53, 2.179), (5.4, 1.802)), strict=True):
        total += sum(k * (10 * np.linalg.norm(x[i] - x[j]) - r0) ** 2 for i, j in pairs)
    assert found["bonds and Urey-Bradley"] == pytest.approx(KCAL * total, abs=1e-3)


def torsion(x, i, j, k, m):
    b1, b2, b3 = x[j] - x[i], x[k] - x[j], x[m] - x[k]
    n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
    return np.arctan2(np.linalg.norm(b2) * (b1 @ n2), n1 @ n2)


@pytest.mark.parametrize("multiplicity", [0, 2])
def test_readers_charmm_impropers(tmp_path, multiplicity):
    """Impropers without a multiplicity are harmonic, those with one are cosines (OpenMM's reader has no such)."""
    psf = PSF.replace("0 !NIMPHI: impropers\n", "1 !NIMPHI: impropers\n         6         3         7         9\n")
    line = f"IMPROPERS\nCG321 CG321 HGA2 OG311 2.0 {multiplicity} 30.0\n"
    plain, x = load(tmp_path)
    found, _ = load(tmp_path, psf=psf, prm=PRM.replace("IMPROPERS\n", line))
    phi, zero = torsion(x, 5, 2, 6, 8), np.deg2rad(30)
    away = (phi - zero + np.pi) % (2 * np.pi) - np.pi
    hand = 2 * KCAL * (away**2 if multiplicity == 0 else 1 + np.cos(2 * phi - zero))
    assert found["torsions"] - plain["torsions"] == pytest.approx(hand, abs=1e-3)


def test_readers_charmm_cmap(tmp_path):
    """A CMAP that is the same everywhere adds just that."""
    psf = PSF.replace("0 !NCRTERM: cross-terms", "1 !NCRTERM: cross-terms\n" + "".join(
        f"{k:10d}" for k in (1, 2, 3, 6, 2, 3, 6, 9)) + "\n")  # fmt: skip
    names = "HGP1 OG311 CG321 CG321 OG311 CG321 CG321 OG311"
    grid = "\n".join(["1.5 1.5 1.5 1.5 1.5 1.5"] * 96)
    prm = PRM.replace("NONBONDED nbx", f"CMAP\n{names} 24\n{grid}\n\nNONBONDED nbx")
    found, _ = load(tmp_path, psf=psf, prm=prm)
    assert found["CMAP"] == pytest.approx(1.5 * KCAL, abs=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("PSF EXT CMAP", "PSF EXT CMAP DRUDE", "polarizable Drude force field.*additive"),
        ("0 !NUMLP NUMLPH\n", "3 !NUMLP NUMLPH\n         3         1         F 0.3 0.0 0.0\n", r"1 lone pairs"),
        ("         0 !NNB\n", "         1 !NNB\n\n         9\n", r"1 explicit nonbonded exclusions \(NNB\)"),
        ("HO1      HGP1", "D1       HGP1", r"atom 1 is named D1.*Drude"),
        ("O1       OG311", "OM       OG311", r"atom 2 is named OM.*lone pair"),
        ("O1       OG311", "O1       OGXXX", "Could not find atom type for OGXXX"),
    ],
)
def test_readers_charmm_psf_refusals(tmp_path, old, new, message):
    full = PSF.rstrip() + "\n\n         1         0 !NUMLP NUMLPH\n"
    assert old in full
    psf = full.replace(old, new, 1) if "NUMLP" in old else PSF.replace(old, new, 1)
    with pytest.raises(InvalidInputError, match=message):
        load(tmp_path, psf=psf)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("eps 1.0", "eps 4.0", r"dielectric other than 1 \(EPS 4.0\)"),
        ("cdiel", "rdie", "RDIE"),
        ("NONBONDED nbxmod 5 atom cdiel", "NBONDED nbxmod 5 atom rdie", "RDIE"),
        ("wmin 1.5", "geom", r"geometric means of the sizes of atoms \(GEOM"),
        ("OG311 OG311 -0.30", "OG* OG* -0.30", r"NBFIX of OG\* and OG\* would be lost.*for OG311 and OG311"),
        ("CG321 CG321 222.50 1.530\n", "", "cannot be used: Missing bond type"),
        ("CG321 OG311 HGP1 57.50 106.00\n", "CG321 OG311 HGP1 57.50\n", "par.prm cannot be used"),
    ],
)
def test_readers_charmm_parameter_refusals(tmp_path, old, new, message):
    assert re.search(re.escape(old), PRM)
    with pytest.raises(InvalidInputError, match=message):
        load(tmp_path, prm=PRM.replace(old, new, 1))


def test_readers_nbfix_does_not_depend_on_the_order_of_files(tmp_path):
    """OpenMM passes over NBFIX of types that it does not know yet: 101.76 for 130.10 kJ/mol."""
    start = PRM.index("NBFIX")
    (tmp_path / "a_nbfix.prm").write_text("* nbfix\n*\n" + PRM[start:])
    (tmp_path / "main.prm").write_text(PRM[:start] + "END\n")
    (tmp_path / "mol.psf").write_text(PSF)
    files = tmp_path / "mol.psf", DATA / "mol.crd", tmp_path / "a_nbfix.prm", tmp_path / "main.prm"
    _, system, positions = load_system(*files)
    x = positions.value_in_unit(unit.nanometer)
    assert term_energies(system, x[None])["nonbonded"][0] == pytest.approx(by_hand(x), abs=0.02)


@pytest.mark.parametrize("broken", ["createSystem", "load_parameters"])
def test_readers_charmm_impropers_do_not_need_a_system_of_parmed(tmp_path, monkeypatch, broken):
    """Where parmed made no System, cosines were harmonic without a word: 68.37 for 6.87 kJ/mol."""
    import parmed

    def fail(*_, **__):
        raise ValueError("math domain error")

    psf = PSF.replace("0 !NIMPHI: impropers\n", "1 !NIMPHI: impropers\n         6         3         7         9\n")
    prm = PRM.replace("IMPROPERS\n", "IMPROPERS\nCG321 CG321 HGA2 OG311 2.0 2 30.0\n")
    right, _ = load(tmp_path, psf=psf, prm=prm)
    monkeypatch.setattr(parmed.charmm.CharmmPsfFile, broken, fail)
    if broken == "createSystem":
        assert load(tmp_path, psf=psf, prm=prm)[0] == pytest.approx(right)
        monkeypatch.setattr("openmm_cgflow.inputs.charmm._nonbonded_energy", lambda *_: 1.0)
        with pytest.raises(InvalidInputError, match="a sum over all pairs by CHARMM's rules"):
            load(tmp_path, psf=psf, prm=prm)
    else:
        with pytest.raises(InvalidInputError, match="impropers with a multiplicity"):
            load(tmp_path, psf=psf, prm=prm)
