"""CHARMM psf, coordinates and parameters: OpenMM's reader, checked by parmed's and by a sum over pairs."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from openmm_cgflow.chemistry.elements import correct_elements
from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.inputs.pairs import pair_energy, pairs_within
from openmm_cgflow.inputs.parts import Kinds, System, read, refuse_water
from openmm_cgflow.inputs.readings import NONBONDED, Difference, differences, disagreement, term_energies
from openmm_cgflow.inputs.solvent import without_known
from openmm_cgflow.inputs.structure import read_structure

__all__ = ["from_charmm"]

_log = logging.getLogger("openmm_cgflow")

KCAL, ANGSTROM = 4.184, 0.1  # kJ/mol, nm
MASSES = re.compile(r"^\s*MASS\b", re.M)
SECTIONS = (
    *("ATOM", "BOND", "ANGL", "THETA", "DIHE", "PHI", "IMPR", "IMPH", "CMAP", "NONB", "NBON", "NBFIX", "HBON", "THOLE"),
    *("END", "RETURN", "READ"),
)
HEADER = re.compile(r"^\s*(\d+)(?:\s+(\d+))?\s*!\s*(\w+)")


def from_charmm(kinds: Kinds, solvent: object, constraints: object) -> System:
    """Read a CHARMM psf with its parameters and structure.

    Raises:
        InvalidInputError: for what cannot be read, and for terms that two readings disagree about.
    """
    path, parameters = kinds["psf"][0], kinds["parameters"]
    if not parameters:
        raise InvalidInputError(f"{path} needs CHARMM parameter files (.prm, .rtf, .str) beside it: name them too")
    _refuse_sections(path)
    texts = {file: _text(file) for file in parameters}
    for file, text in texts.items():
        _refuse_options(file, text)
    parameters = sorted(parameters, key=lambda file: not MASSES.search(texts[file]))  # types before what is of them
    psf = _read_psf(path)
    known = read(parameters[0], lambda: app.CharmmParameterSet(*map(str, parameters)))
    _refuse_lost_pairs(texts, psf, known)
    refuse_water(psf.topology)
    x = read_structure(kinds["positions"][0], psf.topology)
    options = {"nonbondedMethod": app.NoCutoff, "implicitSolvent": solvent, "sasaMethod": "ACE"}
    structure = _by_parmed(path, parameters)
    system = _with_impropers(path, read(path, lambda: psf.createSystem(known, **options)), structure)
    if structure is None:
        _refuse_impropers(path, psf, texts)
    else:
        _compare(path, structure, known, system, psf.topology, solvent, x)
    if constraints is not None:
        psf = _read_psf(path)
        options |= {"constraints": constraints, "flexibleConstraints": False}
        system = _with_impropers(path, read(path, lambda: psf.createSystem(known, **options)), structure)
    return psf.topology, system, x * unit.nanometer


def _read_psf(path: Path) -> app.CharmmPsfFile:
    """OpenMM's reader, which takes the elements from the masses."""
    psf = read(path, lambda: app.CharmmPsfFile(str(path)))
    correct_elements(psf.topology, [atom.mass.value_in_unit(unit.dalton) for atom in psf.atom_list])
    return psf


def _refuse_sections(path: Path) -> None:
    """Refuse what the readers of a psf pass over, or what has sites without mass."""
    lines = read(path, lambda: path.read_text(errors="replace").splitlines())
    counts: dict[str, int] = {}
    for line in lines:
        found = HEADER.match(line)
        if found:
            counts[found[3].upper()] = int(found[1])
    if lines and "DRUDE" in lines[0].upper().split():
        raise InvalidInputError(
            f"{path} is of the polarizable Drude force field, whose particles follow the atoms without being atoms: "
            "build the psf with the additive force field (CHARMM36, CGenFF)"
        )
    _refuse_names(path, lines)
    if counts.get("NUMLP"):
        raise InvalidInputError(
            f"{path} has {counts['NUMLP']} lone pairs (NUMLP), sites without mass that are not sampled: build the psf "
            "without them"
        )
    if counts.get("NNB"):
        raise InvalidInputError(
            f"{path} has {counts['NNB']} explicit nonbonded exclusions (NNB), which OpenMM and parmed pass over: build "
            "the psf without them, or give a SYSTEM.xml with a PDB file"
        )


def _refuse_names(path: Path, lines: list[str]) -> None:
    """OpenMM tells Drude particles and lone pairs by their names, and leaves their bonds out."""
    start = next((k for k, line in enumerate(lines) if "!NATOM" in line.upper()), len(lines))
    for line in lines[start + 1 :]:
        words = line.upper().split()
        if len(words) < 8:
            return
        name = words[4]
        if name.startswith(("D", "LP")) or name == "OM":
            kind = "Drude particle" if name[0] == "D" else "lone pair"
            raise InvalidInputError(
                f"{path}: atom {words[0]} is named {name}, as if it were a {kind} (names that begin with D or LP, and "
                "OM): give it another name in the psf and the coordinate file"
            )


