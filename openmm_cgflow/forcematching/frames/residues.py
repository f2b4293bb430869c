"""What is known of amino acids: masses of beads whose atoms are gone, and the types of beads."""

from collections.abc import Mapping, Sequence

from openmm import app

from openmm_cgflow.errors import InvalidInputError

__all__ = ["bead_types", "residue_name", "residue_parts"]

_CODES = {
    **{"A": "ALA", "R": "ARG", "N": "ASN", "D": "ASP", "C": "CYS", "Q": "GLN", "E": "GLU", "G": "GLY", "H": "HIS"},
    **{"I": "ILE", "L": "LEU", "K": "LYS", "M": "MET", "F": "PHE", "P": "PRO", "S": "SER", "T": "THR", "W": "TRP"},
    **{"Y": "TYR", "V": "VAL"},
}
# Average masses of residues within a chain, dalton
_MASSES = {
    **{"ALA": 71.08, "ARG": 156.19, "ASN": 114.10, "ASP": 115.09, "CYS": 103.14, "GLN": 128.13, "GLU": 129.12},
    **{"GLY": 57.05, "HIS": 137.14, "ILE": 113.16, "LEU": 113.16, "LYS": 128.17, "MET": 131.19, "PHE": 147.18},
    **{"PRO": 97.12, "SER": 87.08, "THR": 101.10, "TRP": 186.21, "TYR": 163.18, "VAL": 99.13},
    **{"ACE": 43.04, "NME": 30.05, "NLE": 113.16},
}
# Other names of the same, by protonation or by a disulfide; what a proton weighs does not matter here
_ALIASES = {
    **dict.fromkeys(("HID", "HIE", "HIP", "HSD", "HSE", "HSP"), "HIS"),
    **dict.fromkeys(("CYX", "CYM"), "CYS"),
    **{"ASH": "ASP", "GLH": "GLU", "LYN": "LYS", "MSE": "MET", "NMA": "NME"},
}
_PARTS = {"N": 15.01, "C": 28.01}  # NH and CO


def residue_name(code: str) -> str:
    """The name of a residue by its one-letter code or its own.

    Raises:
        InvalidInputError: it is no amino acid.
    """
    name = _CODES.get(code, code).upper()
    if name not in _MASSES:
        raise InvalidInputError(f"the sequence has {code!r}; give one-letter codes, or names such as ALA, ACE or NME")
    return name


def residue_parts(residue: str, beads: Sequence[str]) -> Mapping[str, float]:
    """Masses of the beads of one amino acid, dalton; none for what is no amino acid, or other beads.

    Arguments:
        residue: its name.
        beads: their names: CA, with or without N and C; the only one of a cap.

    Example:
        >>> residue_parts("ALA", ["CA"])
        {'CA': 71.08}
    """
    residue = _ALIASES.get(residue.upper(), residue.upper())
    mass = _MASSES.get(residue)
    if mass is None or len(set(beads)) < len(beads):
        return {}
    if len(beads) == 1 and (beads[0] == "CA" or residue in ("ACE", "NME")):
        return {beads[0]: mass}
    if not set(beads) <= {"N", "CA", "C"} or "CA" not in beads:
        return {}
    parts = {name: _PARTS[name] for name in beads if name != "CA"}
    return parts | {"CA": mass - sum(parts.values())}


def bead_types(topology: app.Topology) -> list[str]:
    """The type of each bead: residue and name, such as `"ALA:CA"`; how a residue is protonated makes no difference.

    Arguments:
        topology: of the beads.

    Example:
        >>> from openmm_cgflow.forcematching import BeadModel
        >>> bead_types(BeadModel.fromSequence("GAHH").topology)
        ['GLY:CA', 'ALA:CA', 'HIS:CA', 'HIS:CA']
    """
    residues = [atom.residue.name.upper() for atom in topology.atoms()]
    return [f"{_ALIASES.get(name, name)}:{atom.name}" for name, atom in zip(residues, topology.atoms(), strict=True)]
