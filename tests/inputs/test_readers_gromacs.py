"""GROMACS topologies: energies against sums by hand, from the manual's formulas; refusals name the line."""

import itertools
import re

import molecules
import numpy as np
import parmed
import pytest

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.inputs import load_system
from openmm_cgflow.inputs.readings import term_energies

import openmm  # isort: skip
from openmm import unit  # isort: skip

DATA = molecules.DATA / "readers"
KE = 138.935458
GLYCOL = (DATA / "excl.top").read_text()
"""Combination rule 3 (geometric), gen-pairs yes, fudgeLJ and fudgeQQ 0.5, [ exclusions ] of 1-10 and 1-9."""
CHARGES = np.array([0.418, -0.683, 0.145, 0.06, 0.06, 0.145, 0.06, 0.06, -0.683, 0.418])
TYPES = ["ho", "o", "c", "h", "h", "c", "h", "h", "o", "ho"]
LJ = {"c": (0.35, 0.276144), "h": (0.25, 0.12552), "o": (0.312, 0.71128), "ho": (0.0, 0.0)}
BONDS = [(0, 1), (1, 2), (2, 3), (2, 4), (2, 5), (5, 6), (5, 7), (5, 8), (8, 9)]


def energies(*files, **options):
    """Energies of the terms, kJ/mol, and the positions in nm."""
    _, system, positions = load_system(*files, **options)
    x = positions.value_in_unit(unit.nanometer)
    return {term: float(e[0]) for term, e in term_energies(system, x[None]).items()}, x


def from_text(folder, text, gro="mol.gro"):
    path = folder / "mol.top"
    path.write_text(text)
    return energies(path, DATA / gro)


def refused(folder, text, gro="mol.gro"):
    with pytest.raises(InvalidInputError) as caught:
        from_text(folder, text, gro)
    return str(caught.value)


def separation():
    """How many bonds lie between atoms of glycol."""
    far = np.full((10, 10), 99)
    np.fill_diagonal(far, 0)
    for i, j in BONDS:
        far[i, j] = far[j, i] = 1
    for k, i, j in itertools.product(range(10), repeat=3):
        far[i, j] = min(far[i, j], far[i, k] + far[k, j])
    return far


def by_hand(x, lj, lj14, fudge_qq=0.5, nrexcl=3, exclusions=((0, 9), (0, 8)), unpaired=()):
    """Coulomb and Lennard-Jones of glycol; `lj` and `lj14` give c6 and c12 of two types."""
    far, total = separation(), 0.0
    for i, j in itertools.combinations(range(10), 2):
        r = np.linalg.norm(x[i] - x[j])
        if far[i, j] == 3 and (i, j) not in unpaired:
            scale, (c6, c12) = fudge_qq, lj14(TYPES[i], TYPES[j])
        elif far[i, j] > nrexcl and (i, j) not in exclusions:
            scale, (c6, c12) = 1.0, lj(TYPES[i], TYPES[j])
        else:
            continue
        total += scale * KE * CHARGES[i] * CHARGES[j] / r + c12 / r**12 - c6 / r**6
    return total


def mixed(rule, special=(), fudge=1.0):
    """c6 and c12 of two types by a combination rule, of sigma and epsilon (for rule 1 of c6 and c12 as they are)."""

    def parameters(a, b):
        (v1, w1), (v2, w2) = LJ[a], LJ[b]
        key = frozenset((a, b))
        if key in dict(special):
            v, w = dict(special)[key]
        else:
            v, w = (v1 + v2) / 2 if rule == 2 else np.sqrt(v1 * v2), np.sqrt(w1 * w2)
        if rule == 1:
            return fudge * v, fudge * w
        return 4 * fudge * w * v**6, 4 * fudge * w * v**12

    return parameters


def rule_text(rule, text=GLYCOL, generate="yes", fudge_lj=0.5, fudge_qq=0.5):
    return text.replace("1 3 yes 0.5 0.5", f"1 {rule} {generate} {fudge_lj} {fudge_qq}")


