"""What `slow="auto"` finds: the free energy along every rotatable torsion of five molecules, and its basins.

    python examples/slow_variables.py

Exits with code 1 where the slow torsions are not those that the molecule is known for.
"""

import argparse
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import openmm_cgflow as cgf
from openmm_cgflow.inputs import System, load_system

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
KNOWN = {
    "alanine dipeptide": ["ALA2:phi", "ALA2:psi"],
    "butane": ["LIG1:C1-C2-C3-C4"],
    "Ace-Val-Nme": ["VAL2:phi", "VAL2:psi", "VAL2:chi1"],
    "biphenyl": ["LIG1:C1-C6-C7-C8"],
    "nicotine": ["LIG1:N1-C5-C6-C10"],
}
"""Molecules, and their slow torsions; nicotine's five-ring puckers as well."""


def load(name: str) -> System:
    """A peptide in implicit solvent (ff96 and OBC1, or amber14 and OBC2), or a ligand with GAFF2 in vacuum."""
    if name == "alanine dipeptide":
        pdb = ROOT / "openmm_cgflow" / "data" / "alanine_dipeptide.pdb"
        return load_system(pdb, forcefield=["amber96.xml"], implicit_solvent="OBC1")
    if name == "Ace-Val-Nme":
        return load_system(DATA / "VAL.pdb", forcefield=["amber14-all.xml"], implicit_solvent="OBC2")
    return load_system(DATA / f"{name}.prmtop", DATA / f"{name}.inpcrd")


def draw(scans: dict[str, cgf.SlowScan]) -> plt.Figure:
    """The profiles, a panel for each molecule."""
    figure, axes = plt.subplots(1, len(scans), figsize=(3.2 * len(scans), 3.2), layout="constrained", sharey=True)
    for axis, (name, scan) in zip(axes, scans.items(), strict=True):
        for torsion in scan.torsions:
            (line,) = axis.plot(np.degrees(torsion.angles), torsion.free_energy, label=torsion.name.split(":")[1])
            axis.plot(*zip(*((np.degrees(a), e) for a, e in torsion.basins), strict=True), "o", color=line.get_color())
        axis.set(title=name, xlabel="degrees", xticks=range(-180, 181, 90), ylim=(-2, 60))
        axis.legend(fontsize="small")
    axes[0].set_ylabel("free energy, kJ/mol")
    return figure


def main() -> None:
    """Scan, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, default=Path("slow_variables.png"))
    options = parser.parse_args()
    scans, wrong = {}, []
    for name, expected in KNOWN.items():
        start = time.monotonic()
        scans[name] = scan = cgf.scanTorsions(*load(name), temperature=300)
        right = sorted(scan.slow_names) == sorted(expected)
        print(f"{name}, {time.monotonic() - start:.0f} s{'' if right else ': NOT AS EXPECTED'}\n{scan}\n", flush=True)
        wrong += [] if right else [name]
    draw(scans).savefig(options.figure, dpi=150)
    print(f"figure: {options.figure}")
    if wrong:
        sys.exit(f"other slow torsions than expected: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
