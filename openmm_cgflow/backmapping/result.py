"""What backmapping gives: structures around frames of beads, with their weights."""

import logging
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import mdtraj
import numpy as np
from openmm import app

from openmm_cgflow.counts import seed_number
from openmm_cgflow.structure_checks import StructureChecks, check_structures
from openmm_cgflow.trajectory_files import save_arrays, save_trajectory
from openmm_cgflow.units import read_only

__all__ = ["Backmapped", "listed", "warn_of_failed"]

_log = logging.getLogger("openmm_cgflow")


@dataclass(frozen=True)
class Backmapped:
    """`n` all-atom structures around each of some frames of beads.

    Reweighted within each frame they are `p(atoms | beads)`: `weights`, or `resample` for one structure a frame.

    Attributes:
        positions: `(frames, n, atoms, 3)` nm, float32, every bead where it was given.
        log_densities: `(frames, n)`, `log q(atoms | beads)`, per nm^(3 (atoms - beads) - constraints of the atoms).
        reduced_energies: `(frames, n)`, `U / kT`.
        outside: `(frames,)`, whether the beads are outside the region that the flow knows: a guess is made there.
        relaxed: whether the structures were minimised; their log-densities, energies and weights are those before.
        temperature: K.
        topology: OpenMM topology of the molecule.
        reference: `(atoms, 3)` nm, the structure whose isomers are the right ones.
    """

    positions: np.ndarray
    log_densities: np.ndarray
    reduced_energies: np.ndarray
    outside: np.ndarray
    relaxed: bool
    temperature: float
    topology: app.Topology
    reference: np.ndarray

    @property
    def log_weights(self) -> np.ndarray:
        """`(frames, n)`, `-u - log q(atoms | beads)`; minus infinity for another isomer or without a finite energy.

        Their mean over a frame's structures (`exp`, mean, `log`) estimates minus the frame's free energy in kT.
        """
        return np.where(np.isfinite(self.reduced_energies), -self.reduced_energies - self.log_densities, -np.inf)

    @property
    def failed(self) -> np.ndarray:
        """`(frames,)`, whether none of the frame's structures has a finite energy: none of them is to be used."""
        return ~np.isfinite(self.log_weights).any(1)

    @cached_property
    def weights(self) -> np.ndarray:
        """`(frames, n)`, normalised within each frame, read-only; NaN in frames that `failed`."""
        log_weights = np.where(self.failed[:, None], np.nan, self.log_weights)
        weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
        return read_only(weights / weights.sum(1, keepdims=True))

    @cached_property
    def ess(self) -> np.ndarray:
        """Kish effective sample size over n in each frame, `(frames,)`, read-only; NaN in frames that `failed`."""
        return read_only(1 / (self.weights**2).sum(1) / self.weights.shape[1])

    @cached_property
    def checks(self) -> StructureChecks:
        """Chirality, peptide isomers, clashes, pierced rings and bond lengths of all structures, frame by frame."""
        return check_structures(self.topology, self.reference, self.trajectory.xyz)

    @property
    def trajectory(self) -> mdtraj.Trajectory:
        """All structures, unweighted: the n of the first frame, then those of the second, and so on; a copy."""
        x = self.positions.reshape(-1, *self.positions.shape[2:]).copy()
        return mdtraj.Trajectory(x, mdtraj.Topology.from_openmm(self.topology))

    def resample(self, seed: int = 0) -> "Backmapped":
        """One structure for each frame, drawn by its weights: an unweighted ensemble, the better the larger n.

        In frames that `failed` there is none to draw: positions are NaN there, and a warning names these frames.
        """
        warn_of_failed(self.failed, "resample", "Their structures are NaN.")
        generator = np.random.default_rng(seed_number(seed))
        cumulative = self.weights.cumsum(1)
        drawn = generator.random((len(cumulative), 1)) * cumulative[:, -1:]
        chosen = (drawn >= cumulative).sum(1, keepdims=True).clip(max=cumulative.shape[1] - 1)
        positions = np.take_along_axis(self.positions, chosen[..., None, None], 1)
        return replace(
            self,
            positions=np.where(self.failed[:, None, None, None], np.float32(np.nan), positions),
            log_densities=np.take_along_axis(self.log_densities, chosen, 1),
            reduced_energies=np.take_along_axis(self.reduced_energies, chosen, 1),
        )

    def save(self, path: str | Path) -> None:
        """Write the structures as what mdtraj writes, and densities, energies and weights as `.npz` beside them."""
        path = Path(path)
        save_trajectory(self.trajectory, path)
        save_arrays(path.with_suffix(".npz"), self.numbers() | {"temperature": np.array(self.temperature)})

    def numbers(self) -> dict[str, np.ndarray]:
        """What files keep beside the structures, by name; the checks as `check_...`."""
        names = ("log_densities", "reduced_energies", "log_weights", "weights", "outside", "failed")
        checks = {f"check_{field.name}": getattr(self.checks, field.name) for field in fields(self.checks)}
        return {name: getattr(self, name) for name in names} | checks


def warn_of_failed(failed: np.ndarray, what: str, fix: str) -> None:
    """Name the frames without any finite energy, if there are any, and what can be done."""
    if failed.any():
        _log.warning(
            "%s: in %d of %d frames no structure has a finite energy: %s. %s",
            what,
            failed.sum(),
            len(failed),
            listed(np.flatnonzero(failed).tolist()),
            fix,
        )


def listed(frames: list[int]) -> str:
    """Numbers of frames, the first ten of them."""
    return ", ".join(str(frame) for frame in frames[:10]) + (", ..." if len(frames) > 10 else "")
