"""The residues that can be built: their names, variants, side-chain torsions and grids of them."""

from itertools import product

import numpy as np

__all__ = [
    "CHI",
    "GRIDS",
    "ONE_LETTER",
    "OTHER_NAMES",
    "PUBLIC_NAMES",
    "REFUSED",
    "VARIANTS",
    "grid_of",
    "hydrogens_of_n",
]

ONE_LETTER = {
    **{"A": "ALA", "R": "ARG", "N": "ASN", "D": "ASP", "C": "CYS", "Q": "GLN", "E": "GLU", "G": "GLY", "H": "HIS"},
    **{"I": "ILE", "L": "LEU", "K": "LYS", "M": "MET", "F": "PHE", "P": "PRO", "S": "SER", "T": "THR", "W": "TRP"},
    **{"Y": "TYR", "V": "VAL"},
}

VARIANTS = {"HIS": "HIE"}
"""What a residue is if nobody says more; those that are not named are what they are called."""

PUBLIC_NAMES = {"HID": "HIS", "HIE": "HIS", "HIP": "HIS", "CYX": "CYS", "ASH": "ASP", "GLH": "GLU", "LYN": "LYS"}
"""Names in the Topology that is built, of which OpenMM tells the variant by the hydrogens that are there."""

OTHER_NAMES = {
    **{"HSD": "HID", "HSE": "HIE", "HSP": "HIP", "CYS2": "CYX", "ASPH": "ASH", "GLUH": "GLH", "LSN": "LYN"},
    **{"HISD": "HID", "HISE": "HIE", "HISH": "HIP", "ASPP": "ASH", "GLUP": "GLH", "ASP0": "ASH", "GLU0": "GLH"},
    **{"MSE": "MET"},
}
"""Other programs' names of residues, and those that are built as their nearest kin (which is told)."""

_D_FORMS = [
    "DAL",
    "DAR",
    "DSG",
    "DAS",
    "DCY",
    "DGN",
    "DGL",
    "DHI",
    "DIL",
    "DLE",
    "DLY",
    "MED",
    "DPN",
    "DPR",
    "DSN",
    "DTH",
    "DTR",
    "DTY",
    "DVA",
]

REFUSED = {
    **dict.fromkeys(
        _D_FORMS, "a D-amino acid, of which there is no template; leave its chain out, or build it by hand"
    ),
    **{"NLE": "norleucine, which amber14 does not have; rename it LEU, MET or LYS to have that built in its place"},
    **{"ACE": "a cap without an alpha carbon; leave its bead out: termini are built charged"},
    **{"NME": "a cap without an alpha carbon; leave its bead out: termini are built charged"},
    **{"NH2": "a cap without an alpha carbon; leave its bead out: termini are built charged"},
    **{"SEP": "phosphoserine, of which there is no template; rename it SER to have that built in its place"},
    **{"TPO": "phosphothreonine, of which there is no template; rename it THR to have that built in its place"},
    **{"PTR": "phosphotyrosine, of which there is no template; rename it TYR to have that built in its place"},
    **{"HYP": "hydroxyproline, of which there is no template; rename it PRO to have that built in its place"},
}
"""Residues that are no standard ones, and what can be done about each."""

