#!/usr/bin/env bash
# A molecule of your own, from its PDB file to a page with its free energies, in three commands and some five minutes:
#
#     bash examples/own_molecule.sh                 # Ace-Ser-Nme
#     bash examples/own_molecule.sh MOL.pdb out     # another one, of amber14's residues
#
# In a fresh virtual environment it installs the package first. EVALUATIONS=20000 makes the training a short one.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
pdb=${1:-$root/tests/data/SER.pdb} out=${2:-own_molecule}
budget=(--time 180)
[[ -z ${EVALUATIONS:-} ]] || budget=(--evaluations "$EVALUATIONS")

command -v openmm-cgflow > /dev/null || pip install "$root[torchforce]"
mkdir -p "$out"
openmm-cgflow train "$pdb" --forcefield amber14-all.xml --implicit-solvent OBC2 "${budget[@]}" -o "$out/molecule.cgflow"
openmm-cgflow report "$out/molecule.cgflow" --out "$out/report"
echo "open $out/report/report.html"