PLAIN = re.sub(r"\[ exclusions \]\n1 10\n1 9\n", "", GLYCOL).replace("2 9 1 0.312 0.711280", "2 9 1")
"""The same without exclusions and without a pair that has its own parameters."""


def test_readers_exclusions():
    """[ exclusions ] are kept: 44.93 kJ/mol in all, as OpenMM's reader has it; parmed's is 14.20."""
    found, x = energies(DATA / "excl.top", DATA / "mol.gro")

    def special(a, b):  # the pair 2-9 has parameters of its own, which are not scaled
        return mixed(3, fudge=1.0 if a == b == "o" else 0.5)(a, b)

    assert found["nonbonded"] == pytest.approx(by_hand(x, mixed(3), special), abs=1e-3)
    assert sum(found.values()) == pytest.approx(44.93, abs=0.01)


def test_readers_pair_types_of_opls():
    """[ pairtypes ] go by atom types, whatever the column of bonded types says, and are not scaled."""
    found, x = energies(DATA / "pt_2_yes.top", DATA / "mol.gro")
    table = {"oo": (0.3, 0.3), "ch": (0.28, 0.05), "hh": (0.22, 0.09), "ho": (0.27, 0.2)}
    table = {frozenset(k): v for k, v in table.items()} | {
        frozenset(("ho", "c")): (0.2, 0.03),
        frozenset(("ho", "h")): (0.15, 0.05),
    }
    special = {frozenset("oo"): (0.3, 0.3), frozenset(("c", "h")): (0.28, 0.05), frozenset("h"): (0.22, 0.09)}
    special |= {frozenset("o"): (0.3, 0.3), frozenset(("o", "h")): (0.27, 0.2)}
    special |= {frozenset(("ho", "c")): (0.2, 0.03), frozenset(("ho", "h")): (0.15, 0.05)}
    hand = by_hand(x, mixed(2), mixed(2, special.items()), fudge_qq=1.0, exclusions=())
    assert found["nonbonded"] == pytest.approx(hand, abs=1e-3)
    assert found["nonbonded"] == pytest.approx(117.80, abs=0.01)


def test_readers_combination_rule_1():
    """c6 and c12 of rule 1; 1-4 pair CH3-OA is the only one with Lennard-Jones terms here."""
    found, x = energies(DATA / "comb1.top", DATA / "gromos.gro")
    r = np.linalg.norm(x[0] - x[3])
    # atoms 1-5 are four bonds apart, but the hydrogen has no Lennard-Jones and atom 1 no charge; 2-5 likewise
    assert found["nonbonded"] == pytest.approx(2.5e-6 / r**12 - 0.004 / r**6, abs=1e-4)
    assert found["nonbonded"] == pytest.approx(-0.539, abs=1e-3)


def test_readers_gromos():
    """Bonds and angles of function 2: k/4 (r^2 - b^2)^2 and k/2 (cos - cos0)^2."""
    found, x = energies(DATA / "gromos.top", DATA / "gromos.gro")
    bonds = [(0, 1, 0.153, 7.15e6), (1, 2, 0.153, 7.15e6), (2, 3, 0.143, 8.18e6), (3, 4, 0.1, 1.57e7)]
    angles = [(0, 1, 2, 111.0, 530.0), (1, 2, 3, 109.5, 520.0), (2, 3, 4, 109.5, 450.0)]
    stretch = sum(0.25 * k * (np.sum((x[i] - x[j]) ** 2) - b**2) ** 2 for i, j, b, k in bonds)
    bend = 0.0
    for i, j, k, degrees, force in angles:
        u, v = x[i] - x[j], x[k] - x[j]
        cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        bend += 0.5 * force * (cosine - np.cos(np.deg2rad(degrees))) ** 2
    assert found["bonds and Urey-Bradley"] == pytest.approx(stretch, abs=1e-6)
    assert found["angles"] == pytest.approx(bend, abs=1e-6)


