"""Alanine dipeptide in implicit solvent, from its System to basin populations, without a trajectory.

    python examples/alanine_dipeptide.py                      # train for seven minutes, then sample
    python examples/alanine_dipeptide.py --reference          # and compare with replica exchange
    python examples/alanine_dipeptide.py --model demo/model.cgflow --reference

The reference is `references/aldp_obc1.json`, made by `batched_replica_exchange.py` there: molecular dynamics of many
independent ladders, whose scatter gives its errors. The comparison fails (exit code 1) if any population is more than
three standard errors away.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np

import openmm_cgflow as cgf
from openmm_cgflow.inputs import load_system

HERE = Path(__file__).resolve().parent
PDB = HERE.parent / "openmm_cgflow" / "data" / "alanine_dipeptide.pdb"

BASINS = ("C7eq/C5", "alpha_R", "alpha_L/C7ax")


def basins(slow: np.ndarray) -> np.ndarray:
    """Which of the `BASINS` phi and psi `(n, 2)`, rad, are in, `(n,)`: the ridges of ff96 with OBC1 lie between."""
    phi, psi = (np.degrees(slow).T + 180) % 360 - 180
    return np.where((phi >= 0) & (phi < 125), 2, np.where((psi >= -125) & (psi < 10), 1, 0))


def trained(seconds: float, seed: int) -> cgf.CGFlow:
    """A flow trained for so many seconds on ff96 with OBC1, the System of openmmtools' AlanineDipeptideImplicit."""
    topology, system, positions = load_system(PDB, forcefield=["amber96.xml"], implicit_solvent="OBC1")
    return cgf.CGFlow(topology, system, positions, temperature=300, slow=["phi", "psi"], seed=seed).train(time=seconds)


def populations(samples: cgf.Samples) -> dict[str, tuple[float, float]]:
    """Reweighted population of each basin and its standard error."""
    labels = basins(samples.slow)
    mean, error = samples.reweight(np.stack([labels == k for k in range(len(BASINS))], axis=1))
    return {name: (mean[k], error[k]) for k, name in enumerate(BASINS)}


def compare(ours: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Print ours beside replica exchange; standard errors between them, by basin."""
    reference = json.loads((HERE / "references" / "aldp_obc1.json").read_text())
    length, ladders = reference["ns_each_replica"], reference["ladders"]
    print(f"\nreference: {length:.2f} ns in {ladders} ladders of {len(reference['temperatures'])} temperatures, MBAR")
    print(f"{'basin':14s} {'flow':>20s} {'replica exchange':>20s} {'difference':>14s}")
    away = {}
    for name, (mean, error) in ours.items():
        theirs = reference["populations_all_temperatures"][name]
        their_error = reference["errors_all_temperatures"][name]
        away[name] = (mean - theirs) / math.hypot(error, their_error)
        print(f"{name:14s} {mean:9.5f} +- {error:7.5f} {theirs:9.5f} +- {their_error:7.5f} {away[name]:+8.2f} s.e.")
    return away


def main() -> None:
    """Train or load, sample, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a trained model, instead of training one")
    parser.add_argument("--time", type=float, default=420, help="seconds of training")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", action="store_true", help="compare with replica exchange")
    parser.add_argument("--json", type=Path, help="write the populations there")
    options = parser.parse_args()
    flow = cgf.CGFlow.load(options.model) if options.model else trained(options.time, options.seed)
    samples = flow.sample(options.samples, seed=options.seed)
    print(samples)
    print(f"{flow.provenance['evaluations']:,} energy evaluations and {flow.provenance['seconds']:.0f} s of training")
    ours = populations(samples)
    for name, (mean, error) in ours.items():
        print(f"{name:14s} {mean:9.5f} +- {error:7.5f}")
    away = compare(ours) if options.reference else {}
    if options.json:
        found = {name: {"population": p, "error": e, "away": away.get(name)} for name, (p, e) in ours.items()}
        options.json.write_text(json.dumps({"n": options.samples, "basins": found}, indent=1) + "\n")
    if any(abs(errors) > 3 for errors in away.values()):
        sys.exit("populations differ from replica exchange by more than three standard errors")


if __name__ == "__main__":
    main()
