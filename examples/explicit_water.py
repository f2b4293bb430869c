"""A flow that was trained in implicit solvent, as a static bias in explicit water.

    python examples/explicit_water.py --quick --json quick.json    # 10 ps of two methods: does it run?
    python examples/explicit_water.py                              # three runs of 2 ns of each: five hours

Alanine dipeptide (ff96) in some 120 TIP3P waters, PME, 4 fs with heavy hydrogens, 300 K. `createForce(scale=-1,
atoms=flow.findAtoms(topology))` adds minus the free energy of phi and psi that the shipped flow has of OBC1 to the
periodic System: dynamics then crosses the barriers freely, and reweighting gives the free energy in water, whatever
the difference between the solvents. Beside it, with as many steps: dynamics without a bias, `openmm.app.Metadynamics`,
OPES (`pip install openmm-opes`, left out if it is not there), and both of them starting from the flow's bias.

Printed for each method, as means over the runs with their standard errors: the error of the free energy over phi, and
how often phi changed sides in a nanosecond. The error is a root mean square over the bins below 20 kJ/mol; a bin
without a frame counts as 20 kJ/mol, and the error over the bins with frames stands beside it. Each method's free energy
is its own estimate: frames reweighted for the flow's bias, what `getFreeEnergy` gives for metadynamics and OPES. They
are held against two runs more, in which minus the mean of metadynamics' free energies over phi is a static bias, and
frames are reweighted: no kernel makes the flanks of the wells less steep there. The runs are kept in `--json FILE`,
with what is printed, and those that are there are not done again. `--figure FILE` draws the free energies.
"""

import argparse
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

import openmm_cgflow as cgf

HERE = Path(__file__).resolve().parent
PDB = HERE.parent / "openmm_cgflow" / "data" / "alanine_dipeptide.pdb"
REFERENCE = "static bias over phi"
METHODS = ("unbiased", "flow", "metadynamics", "flow, then metadynamics", "OPES", "flow, then OPES")
KELVIN, STEP, EVERY = 300.0, 0.004, 50  # K, ps, steps between frames
KT = 0.00831446261815324 * KELVIN
GRID, BINS, HIGHEST = 73, 36, 20.0  # points of the bias, bins of phi; kJ/mol
PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)


def solvated() -> tuple[app.Topology, openmm.System, Any]:
    """The molecule in a small box of water."""
    pdb = app.PDBFile(str(PDB))
    field = app.ForceField("amber96.xml", "tip3p.xml")
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(field, boxSize=openmm.Vec3(1.62, 1.62, 1.62) * unit.nanometer)
    system = field.createSystem(
        modeller.topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=0.75 * unit.nanometer,
        constraints=app.HBonds,
        hydrogenMass=3 * unit.amu,
    )
    return modeller.topology, system, modeller.positions


class Run:
    """One run of one method.

    Arguments:
        method: of `METHODS`, or `REFERENCE`.
        flow: whose free energy is the bias.
        seed: of velocities and noise.
        curve: for the reference, the free energy over phi of which minus is the bias, kJ/mol.
    """

    def __init__(self, method: str, flow: cgf.CGFlow, seed: int, curve: np.ndarray | None = None) -> None:
        topology, system, positions = solvated()
        atoms = flow.findAtoms(topology)
        self.torsions = [[atoms[k] for k in torsion] for torsion in (PHI, PSI)]
        self.bias_group, self.flow_on_grid = 10, on_grid(flow)
        static = None
        if method.startswith("flow"):
            static = flow.createForce("tabulated", scale=-1, atoms=atoms)
        elif curve is not None:
            static = bias_of_phi(curve, self.torsions[0])
        if static is not None:
            static.setForceGroup(self.bias_group)
            system.addForce(static)
        self.has_bias = static is not None
        self.sampler = None
        if "metadynamics" in method:
            meta = app.Metadynamics(system, self.variables(0.35), KELVIN, biasFactor=8, height=1.0, frequency=125)
            self.sampler = meta
        elif "OPES" in method:
            from openmm_opes import OPES

            self.sampler = OPES(
                system,
                self.variables(0.15),
                temperature=KELVIN * unit.kelvin,
                barrier=40 * unit.kilojoules_per_mole,
                frequency=125,
                varianceFrequency=None,
                biasFactor=10,
            )
        integrator = openmm.LangevinMiddleIntegrator(KELVIN, 1.0, STEP)
        integrator.setRandomNumberSeed(seed)
        platform = openmm.Platform.getPlatformByName("CPU")
        self.simulation = app.Simulation(topology, system, integrator, platform, {"Threads": "1"})
        self.simulation.context.setPositions(positions)
        self.simulation.minimizeEnergy()
        self.simulation.context.setVelocitiesToTemperature(KELVIN, seed)
        self.simulation.step(2500)  # 10 ps for the water
        self.method, self.phi, self.bias = method, [], []

    def variables(self, width: float) -> list[app.BiasVariable]:
        """Phi and psi, as OpenMM's samplers take them."""
        made = []
        for torsion in self.torsions:
            angle = openmm.CustomTorsionForce("theta")
            angle.addTorsion(*torsion, [])
            made.append(app.BiasVariable(angle, -np.pi, np.pi, width, True, GRID))
        return made

    def frames(self, n: int) -> None:
        """Take `n` frames, a fifth of a picosecond apart."""
        context = self.simulation.context
        for _ in range(n):
            if self.sampler is None:
                self.simulation.step(EVERY)
            else:
                self.sampler.step(self.simulation, EVERY)
            x = context.getState(positions=True).getPositions(asNumpy=True)._value
            molecule = x[np.array(self.torsions)]
            self.phi.append(float(dihedral(molecule[0])))
            bias = 0.0
            if self.has_bias:
                state = context.getState(energy=True, groups={self.bias_group})
                bias = state.getPotentialEnergy()._value
            self.bias.append(bias)

    def free_energy(self) -> np.ndarray:
        """Of phi in `BINS` bins, `-kT log p`, kJ/mol; infinite where no frame was."""
        if self.sampler is None:
            weights, edges = np.exp(np.array(self.bias) / KT), np.linspace(-np.pi, np.pi, BINS + 1)
            share = np.histogram(self.phi, edges, weights=weights)[0]
        else:
            surface = self.sampler.getFreeEnergy()
            surface = np.array(surface / unit.kilojoules_per_mole if unit.is_quantity(surface) else surface)
            if self.method.startswith("flow"):
                surface += self.flow_on_grid
            density = np.exp(-(surface - surface.min()) / KT)[:-1, :-1]  # psi, phi; the last point is the first again
            at_points = density.sum(0)
            share = (0.5 * (at_points + np.roll(at_points, -1))).reshape(BINS, -1).sum(1)  # of the intervals between
        with np.errstate(divide="ignore"):
            return -KT * np.log(share / share.sum())