@pytest.mark.parametrize("generate", ["yes", "no"])
@pytest.mark.parametrize("rule", [1, 2, 3])
def test_readers_pairs_of_every_rule(tmp_path, rule, generate):
    """All combination rules, with pairs from [ pairtypes ] (gen-pairs no) or from the atom types (yes)."""
    if generate == "yes":
        text, lj14 = PLAIN, mixed(rule, fudge=0.5)
    else:
        special = {frozenset(p): (0.2 + 0.01 * k, 0.1 + 0.02 * k) for k, p in enumerate(
            itertools.combinations_with_replacement(sorted(LJ), 2))}  # fmt: skip
        if rule == 1:
            special = {key: (1e-3 * v, 1e-6 * w) for key, (v, w) in special.items()}
        lines = [f"opls_{min(k)} opls_{max(k)} 1 {v!r} {w!r}" for k, (v, w) in special.items()]
        text = PLAIN.replace("[ moleculetype ]", "\n".join(["[ pairtypes ]", *lines, "[ moleculetype ]"]))
        lj14 = mixed(rule, special.items())
    if rule == 1:  # the same numbers, read as c6 and c12: nonsense as a force field, but numbers like any others
        text = re.sub(r"(opls_\w+ +\w+ +\d+ +[\d.]+ +0.0 +A) .*", lambda m: f"{m[1]} {as_c(m[0])}", text)
    found, x = from_text(tmp_path, rule_text(rule, text, generate))
    lj = mixed(rule)
    if rule == 1:
        lj, plain = scaled(lj), lj14
        lj14 = scaled(lj14) if generate == "yes" else plain
    assert found["nonbonded"] == pytest.approx(by_hand(x, lj, lj14, exclusions=()), rel=1e-5, abs=1e-3)


def as_c(line):
    v, w = line.split()[-2:]
    return f"{float(v) * 1e-3!r} {float(w) * 1e-6!r}"


def scaled(parameters):
    return lambda a, b: tuple(p * s for p, s in zip(parameters(a, b), (1e-3, 1e-6), strict=True))


@pytest.mark.parametrize("generate", ["yes", "no"])
@pytest.mark.parametrize("rule", [2, 3])
def test_readers_nonbond_params(tmp_path, rule, generate):
    """[ nonbond_params ] replace the combination rule, in pairs that gen-pairs makes too (scaled by fudgeLJ)."""
    special = {frozenset("o"): (0.36, 0.4), frozenset(("ho", "o")): (0.2, 0.1), frozenset(("c", "h")): (0.33, 0.2)}
    lines = [f"opls_{min(k)} opls_{max(k)} 1 {v} {w}" for k, (v, w) in special.items()]
    text = PLAIN.replace("[ moleculetype ]", "\n".join(["[ nonbond_params ]", *lines, "[ moleculetype ]"]))
    lj14 = mixed(rule, special.items(), fudge=0.5)
    if generate == "no":
        types = itertools.combinations_with_replacement(sorted(LJ), 2)
        text = text.replace("[ moleculetype ]", "\n".join(
            ["[ pairtypes ]", *(f"opls_{a} opls_{b} 1 0.28 0.15" for a, b in types), "[ moleculetype ]"]))  # fmt: skip
        lj14 = lambda a, b: (4 * 0.15 * 0.28**6, 4 * 0.15 * 0.28**12)  # noqa: E731
    found, x = from_text(tmp_path, rule_text(rule, text, generate))
    hand = by_hand(x, mixed(rule, special.items()), lj14, exclusions=())
    assert found["nonbonded"] == pytest.approx(hand, abs=1e-3)


def test_readers_nonbond_params_of_rule_1(tmp_path):
    """GROMOS writes every pair of types into [ nonbond_params ], as c6 and c12."""
    text = (DATA / "comb1.top").read_text()
    text = text.replace("[ pairtypes ]", "[ nonbond_params ]\nCH3 H 1 0.002 4.0e-07\n[ pairtypes ]")
    found, x = from_text(tmp_path, text, "gromos.gro")
    near, far = np.linalg.norm(x[0] - x[3]), np.linalg.norm(x[0] - x[4])
    hand = 2.5e-6 / near**12 - 0.004 / near**6 + 4e-7 / far**12 - 0.002 / far**6
    assert found["nonbonded"] == pytest.approx(hand, abs=1e-4)