def _text(path: Path) -> str:
    """A file of parameters in capitals, without comments."""
    return re.sub(r"!.*", "", read(path, lambda: path.read_text(errors="replace"))).upper()


def _section(text: str, begins: str) -> list[list[str]]:
    """The words of each line in the sections whose header begins so."""
    lines, inside = [], False
    for line in text.splitlines():
        words = line.split()
        if words and words[0].startswith(SECTIONS):
            inside = words[0].startswith(begins)
        elif words and inside:
            lines.append(words)
    return lines


def _refuse_lost_pairs(texts: dict[Path, str], psf: app.CharmmPsfFile, known: app.CharmmParameterSet) -> None:
    """Refuse NBFIX of types of the molecule that OpenMM's reader has passed over."""
    used = {_type_name(atom.attype, known) for atom in psf.atom_list}
    for path, text in texts.items():
        for words in _section(text, "NBFIX"):
            if len(words) < 4 or not all(map(_is_number, words[2:4])):
                continue
            first, second = ([name for name in used if _pattern(word).fullmatch(name.upper())] for word in words[:2])
            for a in first:
                for b in second:
                    kind = known.atom_types_str.get(a) or known.atom_types_str.get(a.upper())
                    if kind is None or b.upper() not in map(str.upper, kind.nbfix):
                        raise InvalidInputError(
                            f"{path}: NBFIX of {words[0]} and {words[1]} would be lost, as OpenMM does not read it: "
                            f"write a line for {a} and {b}, after the lines that define these types"
                        )


def _type_name(kind: str | int, known: app.CharmmParameterSet) -> str:
    """The name of an atom's type, which old psf files give by its number."""
    number = int(kind) if str(kind).isdecimal() else None
    return known.atom_types_int[number].name if number in known.atom_types_int else str(kind)


def _pattern(word: str) -> re.Pattern[str]:
    """CHARMM's wildcards: `*` any letters, `%` one letter, `#` any digits, `+` one digit."""
    wild = {"*": ".*", "%": ".", "#": r"\d*", "+": r"\d"}
    return re.compile("".join(wild.get(letter, re.escape(letter)) for letter in word))