def bias_of_phi(curve: np.ndarray, phi: list[int]) -> openmm.Force:
    """Minus a free energy in `BINS` bins of phi, kJ/mol, as a smooth force."""
    at_edges = 0.5 * (curve + np.roll(curve, 1))
    force = openmm.CustomCompoundBondForce(4, "-curve(dihedral(p1, p2, p3, p4))")
    force.addTabulatedFunction(
        "curve", openmm.Continuous1DFunction(np.append(at_edges, at_edges[0]), -np.pi, np.pi, True)
    )
    force.addBond(phi, [])
    return force


def on_grid(flow: cgf.CGFlow) -> np.ndarray:
    """The flow's free energy where metadynamics has its own, `(psi, phi)`, kJ/mol."""
    axis = np.linspace(-np.pi, np.pi, GRID)
    psi, phi = np.meshgrid(axis, axis, indexing="ij")
    return flow.freeEnergy(np.stack([phi, psi], axis=-1).reshape(-1, 2))._value.reshape(GRID, GRID)


def dihedral(x: np.ndarray) -> float:
    """The torsion of four atoms, rad."""
    b1, b2, b3 = np.diff(x, axis=0)
    n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
    return np.arctan2(np.linalg.norm(b2) * (b1 @ n2), n1 @ n2)


def changes(phi: np.ndarray) -> int:
    """How often phi went from its usual side to the other one, or back."""
    side = np.where((phi > 0.5) & (phi < 1.7), 1, np.where((phi < -0.7) & (phi > -2.8), 0, -1))
    side = side[side >= 0]
    return int(np.abs(np.diff(side)).sum())


def error(free: np.ndarray, reference: np.ndarray, visited: bool) -> float:
    """Root mean square over the bins where the reference is low, kJ/mol.

    Arguments:
        free: of a run, infinite in bins without a frame.
        reference: kJ/mol.
        visited: whether bins without a frame are left out; else they count as 20 kJ/mol.
    """
    low = reference - reference.min() < HIGHEST
    if visited:
        low &= np.isfinite(free)
    if not low.any():
        return np.nan
    difference = np.where(np.isfinite(free), free, HIGHEST)[low] - reference[low]
    return float(np.sqrt(((difference - difference.mean()) ** 2).mean()))


def curve_of(run: dict) -> np.ndarray:
    """The free energy over phi that a run found, kJ/mol; infinite where no frame was."""
    free = np.array([np.inf if value is None else value for value in run["free_energy"]])
    return free - free.min()


def reference_of(runs: dict[str, dict]) -> np.ndarray | None:
    """The free energy of the runs with a static bias over phi, taken together; None if there are none yet."""
    curves = [curve_of(run) for name, run in runs.items() if name.startswith(REFERENCE)]
    if not curves:
        return None
    shares = [np.exp(-curve / KT) / np.exp(-curve / KT).sum() for curve in curves]
    with np.errstate(divide="ignore"):
        free = -KT * np.log(np.mean(shares, axis=0))
    return free - free.min()