def test_readers_gromacs_cmap(tmp_path):
    """A CMAP that is the same everywhere adds just that."""
    grid = " \\\n".join([" ".join(["6.5"] * 24)] * 24)
    types = f"[ cmaptypes ]\nH O C C O 1 24 24 \\\n{grid}\n[ moleculetype ]"
    text = GLYCOL.replace("[ moleculetype ]", types).replace("[ exclusions ]", "[ cmap ]\n1 2 3 6 9 1\n[ exclusions ]")
    found, _ = from_text(tmp_path, text)
    plain, _ = from_text(tmp_path, GLYCOL)
    assert found["CMAP"] == pytest.approx(6.5, abs=1e-4)
    assert found["torsions"] == pytest.approx(plain["torsions"], abs=1e-6)


@pytest.mark.parametrize("rule", [2, 3])
def test_readers_pairs_that_are_not_listed(tmp_path, rule):
    """Atoms three bonds apart that [ pairs ] leaves out do not interact, though gen-pairs is yes."""
    text = PLAIN.replace("4 7 1\n", "").replace("2 9 1\n", "")
    found, x = from_text(tmp_path, rule_text(rule, text))
    hand = by_hand(x, mixed(rule), mixed(rule, fudge=0.5), exclusions=(), unpaired=((3, 6), (1, 8)))
    assert found["nonbonded"] == pytest.approx(hand, abs=1e-3)


def test_readers_nrexcl_4(tmp_path):
    """With nrexcl 4 atoms four bonds apart do not interact either."""
    found, x = from_text(tmp_path, PLAIN.replace("EG 3", "EG 4"))
    hand = by_hand(x, mixed(3), mixed(3, fudge=0.5), nrexcl=4, exclusions=())
    assert found["nonbonded"] == pytest.approx(hand, abs=1e-3)


def torsion(x, i, j, k, m):
    b1, b2, b3 = x[j] - x[i], x[k] - x[j], x[m] - x[k]
    n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
    return np.arctan2(np.linalg.norm(b2) * (b1 @ n2), n1 @ n2)


@pytest.mark.parametrize(
    ("line", "energy"),
    [
        ("1 30.0 5.0 2", lambda p: 5.0 * (1 + np.cos(2 * p - np.deg2rad(30)))),
        ("9 30.0 5.0 2", lambda p: 5.0 * (1 + np.cos(2 * p - np.deg2rad(30)))),
        ("4 180.0 5.0 2", lambda p: 5.0 * (1 + np.cos(2 * p - np.pi))),
        ("2 40.0 12.0", lambda p: 6.0 * ((p - np.deg2rad(40) + np.pi) % (2 * np.pi) - np.pi) ** 2),
        (
            "3 1.0 2.0 3.0 -4.0 5.0 -6.0",
            lambda p: np.polynomial.polynomial.polyval(np.cos(p - np.pi), [1, 2, 3, -4, 5, -6]),
        ),
        (
            "5 2.0 3.0 4.0 5.0",
            lambda p: 0.5 * (2 * (1 + np.cos(p)) + 3 * (1 - np.cos(2 * p)) + 4 * (1 + np.cos(3 * p))
                             + 5 * (1 - np.cos(4 * p))),
        ),
    ],
    ids=["1", "9", "4", "2", "3", "5"],
)  # fmt: skip
def test_readers_dihedral_functions(tmp_path, line, energy):
    """Each function of [ dihedrals ], by its formula in GROMACS' manual, written in the line or as a type."""
    head, tail = GLYCOL.split("[ dihedrals ]")
    tail = tail[tail.index("[ exclusions ]") :]
    explicit, x = from_text(tmp_path, f"{head}[ dihedrals ]\n2 3 6 9 {line}\n{tail}")
    assert explicit["torsions"] == pytest.approx(energy(torsion(x, 1, 2, 5, 8)), abs=1e-4)
    function = line.split()[0]
    types = f"[ dihedraltypes ]\nO C C O {line}\n[ moleculetype ]"
    typed, _ = from_text(
        tmp_path, f"{head}[ dihedrals ]\n2 3 6 9 {function}\n{tail}".replace("[ moleculetype ]", types)
    )
    assert typed["torsions"] == pytest.approx(explicit["torsions"], abs=1e-6)