CHI: dict[str, list[tuple[str, str, str, str]]] = {
    "ARG": [("N", "CA", "CB", "CG"), ("CA", "CB", "CG", "CD"), ("CB", "CG", "CD", "NE"), ("CG", "CD", "NE", "CZ")],
    "ASN": [("N", "CA", "CB", "CG"), ("CA", "CB", "CG", "OD1")],
    "ASP": [("N", "CA", "CB", "CG"), ("CA", "CB", "CG", "OD1")],
    "CYS": [("N", "CA", "CB", "SG"), ("CA", "CB", "SG", "HG")],
    "CYX": [("N", "CA", "CB", "SG")],
    "GLN": [("N", "CA", "CB", "CG"), ("CA", "CB", "CG", "CD"), ("CB", "CG", "CD", "OE1")],
    "GLU": [("N", "CA", "CB", "CG"), ("CA", "CB", "CG", "CD"), ("CB", "CG", "CD", "OE1")],
    "HIS": [("N", "CA", "CB", "CG"), ("CA", "CB", "CG", "ND1")],
    "ILE": [("N", "CA", "CB", "CG1"), ("CA", "CB", "CG1", "CD1")],
    "LEU": [("N", "CA", "CB", "CG"), ("CA", "CB", "CG", "CD1")],
    "LYS": [("N", "CA", "CB", "CG"), ("CA", "CB", "CG", "CD"), ("CB", "CG", "CD", "CE"), ("CG", "CD", "CE", "NZ")],
    "MET": [("N", "CA", "CB", "CG"), ("CA", "CB", "CG", "SD"), ("CB", "CG", "SD", "CE")],
    "PHE": [("N", "CA", "CB", "CG"), ("CA", "CB", "CG", "CD1")],
    "SER": [("N", "CA", "CB", "OG"), ("CA", "CB", "OG", "HG")],
    "THR": [("N", "CA", "CB", "OG1"), ("CA", "CB", "OG1", "HG1")],
    "TRP": [("N", "CA", "CB", "CG"), ("CA", "CB", "CG", "CD1")],
    "TYR": [("N", "CA", "CB", "CG"), ("CA", "CB", "CG", "CD1"), ("CE1", "CZ", "OH", "HH")],
    "VAL": [("N", "CA", "CB", "CG1")],
}
"""Torsions of side chains that turn, the one nearest to the backbone first (IUPAC's chi, and those of hydroxyls)."""
for _variant, _name in PUBLIC_NAMES.items():
    CHI.setdefault(_variant, CHI[_name])

_STAGGERED = (60.0, 180.0, -60.0)
_AMIDE = (-120.0, -60.0, 0.0, 60.0, 120.0, 180.0)
_ACID = (-60.0, -15.0, 30.0, 75.0)
_RING = (30.0, 90.0, 150.0)
_FLAT = (-150.0, -90.0, -30.0, 30.0, 90.0, 150.0)

GRIDS: dict[str, list[tuple[float, ...]]] = {
    "ARG": [_STAGGERED, _STAGGERED, _STAGGERED, (180.0, 85.0, -85.0)],
    "ASN": [_STAGGERED, _AMIDE],
    "ASP": [_STAGGERED, _ACID],
    "CYS": [_STAGGERED, _STAGGERED],
    "CYX": [_STAGGERED],
    "GLN": [_STAGGERED, _STAGGERED, _AMIDE],
    "GLU": [_STAGGERED, _STAGGERED, _ACID],
    "HIS": [_STAGGERED, _FLAT],
    "ILE": [_STAGGERED, _STAGGERED],
    "LEU": [_STAGGERED, _STAGGERED],
    "LYS": [_STAGGERED] * 4,
    "MET": [_STAGGERED] * 3,
    "PHE": [_STAGGERED, _RING],
    "SER": [_STAGGERED, _STAGGERED],
    "THR": [_STAGGERED, _STAGGERED],
    "TRP": [_STAGGERED, _FLAT],
    "TYR": [_STAGGERED, _RING, (0.0, 180.0)],
    "VAL": [_STAGGERED],
}
"""Degrees at which each torsion is tried: minima of bare rotors, a few to a flat one; no library of structures."""
for _variant, _name in PUBLIC_NAMES.items():
    GRIDS.setdefault(_variant, GRIDS[_name])


def grid_of(variant: str) -> np.ndarray:
    """All combinations of a residue's torsions that are tried, `(candidates, torsions)` rad."""
    grids = GRIDS.get(variant, [])
    rows = list(product(*grids))
    return np.radians(np.array(rows, dtype=float).reshape(len(rows), len(grids)))


def hydrogens_of_n(variant: str, first: bool) -> list[str]:
    """Names of the hydrogens on a residue's nitrogen, as OpenMM has them."""
    if first:
        return ["H2", "H3"] if variant == "PRO" else ["H", "H2", "H3"]
    return [] if variant == "PRO" else ["H"]
