"""What minutes of training give for capped amino acids (amber14, OBC2) and drug-like ligands (GAFF2, vacuum).

    python examples/benchmarks/molecules.py ARG LYS ibuprofen                     # four minutes each
    python examples/benchmarks/molecules.py --time 60 butane
    python examples/benchmarks/molecules.py --all --evaluations 800000 --seeds 0 1 2 --json molecules.json

Prints a row for each molecule and seed as it ends; the structures are those of `tests/data`. A budget of
evaluations gives the same training on a slow machine as on a fast one. With `--json` each row is written as it is made,
and the same command goes on where it stopped.
"""

import argparse
import json
from pathlib import Path

import openmm_cgflow as cgf
from openmm_cgflow.inputs import System, load_system

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
AMINO_ACIDS = [
    *("ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE"),
    *("LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL"),
]
LIGANDS = ["butane", "pentanenitrile", "biphenyl", "caffeine", "nicotine", "camphor", "ibuprofen", "lidocaine"]
SAMPLES = 5000


def load(name: str) -> System:
    """Ace-X-Nme or a ligand, as above."""
    if name in LIGANDS:
        return load_system(DATA / f"{name}.prmtop", DATA / f"{name}.inpcrd")
    return load_system(DATA / f"{name}.pdb", forcefield=["amber14-all.xml"], implicit_solvent="OBC2")


def row_of(name: str, seed: int, budget: dict[str, float]) -> dict:
    """Train one molecule with one seed; what came of it."""
    flow = cgf.CGFlow(*load(name), seed=seed)
    flow.train(progress=False, **budget)
    samples = flow.sample(SAMPLES, seed=seed)
    n_slow, _, n_rotor, _ = flow.coordinates.sizes
    return {
        "name": name,
        "seed": seed,
        "budget": budget,
        "atoms": flow.coordinates.n_atoms,
        "dof": flow.coordinates.dof,
        "slow": n_slow,
        "rotors": n_rotor,
        "n": SAMPLES,
        "ess": samples.ess,
        "ess_clipped": samples.ess_clipped,
        "khat": samples.khat,
        "evaluations": flow.provenance["evaluations"],
        "seconds": flow.provenance["seconds"],
    }


def main() -> None:
    """Train each molecule with each seed and print its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", help="all 20 amino acids and all ligands")
    parser.add_argument("--time", type=float, help="seconds of training each; 240 if neither limit is given")
    parser.add_argument("--evaluations", type=int, help="energies of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--json", type=Path, help="rows are kept there, and those that are there already are not repeated"
    )
    options = parser.parse_args()
    names = [*AMINO_ACIDS, *LIGANDS] if options.all else options.names
    limits = {"time": options.time, "evaluations": options.evaluations}
    budget = {name: value for name, value in limits.items() if value is not None} or {"time": 240}
    rows = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    done = {(row["name"], row["seed"]): row for row in rows if row["budget"] == budget}
    print("molecule         seed atoms  dof  slow rotors  ESS %  clipped  k-hat  evaluations  seconds", flush=True)
    for name in names:
        for seed in options.seeds:
            row = done.get((name, seed))
            if row is None:
                row = row_of(name, seed, budget)
                rows.append(row)
                if options.json:
                    temporary = options.json.with_suffix(".tmp")
                    temporary.write_text(json.dumps(rows, indent=1) + "\n")
                    temporary.replace(options.json)
            print(
                f"{name:16s} {seed:4d} {row['atoms']:5d} {row['dof']:4d} {row['slow']:5d} {row['rotors']:6d} "
                f"{100 * row['ess']:6.1f} {100 * row['ess_clipped']:8.1f} {row['khat']:6.2f} "
                f"{row['evaluations']:12,d} {row['seconds']:8.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