def test_readers_urey_bradley(tmp_path):
    """Angles of function 5: a harmonic angle and a spring between its ends."""
    text = GLYCOL.replace("1 2 3 1 108.5 460.24", "1 2 3 5 108.5 460.24 0.2 5000.0")
    plain, x = from_text(tmp_path, GLYCOL)
    found, _ = from_text(tmp_path, text)
    spring = 2500.0 * (np.linalg.norm(x[0] - x[2]) - 0.2) ** 2
    assert found["bonds and Urey-Bradley"] - plain["bonds and Urey-Bradley"] == pytest.approx(spring, abs=1e-4)
    assert found["angles"] == pytest.approx(plain["angles"], abs=1e-6)


def test_readers_includes_and_macros(tmp_path):
    """Force field and molecule in files of their own, parameters as macros, an inactive restraint."""
    head, molecule = GLYCOL.split("[ moleculetype ]")
    (tmp_path / "ff").mkdir()
    (tmp_path / "ff" / "forcefield.itp").write_text('#define HC 0.109 284512.0\n#include "nb.itp"\n')
    (tmp_path / "ff" / "nb.itp").write_text(head)
    molecule = molecule.replace("3 4 1 0.109 284512.0", "3 4 1 \\\n HC ; a macro")
    molecule = f"#ifndef ELSE\n[ moleculetype ]{molecule}\n#else\n[ nonsense ]\n#endif\n"
    found, _ = from_text(tmp_path, f'#include "ff/forcefield.itp"\n{molecule}')
    plain, _ = from_text(tmp_path, GLYCOL)
    assert found == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("columns", ["name", "number", "bonded", "both"])
def test_readers_columns_of_atom_types(tmp_path, columns):
    """[ atomtypes ] with and without bonded types and atomic numbers, charges written as 0, masses of whole numbers."""

    def line(m):
        name, bonded, number, mass, rest = m[1], m[2], m[3], m[4], m[5]
        middle = {"name": "", "number": number, "bonded": bonded, "both": f"{bonded} {number}"}[columns]
        return f"{name} {middle} {mass} 0 A {rest}"

    text = re.sub(r"^(opls_\w+) +(\w+) +(\d+) +([\d.]+) +0.0 +A (.*)$", line, GLYCOL, flags=re.M)
    text = text.replace("1.008 0 A", "1 0 A")
    assert text != GLYCOL
    found, _ = from_text(tmp_path, text)
    plain, _ = from_text(tmp_path, GLYCOL)
    assert found == pytest.approx(plain, abs=1e-6)
    topology, system, _ = load_system(tmp_path / "mol.top", DATA / "mol.gro")
    assert [a.element.symbol for a in topology.atoms()] == list("HOCHHCHHOH")
    assert system.getParticleMass(0) == 1.008 * unit.dalton  # of [ atoms ]


def test_readers_constraints_in_the_file(tmp_path):
    """[ constraints ] stand for bonds: in the Topology, among exclusions, and as constraints of the System."""
    text = GLYCOL.replace("1 2 1 0.0945 462750.4\n", "", 1)
    text = text.replace("[ pairs ]", "[ constraints ]\n1 2 1 0.0945\n[ pairs ]")
    path = tmp_path / "mol.top"
    path.write_text(text)
    topology, system, positions = load_system(path, DATA / "mol.gro")
    assert topology.getNumBonds() == 9
    assert system.getNumConstraints() == 1
    found = term_energies(system, positions.value_in_unit(unit.nanometer)[None])["nonbonded"][0]
    assert found == pytest.approx(from_text(tmp_path, GLYCOL)[0]["nonbonded"], abs=1e-4)


