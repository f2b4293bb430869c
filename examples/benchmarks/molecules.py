"""What four minutes of training give for capped amino acids (amber14, OBC2) and drug-like ligands (GAFF2, vacuum).

    python examples/benchmarks/molecules.py ARG LYS ibuprofen      # or --all; 4 minutes each
    python examples/benchmarks/molecules.py --time 60 butane

Prints a table row for each molecule as it ends; the molecules are those of `tests/molecules.py`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import openmm_cgflow as cgf

from molecules import AMINO_ACIDS, LIGANDS, load  # isort: skip  (the tests' own)


def main() -> None:
    """Train each molecule and print its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", help="all 20 amino acids and all ligands")
    parser.add_argument("--time", type=float, default=240, help="seconds of training each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = [*AMINO_ACIDS, *LIGANDS] if options.all else options.names
    print(f"{'molecule':16s} atoms  dof  slow rotors  ESS %  clipped  k-hat  evaluations  seconds", flush=True)
    for name in names:
        flow = cgf.CGFlow(*load(name), seed=options.seed)
        flow.train(time=options.time, progress=False)
        samples = flow.sample(5000, seed=options.seed)
        n_slow, _, n_rotor, _ = flow.coordinates.sizes
        print(
            f"{name:16s} {flow.coordinates.n_atoms:5d} {flow.coordinates.dof:4d} {n_slow:5d} {n_rotor:6d} "
            f"{100 * samples.ess:6.1f} {100 * samples.ess_clipped:8.1f} {samples.khat:6.2f} "
            f"{flow.provenance['evaluations']:12,d} {flow.provenance['seconds']:8.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
