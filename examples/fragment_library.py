"""Make the library of fragments that ships with the package: free energies of capped residues, from energies alone.

    python examples/fragment_library.py --cache fragments -o openmm_cgflow/data/fragments.safetensors

Each of Ace-X-Nme, X = Ala, Gly, Pro, Val, is trained (amber14, OBC2, 300 K; no structures; `--only` has more); its
free energy over phi and psi and its angle N-CA-C are reweighted averages over samples of the flow. Trained fragments
are kept in the cache, and the same command goes on where it stopped. Templates of side chains are the minimised
Ace-X-Nme of `tests/data`; variants of protonation have hydrogens added by OpenMM and are minimised too.
"""

import argparse
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import torch
from openmm import app, unit

import openmm_cgflow as cgf
from openmm_cgflow.analysis import free_energy_2d
from openmm_cgflow.inputs import load_system
from openmm_cgflow.proteins import FragmentLibrary, local_template

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
EVALUATIONS = {"ALA": 800_000, "GLY": 500_000, "PRO": 1_600_000, "VAL": 800_000, "ALA_PRO": 1_500_000}
VARIANTS = {"HIS": ("HID", "HIE", "HIP"), "CYS": ("CYS", "CYX"), "ASP": ("ASP", "ASH"), "GLU": ("GLU", "GLH")}
VARIANTS |= {"LYS": ("LYS", "LYN")}
AMINO_ACIDS = [
    *("ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE"),
    *("LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL"),
]
SAMPLES, BINS, CAP = 60_000, 72, 60.0
NARROWEST = 0.1  # rad, of the kernel


def sampled(name: str, evaluations: int, cache: Path) -> dict[str, np.ndarray]:
    """Backbone torsions and angle of the first residue, with weights; trained if they are not there yet."""
    path = cache / f"{name}.npz"
    if not path.exists():
        flow = cgf.CGFlow(*load_system(DATA / f"{name}.pdb", forcefield=["amber14-all.xml"], implicit_solvent="OBC2"))
        flow.train(evaluations=evaluations, audit=False)
        flow.save(cache / f"{name}.cgflow")
        samples = flow.sample(SAMPLES, seed=1)
        trajectory = samples.trajectory
        places = [{atom.name: atom.index for atom in residue.atoms} for residue in trajectory.topology.residues]
        inner = [[names["N"], names["CA"], names["C"]] for names in places if "CA" in names]
        np.savez(
            path,
            phi=mdtraj.compute_phi(trajectory)[1],
            psi=mdtraj.compute_psi(trajectory)[1],
            theta=mdtraj.compute_angles(trajectory, np.array(inner)),
            log_weights=samples.log_weights,
            ess=samples.ess,
            evaluations=flow.provenance["evaluations"],
        )
    with np.load(path) as data:
        return dict(data)


def tables(name: str, data: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Free energy over phi and psi, kJ/mol, and mean and deviation of N-CA-C, rad."""
    weights = np.exp(data["log_weights"] - data["log_weights"].max())
    weights = np.minimum(weights, np.sort(weights)[-max(2, len(weights) // 5000)])
    found = free_energy_2d(data["phi"][:, 0], data["psi"][:, 0], 300.0, weights, bins=BINS, width=NARROWEST)
    energy = np.minimum(found.smooth, CAP)
    theta = data["theta"][:, 0]
    mean = np.average(theta, weights=weights)
    spread = np.sqrt(np.average((theta - mean) ** 2, weights=weights))
    print(f"{name}: ESS {100 * float(data['ess']):.1f} %, N-CA-C {np.degrees(mean):.1f} +- {np.degrees(spread):.1f}")
    return torch.as_tensor(energy), torch.tensor([mean, spread])


def template(name: str, variant: str) -> tuple[list[str], torch.Tensor]:
    """Names and places of a side chain in its residue's frame."""
    pdb = app.PDBFile(str(DATA / f"{name}.pdb"))
    field = app.ForceField("amber14-all.xml", "implicit/obc2.xml")
    modeller = app.Modeller(pdb.topology, pdb.positions)
    if variant != name:
        gone = [a for a in modeller.topology.atoms() if a.element.symbol == "H" and a.residue.name == name]
        modeller.delete(gone)
        modeller.addHydrogens(field, variants=[None, variant, None])
    x = np.array(modeller.positions.value_in_unit(unit.nanometer))
    if variant not in (name, "CYX"):
        context = openmm.Context(field.createSystem(modeller.topology), openmm.VerletIntegrator(0.001))
        context.setPositions(modeller.positions)
        openmm.LocalEnergyMinimizer.minimize(context, 0.1)
        x = context.getState(positions=True).getPositions(asNumpy=True)._value
    residue = next(r for r in modeller.topology.residues() if r.name == name)
    return local_template({atom.name: x[atom.index] for atom in residue.atoms()}, name == "PRO")


def main() -> None:
    """Train what is not trained yet, and write the library."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("fragments"))
    parser.add_argument("-o", "--output", type=Path, default=Path("fragments.safetensors"))
    parser.add_argument("--only", nargs="*", default=list(EVALUATIONS)[:4], choices=EVALUATIONS, help="fragments")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    energies, angles, provenance = {}, {}, {}
    for name, evaluations in EVALUATIONS.items():
        if name not in options.only:
            continue
        data = sampled(name, evaluations, options.cache)
        key = name.replace("_", "-")
        energies[key], angles[key] = tables(name, data)
        provenance[key] = {"ess": float(data["ess"]), "evaluations": int(data["evaluations"]), "samples": SAMPLES}
    templates, atoms = {}, {}
    for name in AMINO_ACIDS:
        for variant in VARIANTS.get(name, (name,)):
            atoms[variant], templates[variant] = template(name, variant)
    provenance = {"force field": "amber14-all.xml, implicit/obc2.xml", "fragments": provenance}
    FragmentLibrary(energies, angles, templates, atoms, 300.0, provenance).save(options.output)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