def test_readers_constraints_asked_for(tmp_path):
    """HBonds takes the springs of hydrogens away, and leaves the other terms as they are."""
    found, _ = energies(DATA / "excl.top", DATA / "mol.gro", constraints="HBonds", implicit_solvent="OBC2")
    plain, _ = energies(DATA / "excl.top", DATA / "mol.gro")
    for term in ("nonbonded", "angles", "torsions"):
        assert found[term] == pytest.approx(plain[term], abs=1e-6)
    assert -60 < found["implicit solvent"] < -30


MOLECULE = "[ system ]"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (MOLECULE, "[ pairs_nb ]\n1 9 1 0.1 -0.1 0.3 0.2\n[ system ]", r"line \d+: the section \[ pairs_nb \] is not"),
        (MOLECULE, "[ position_restraints ]\n1 1 9 9 9\n[ system ]", r"\[ position_restraints \] is not read"),
        (MOLECULE, "[ dihedral_restraints ]\n1 2 3 6 1 0 0 1\n[ system ]", r"\[ dihedral_restraints \] is not read"),
        (MOLECULE, "[ virtual_sites2 ]\n1 2 3 1 0.5\n[ system ]", r"\[ virtual_sites2 \] is not read"),
        (MOLECULE, "[ virtual_sitesn ]\n1 1 2 3\n[ system ]", r"\[ virtual_sitesn \] is not read"),
        (MOLECULE, "[ polarization ]\n1 2 1 0.001\n[ system ]", r"\[ polarization \] is not read"),
        (
            MOLECULE,
            "[ intermolecular_interactions ]\n1 2\n[ system ]",
            r"\[ intermolecular_interactions \] is not",
        ),
        (MOLECULE, "[ whatever ]\n1\n[ system ]", r"\[ whatever \] is not read"),
        ("4 9 1\n", "4 9 2 0.5 0.1 -0.1 0.3 0.2\n", r"line \d+: function 2 of \[ pairs \] is not read; 1 is"),
        ("1 2 1 0.0945 462750.4", "1 2 3 0.0945 400.0 20.0", r"function 3 of \[ bonds \] is not read; 1, 2 are"),
        ("1 2 3 1 108.5 460.24", "1 2 3 8 0 1", r"function 8 of \[ angles \] is not read"),
        ("2 3 6 9 3 16", "2 3 6 9 8 16", r"function 8 of \[ dihedrals \] is not read"),
        ("EG 3\n[ atoms", "EG 2\n[ atoms", r"EG has nrexcl 2"),
        ("4 9 1\n", "4 9 1\n4 9 1\n", r"the pair 4 9 of \[ pairs \] stands there twice"),
        ("4 9 1\n", "4 9 1\n1 7 1\n", r"the pair 1 7 of \[ pairs \] is not excluded"),
        ("1 3 yes 0.5 0.5", "1 3 no 0.5 0.5", r"gen-pairs is no, and \[ pairtypes \] lacks opls_ho opls_c"),
        ("1 3 yes 0.5 0.5", "2 1 yes 0.5 0.5", r"nonbonded function 2 with combination rule 1 is not read"),
        ("[ defaults ]\n1 3 yes 0.5 0.5", "", r"there is no \[ defaults \]"),
        ("3 6 9 1 109.5 418.40", "3 6 19 1 109.5 418.40", r"line \d+: there is no atom 19: the molecule has 10"),
        ("3 6 9 1 109.5 418.40", "3 6 9 1 109.5", r"line \d+: 3 6 9 1 109.5 has 1 parameters of 2"),
        ("[ atomtypes ]", "[ defaults ]\n1 2 yes 0.5 0.5\n[ atomtypes ]", r"a second \[ defaults \]"),
        ("EG 1", "EGG 1", r"there is no \[ moleculetype \] EGG"),
        ("[ defaults ]", '#include "gone.itp"\n[ defaults ]', r"line 1: the included file gone.itp is missing"),
        ("#endif", "", r"an #ifdef without #endif"),
        ("[ defaults ]", '#include "mol.top"\n#include "mol.top"\n[ defaults ]', r"include one another without end"),
        ("[ defaults ]", "#define A B B\n#define B A A\n[ defaults ]\nA", r"macros refer to one another without end"),
        ("[ defaults ]", "#if 1\n[ defaults ]", r"#if 1 is not understood"),
        ("3 opls_c  1 EGL C1", "4 opls_c  1 EGL C1", r"line \d+: atom 4 of .* EG stands at place 3: number the atoms"),
        ("1 opls_ho 1 EGL", "1 nothing 1 EGL", r"has no type of \[ atomtypes \]"),
        ("0.250 0.125520", "zero 0.125520", r"has the parameter zero"),
    ],
)
def test_readers_refuse_by_name(tmp_path, old, new, message):
    """What would be left out or guessed is refused, with section and line; it never ends in a traceback."""
    assert old in GLYCOL
    assert re.search(message, refused(tmp_path, GLYCOL.replace(old, new, 1)))


