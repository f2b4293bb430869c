"""Atoms around the beads of somebody else's frames, without a frame of all atoms.

    python examples/backmap_frames.py
    python examples/backmap_frames.py --frames 5000 --samples 20000 --output atoms.dcd

The frames are of five beads of alanine dipeptide in explicit water (ff99SB-ILDN, see data/README.md); there are no
atoms in them. The atoms come from a flow that was trained on the energies of another force field in implicit solvent
(ff96, OBC1), and never saw a frame. A density of the beads is fitted to the frames, and joined with the flow's density
of the atoms: structures of all atoms can be drawn, and their log-density is known, so that they can be weighed. Exits
with 1 where the weights do not give the configuration integral of the flow's System, which does not depend on where
the beads come from.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import openmm_cgflow as cgf
from openmm_cgflow.forcematching import BeadModel, FitSettings, fit_beads

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Fit, join, sample, weigh."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1000, help="of the 10,000 that there are")
    parser.add_argument("--samples", type=int, default=5000, help="structures of all atoms")
    parser.add_argument("--output", type=Path, help="write them there, for instance atoms.dcd")
    options = parser.parse_args()
    with np.load(HERE / "data" / "ala2_explicit.npz") as data:
        frames = data["frames"][:: max(1, len(data["frames"]) // options.frames)].astype(float)
    flow = cgf.CGFlow.load(HERE / "models" / "aldp.cgflow")
    model = BeadModel.fromTopology(flow.topology, flow.coordinates.bead_atoms)
    fitted = fit_beads(frames, model, settings=FitSettings(members=2))
    print(f"a density of {model.n_beads} beads from {len(frames):,} frames, in {fitted.seconds:.0f} s")

    joined = flow.withBeads(fitted)
    samples = joined.sample(options.samples, seed=0)
    own = flow.sample(options.samples, seed=0)
    phi = flow.coordinates.bead_coordinates().to_internal(flow.compute.tensor(frames))[0][:, 0].cpu().numpy()
    print("phi > 0, %:")
    for label, share in (
        ("the frames of the beads", np.mean(np.sin(phi) > 0)),
        ("structures with atoms around such beads", np.mean(np.sin(samples.slow[:, 0]) > 0)),
        ("the same, weighed: the flow's System", samples.weights @ (np.sin(samples.slow[:, 0]) > 0)),
        ("the flow's own samples, weighed", own.weights @ (np.sin(own.slow[:, 0]) > 0)),
    ):
        print(f"  {label:42s}{100 * share:6.2f}")
    off = (samples.logZ - own.logZ) / np.hypot(samples.logZ_error, own.logZ_error)
    print("log of the configuration integral of the flow's System (in nm and rad), by the weights")
    print(f"  beads of the frames {samples.logZ:9.3f} +- {samples.logZ_error:.3f}, ESS {100 * samples.ess:.0f} %")
    print(f"  the flow's own      {own.logZ:9.3f} +- {own.logZ_error:.3f}, ESS {100 * own.ess:.0f} %")

    around = flow.backmap(fitted.sample(100, seed=1), n=8, seed=0)
    print("eight structures around each of a hundred frames of the beads, weighed within each frame")
    print(f"  ESS within a frame     {100 * np.nanmean(around.ess):.0f} % on average")
    for label, text in around.checks.summary():
        print(f"  {label:22s} {text}")
    if options.output:
        samples.save(options.output)
    if abs(off) > 4:
        sys.exit(f"the two configuration integrals are {abs(off):.1f} standard errors apart")


if __name__ == "__main__":
    main()
