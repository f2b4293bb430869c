"""The numbers of a report in words."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from openmm_cgflow.sampling import Samples, trust
from openmm_cgflow.trained import TrainedFlow
from openmm_cgflow.units import KB

if TYPE_CHECKING:
    from openmm.app import Topology

__all__ = ["duration", "summary", "torsion_labels", "trust", "versions"]


def covered(flow: TrainedFlow) -> bool | None:
    """Whether an audit found that the flow reaches every form; None where none could tell."""
    found = flow.coverage
    return found.covered if found is not None and found.conclusive else None


def coverage_rows(flow: TrainedFlow) -> list[tuple[str, str]]:
    """What an audit found, or that there was none: label and text."""
    if flow.coverage is None:
        return [("coverage", "not audited; flow.audit() or openmm-cgflow audit does")]
    return flow.coverage.rows()


def duration(seconds: float | None) -> str:
    """Seconds as a reader would say them.

    Example:
        >>> duration(75.2), duration(8.04), duration(None)
        ('1 min 15 s', '8.0 s', 'unknown')
    """
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def versions() -> str:
    """Versions of this package and of those that the numbers depend on, on one line."""
    found = []
    for name in ("openmm_cgflow", "openmm", "torch", "mdtraj", "numpy"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} (not installed as a package)")
    return ", ".join([*found, f"Python {platform.python_version()}"])


def molecule(topology: "Topology") -> str:
    """The residues of an OpenMM topology, in order, shortened where there are many."""
    names = [residue.name for residue in topology.residues()]
    return "-".join(names) if len(names) <= 12 else "-".join([*names[:10], "...", names[-1]])


def torsion_labels(flow: TrainedFlow) -> list[str]:
    """Names of the slow torsions; those that several share say their chain, and if that does not tell, their atoms."""
    names, atoms = list(flow.slow_names), list(flow.topology.atoms())
    chains = [atoms[four[1]].residue.chain.id for four in flow.slow_torsions]
    labels = [f"chain {c} {name}" if names.count(name) > 1 else name for c, name in zip(chains, names, strict=True)]
    return [
        f"{label} of atoms {', '.join(map(str, four))}" if labels.count(label) > 1 else label
        for label, four in zip(labels, flow.slow_torsions, strict=True)
    ]


def summary(flow: TrainedFlow, samples: Samples, command: str | None = None) -> list[tuple[str, str]]:
    """Every line of the report's table.

    Arguments:
        flow: a trained `CGFlow`.
        samples: `Samples` of it.
        command: the command line that made them, if there was one.

    Returns:
        Pairs of a label and a text.
    """
    provenance = flow.provenance
    evaluations = provenance.get("evaluations")
    kT = KB * samples.temperature
    rows = [
        ("molecule", molecule(flow.topology)),
        ("atoms", str(samples.positions.shape[1])),
        ("degrees of freedom", str(_degrees_of_freedom(flow))),
        ("slow torsions", ", ".join(torsion_labels(flow)) or "none"),
        ("temperature", f"{samples.temperature:g} K (kT = {kT:.4f} kJ/mol)"),
        ("training: energy evaluations", "unknown" if evaluations is None else f"{int(evaluations):,}"),
        ("training: time", duration(provenance.get("seconds"))),
        ("samples", f"{samples.n:,}"),
        ("ESS, unclipped weights", f"{100 * samples.ess:.1f} %"),
        ("ESS, largest 0.01 % of the weights clipped", f"{100 * samples.ess_clipped:.1f} %"),
        ("Pareto k-hat", f"{samples.khat:.2f}: {trust(samples.khat, samples.n, covered(flow))}"),
        *coverage_rows(flow),
        (_log_z_label(samples), f"{samples.logZ:.4f} ± {samples.logZ_error:.4f}"),
        ("versions", versions()),
    ]
    if provenance.get("machine"):
        rows.append(("trained on", str(provenance["machine"])))
    if command:
        rows.append(("command", command))
    return rows


def _log_z_label(samples: Samples) -> str:
    more = samples.log_labellings
    one = f"; one labelling of equivalent atoms: add {more:.4f} for all" if more else ""
    return f"log Z (internal coordinates, nm and rad{one})"


def _degrees_of_freedom(flow: TrainedFlow) -> int:
    """3 for each atom, less the rigid motion and the constraints."""
    return 3 * flow.topology.getNumAtoms() - 6 - flow.system.getNumConstraints()