def summary(runs: dict[str, dict]) -> dict[str, dict]:
    """What was found, method by method: a list of one number a run."""
    curves, found = {name: curve_of(run) for name, run in runs.items()}, {}
    reference = reference_of(runs)
    for method in METHODS:
        own = [name for name in runs if name.rpartition("/")[0] == method]
        if not own:
            continue
        errors = {
            what: [error(curves[name], reference, visited) for name in own if reference is not None]
            for what, visited in (("errors", False), ("errors_where_visited", True))
        }
        found[method] = {
            **{what: [value for value in values if np.isfinite(value)] for what, values in errors.items()},
            "picoseconds": [runs[name]["picoseconds"] for name in own],
            "changes_per_ns": [1000 * runs[name]["changes"] / runs[name]["picoseconds"] for name in own],
        }
    return found


def table(found: dict[str, dict]) -> None:
    """Print a summary."""
    print("method                     runs  ps each   error, kJ/mol   in bins visited   changes of phi per ns")
    for method, row in found.items():
        errors, inside, changed = (with_error(row[k]) for k in ("errors", "errors_where_visited", "changes_per_ns"))
        runs, picoseconds = len(row["picoseconds"]), np.mean(row["picoseconds"])
        print(f"{method:26s} {runs:4d} {picoseconds:8.0f}   {errors:15s} {inside:17s} {changed}")


def with_error(values: list[float]) -> str:
    """The mean, with its standard error if there are several values."""
    if not values:
        return ""
    error = f" +- {np.std(values, ddof=1) / np.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{error}"


def draw(runs: dict[str, dict], path: Path) -> None:
    """The free energies over phi: each run's, method by method, beside the reference."""
    from matplotlib.figure import Figure

    methods = [method for method in METHODS if any(name.startswith(f"{method}/") for name in runs)]
    phi = np.degrees(-np.pi + 2 * np.pi * (np.arange(BINS) + 0.5) / BINS)
    reference = reference_of(runs)
    columns, rows = min(3, len(methods)), -(-len(methods) // 3)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, method in zip(panels.flat, methods, strict=False):
        if reference is not None:
            axes.plot(phi, reference, color="0.7", lw=4, label="reference")
        for name, run in runs.items():
            if name.startswith(f"{method}/"):
                axes.plot(phi, curve_of(run), lw=1, label=f"run {name.rpartition('/')[2]}")
        axes.set(title=method, xlim=(-180, 180), ylim=(0, 40), xticks=(-180, -90, 0, 90, 180))
    figure.supxlabel("phi, degrees")
    figure.supylabel("free energy, kJ/mol")
    panels[0, 0].legend(fontsize="x-small", loc="upper center")
    figure.savefig(path, dpi=120)


def write(runs: dict[str, dict], path: Path) -> None:
    """Keep the runs, and what was found, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"runs": runs, "methods": summary(runs)}, indent=1) + "\n")
    temporary.replace(path)


def main() -> None:
    """Do what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of 10 ps of two methods")
    parser.add_argument("--picoseconds", type=float, default=2000.0, help="of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--references", type=int, nargs="*", default=[1, 2], help="seeds of the static bias over phi")
    parser.add_argument("--methods", nargs="+", default=[name for name in METHODS if "OPES" not in name or have_opes()])
    parser.add_argument("--model", type=Path, default=HERE / "models" / "aldp.cgflow")
    parser.add_argument("--json", type=Path, default=Path("explicit_water.json"), help="where the runs are kept")
    parser.add_argument("--figure", type=Path, help="a picture of the free energies")
    options = parser.parse_args()
    if options.quick:
        options.picoseconds, options.seeds, options.methods = 10.0, [1], ["flow", "metadynamics"]
        options.references = [1]
    flow = cgf.CGFlow.load(options.model)
    runs = json.loads(options.json.read_text()).get("runs") if options.json.exists() else {}
    if runs is None or any(run["picoseconds"] != options.picoseconds for run in runs.values()):
        parser.error(f"{options.json} has no runs of {options.picoseconds:g} ps: give another --json")
    wanted = [(method, seed) for seed in options.seeds for method in options.methods]
    for method, seed in [*wanted, *((REFERENCE, seed) for seed in options.references)]:
        name = f"{method}/{seed}"
        if name not in runs:
            of_phi = [curve_of(run) for name, run in runs.items() if name.startswith("metadynamics/")]
            if method == REFERENCE and not of_phi:
                continue  # its bias is not known
            curve = np.mean(of_phi, axis=0) if method == REFERENCE else None
            begun, run = time.monotonic(), Run(method, flow, seed, curve)
            run.frames(round(options.picoseconds / (EVERY * STEP)))
            free = [float(v) if np.isfinite(v) else None for v in run.free_energy()]
            runs[name] = {
                "picoseconds": options.picoseconds,
                "free_energy": free,
                "changes": changes(np.array(run.phi)),
                "seconds": round(time.monotonic() - begun),
            }
            write(runs, options.json)
            print(f"{name}: {runs[name]['changes']} changes of phi, {runs[name]['seconds']} s", flush=True)
    write(runs, options.json)
    table(summary(runs))
    if options.figure is not None:
        draw(runs, options.figure)


def have_opes() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("openmm_opes") is not None


if __name__ == "__main__":
    main()
