"""Train a library of fragments: what backmapping of proteins knows of residues, learned from a force field's energies.

    python examples/train_fragment_library.py -o ff14SB.safetensors
    python examples/train_fragment_library.py --forcefield amber19-all.xml -o ff19SB.safetensors
    python examples/train_fragment_library.py --forcefield charmm36.xml -o charmm36.safetensors

Ace-X-Nme is built and trained for every residue, protonation variant and charged end. The same command goes on where it
was interrupted. Beside the library there are flows of its side chains, and a page with free energies and figures.
With `--quick` (what CI runs): three residues, a fifteenth of the energies.
"""

import argparse
from pathlib import Path

import openmm_cgflow as cgf

_LEAST = 0.4  # of 80 % with a fifteenth of the energies


def main() -> None:
    """Read the command line, train, say what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("fragments.safetensors"))
    parser.add_argument("--forcefield", nargs="+", default=["amber14-all.xml"])
    parser.add_argument("--solvent", default="implicit/obc2.xml")
    parser.add_argument("--fragments", nargs="+", help="names, such as ALA GLY PRO HIP; all by default")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of energies")
    parser.add_argument("--quick", action="store_true", help="ALA, GLY and PRO, with a fifteenth of the energies")
    options = parser.parse_args()
    fragments, share = (["ALA", "GLY", "PRO"], 0.06) if options.quick else (options.fragments, options.share)
    library = cgf.FragmentLibrary.train(options.forcefield, options.solvent, options.out, fragments, share=share)
    figures = library.provenance["fragments"]
    for name, done in figures.items():
        print(f"{name:8s} ESS {100 * done['ess']:5.1f} %, atoms given the backbone {100 * done['conditional']:5.1f} %")
    if figures["ALA"]["conditional"] < _LEAST:
        raise SystemExit(f"alanine's atoms given the backbone have an ESS below {100 * _LEAST:.0f} %")
    print(f"{options.out} and {options.out.stem}.report/report.html")


if __name__ == "__main__":
    main()
