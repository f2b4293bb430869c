"""`openmm-cgflow demo` measured: the whole command's time, and the ESS of 10,000 samples of its model.

    python examples/benchmarks/demo.py --seed 0 --json demo.json
    python examples/benchmarks/demo.py --evaluations 1000000        # the same training on any machine

Exits with 1 if the ESS is below `--least` (a share).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import openmm_cgflow as cgf

SAMPLES = 10_000


def main() -> None:
    """Run the command, load its model, sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time", type=float, help="seconds of training; as long as `demo` takes if left out")
    parser.add_argument("--evaluations", type=int, help="energies of the training, instead")
    parser.add_argument("--least", type=float, default=0.0)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = ["demo", "--out", folder, "--seed", str(options.seed)]
        for name in ("time", "evaluations"):
            if getattr(options, name) is not None:
                command += [f"--{name}", str(getattr(options, name))]
        start = time.monotonic()
        program = "from openmm_cgflow.cli import main; main()"
        subprocess.run([sys.executable, "-c", program, *command], check=True)
        seconds = time.monotonic() - start
        flow = cgf.CGFlow.load(Path(folder) / "model.cgflow")
    samples = flow.sample(SAMPLES, seed=options.seed)
    figures = {
        "seed": options.seed,
        "n": SAMPLES,
        "ess": samples.ess,
        "ess_clipped": samples.ess_clipped,
        "khat": samples.khat,
        "log_z": samples.logZ,
        "evaluations": flow.provenance["evaluations"],
        "training_seconds": flow.provenance["seconds"],
        "seconds": seconds,
    }
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if samples.ess < options.least:
        sys.exit(f"ESS {samples.ess:.3f} is below {options.least}")


if __name__ == "__main__":
    main()