@pytest.mark.parametrize("order", [1, -1])
def test_readers_wildcards(tmp_path, order):
    """Of several types with wildcards that with the fewest is taken, whatever their order; of equals the first."""
    head, tail = GLYCOL.split("[ dihedrals ]")
    tail = tail[tail.index("[ exclusions ]") :]
    types = ["X C C X 9 0.0 9.0 3", "X C C O 9 0.0 3.0 3\nX C C O 9 180.0 2.0 2", "X X C O 9 0.0 7.0 3"][::order]
    block = "\n".join(["[ dihedraltypes ]", *types, "[ moleculetype ]"])
    found, x = from_text(tmp_path, f"{head}[ dihedrals ]\n2 3 6 9 9\n{tail}".replace("[ moleculetype ]", block))
    phi = torsion(x, 1, 2, 5, 8)
    hand = 3 * (1 + np.cos(3 * phi)) + 2 * (1 + np.cos(2 * phi - np.pi))
    assert found["torsions"] == pytest.approx(hand, abs=1e-4)


def test_readers_disagreement_is_refused(tmp_path, monkeypatch):
    """A term that the two readers see differently, for a reason that is not known, is named with both values."""
    reader = parmed.gromacs.GromacsTopologyFile.createSystem

    def other(self, *args, **options):
        system = reader(self, *args, **options)
        (force,) = [f for f in system.getForces() if isinstance(f, openmm.HarmonicAngleForce)]
        i, j, k, angle, stiffness = force.getAngleParameters(0)
        force.setAngleParameters(0, i, j, k, angle, 2 * stiffness)
        return system

    monkeypatch.setattr(parmed.gromacs.GromacsTopologyFile, "createSystem", other)
    message = refused(tmp_path, GLYCOL)
    assert re.search(r"read different energies from it: angles [\d.]+ and [\d.]+ kJ/mol", message)
    assert "SYSTEM.xml" in message


def test_a_second_moleculetype_of_one_name_is_refused(tmp_path):
    """The second one replaced the first, without its bonds."""
    start, end = GLYCOL.index("[ moleculetype"), GLYCOL.index("[ bonds")
    assert "a second [ moleculetype ] EG" in refused(
        tmp_path, GLYCOL.replace("[ system ]", GLYCOL[start:end] + "[ system ]")
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.312 0.711280\nopls_ho", "-0.312 0.711280\nopls_ho"),
        ("0.312 0.711280\nopls_ho", "0.312 -0.711280\nopls_ho"),
        ("-0.683 15.9994", "nan 15.9994"),
        ("-0.683 15.9994", "-0,683 15.9994"),
    ],
)
def test_parameters_of_atoms_that_are_no_numbers_are_refused(tmp_path, old, new):
    """A negative sigma or a NaN charge gave a nonbonded energy of NaN."""
    message = refused(tmp_path, GLYCOL.replace(old, new, 1))
    assert "has the parameter" in message
    assert "2 opls_o" in message


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert from_text(tmp_path, "\ufeff" + GLYCOL)[0] == from_text(tmp_path, GLYCOL)[0]