def _is_number(word: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([ED][-+]?\d+)?", word) is not None


def _refuse_impropers(path: Path, psf: app.CharmmPsfFile, texts: dict[Path, str]) -> None:
    """Refuse impropers with a multiplicity that no other reader has put right; see `_with_impropers`."""
    if not psf.improper_list:
        return
    for file, text in texts.items():
        for words in _section(text, "IMPR"):
            if len(words) > 5 and _is_number(words[4]) and words[5].isdecimal() and int(words[5]):
                raise InvalidInputError(
                    f"{file} has impropers with a multiplicity ({' '.join(words[:6])}), which OpenMM takes for "
                    f"harmonic ones, and parmed cannot read {path} with these files: give a SYSTEM.xml with a PDB file"
                )


def _refuse_options(path: Path, text: str) -> None:
    """Refuse a dielectric that is not 1, and geometric sizes of pairs: the readers pass over them."""
    for header in re.findall(r"^\s*(?:NONB|NBON)\w*((?:.*-\s*\n)*.*)$", text, re.M):
        words = header.replace("-\n", " ").split()
        if any(word.startswith("GEOM") for word in words):
            raise InvalidInputError(
                f"{path}: the NONBONDED line asks for geometric means of the sizes of atoms (GEOM, as of OPLS), which "
                "OpenMM does not read: give a SYSTEM.xml with a PDB file, or the files of another program"
            )
        value = words[words.index("EPS") + 1] if "EPS" in words[:-1] else "1"
        if "RDIE" in words or "RDIEL" in words or float(value) != 1.0:
            raise InvalidInputError(
                f"{path}: the NONBONDED line asks for a dielectric other than 1 (EPS {value}"
                f"{', RDIE' if 'RDIE' in words or 'RDIEL' in words else ''}), which is not read: set EPS 1.0 CDIE, or "
                "give a SYSTEM.xml with a PDB file"
            )


def _by_parmed(path: Path, parameters: list[Path]) -> Any:  # noqa: ANN401  (parmed has no types)
    """The Structure of parmed with its parameters; None, with a line in the log, where parmed cannot read the files."""
    import parmed

    try:
        structure = read(path, lambda: parmed.charmm.CharmmPsfFile(str(path)))
        known = read(parameters[0], lambda: parmed.charmm.CharmmParameterSet(*map(str, parameters)))
        read(path, lambda: structure.load_parameters(known))
        structure.box = None
    except InvalidInputError as error:
        _log.info("%s (parmed), so OpenMM's reading was not checked by a second reader", error)
        return None
    return structure


def _with_impropers(path: Path, system: openmm.System, structure: Any) -> openmm.System:  # noqa: ANN401
    """The System with parmed's impropers if some have a multiplicity: OpenMM's reader takes all for harmonic ones."""
    periodic = [d for d in structure.dihedrals if d.improper] if structure is not None else []
    if not periodic:
        return system
    for k in reversed(range(system.getNumForces())):
        if isinstance(system.getForce(k), openmm.CustomTorsionForce):
            system.removeForce(k)
    force = openmm.PeriodicTorsionForce()
    for d in periodic:
        atoms = [atom.idx for atom in (d.atom1, d.atom2, d.atom3, d.atom4)]
        force.addTorsion(*atoms, int(d.type.per), np.deg2rad(d.type.phase), d.type.phi_k * KCAL)
    system.addForce(force)
    if structure.impropers:
        system.addForce(structure.omm_improper_force())
    _log.info("%s: %d impropers have a multiplicity, which parmed reads and OpenMM does not", path, len(periodic))
    return system


def _compare(
    path: Path, structure: Any, known: app.CharmmParameterSet, system: openmm.System, topology: app.Topology,  # noqa: ANN401
    solvent: object, x: np.ndarray,
) -> None:  # fmt: skip
    """Refuse what two readings differ in: the second is parmed's, or a sum over pairs where parmed makes no System."""
    try:
        read(path, structure.createSystem)
    except InvalidInputError as error:
        _log.info("%s (parmed), so only the pairs of OpenMM's reading were checked", error)
        _judge(path, structure, known, system, [], x)
        return
    second = read(path, lambda: structure.createSystem(implicitSolvent=solvent, useSASA=True))
    found = without_known(path, differences(system, second, x), topology, solvent)
    if found:
        _judge(path, structure, known, system, found, x)


def _judge(
    path: Path, structure: Any, known: app.CharmmParameterSet, system: openmm.System, found: list[Difference],  # noqa: ANN401
    x: np.ndarray,
) -> None:  # fmt: skip
    """Refuse what differs from parmed, but for pairs, about which a sum over them by CHARMM's rules decides."""
    if any(difference.term != NONBONDED for difference in found):
        raise disagreement(path, "OpenMM's reader and parmed", found)
    by_hand = _nonbonded_energy(structure, known, x)
    energy = float(term_energies(system, x[None])[NONBONDED][0])
    if not np.isclose(energy, by_hand, rtol=1e-4, atol=0.01, equal_nan=True):
        found = [Difference(NONBONDED, (energy, by_hand))]
        raise disagreement(path, "OpenMM's reader and a sum over all pairs by CHARMM's rules", found)
    if found:
        _log.info("%s: %s, the second by parmed; the first was checked by hand and is used", path, found[0])


def _nonbonded_energy(structure: Any, known: app.CharmmParameterSet, x: np.ndarray) -> float:  # noqa: ANN401
    """Coulomb and Lennard-Jones energy by CHARMM's rules, kJ/mol.

    NBXMOD 5: atoms one or two bonds apart do not interact; three apart: with E14FAC and the parameters for 1-4 pairs,
    NBFIX before those of the types. 4 leaves out 1-4 pairs, 3 and below keep more, without special parameters.

    Arguments:
        structure: parmed's, with types.
        known: OpenMM's parameters, for NBXMOD and E14FAC alone.
        x: `(atoms, 3)`, nm.
    """
    atoms = structure.atoms
    n_atoms, mode = len(atoms), abs(known.nbxmod)
    near = pairs_within(n_atoms, [(b.atom1.idx, b.atom2.idx) for b in structure.bonds], 3)
    products, c6, c12 = np.zeros((3, n_atoms, n_atoms))
    for i in range(n_atoms):
        for j in range(i + 1, n_atoms):
            steps = near.get((i, j), 4)
            if steps < (3 if mode == 5 else mode):
                continue
            special = steps == 3 and mode == 5
            r_min, depth = _lennard_jones(atoms[i].atom_type, atoms[j].atom_type, special)
            products[i, j] = atoms[i].charge * atoms[j].charge * (known.e14fac if special else 1.0)
            c6[i, j], c12[i, j] = 2 * depth * r_min**6, depth * r_min**12
    return pair_energy(x, products, c6, c12)


def _lennard_jones(first: Any, second: Any, special: bool) -> tuple[float, float]:  # noqa: ANN401
    """Distance (nm) and depth (kJ/mol) of the minimum for two types."""
    if second.name in first.nbfix:
        r_min, depth, r_min_14, depth_14 = first.nbfix[second.name]
        r_min, depth = (r_min_14, depth_14) if special and r_min_14 is not None else (r_min, depth)
    elif special:
        r_min, depth = first.rmin_14 + second.rmin_14, np.sqrt(first.epsilon_14 * second.epsilon_14)
    else:
        r_min, depth = first.rmin + second.rmin, np.sqrt(first.epsilon * second.epsilon)
    return r_min * ANGSTROM, abs(depth) * KCAL
