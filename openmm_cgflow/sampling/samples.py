"""Independent samples with importance weights, and what can be computed from them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import torch

from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.sampling.weights import clip_log_weights, effective_sample_size, log_mean_exp, pareto_k

__all__ = ["Samples"]


@dataclass(frozen=True)
class Samples:
    """`n` independent samples of a flow with the weights that make them Boltzmann samples.

    Attributes:
        positions: `(n, atoms, 3)` nm, float32; of vectors `(n, dim)`.
        log_weights: `(n,)`, `-u(x) - log q(x)`; minus infinity where the energy is not finite.
        reduced_energies: `(n,)`, `U / kT`.
        log_densities: `(n,)`, `log q(x)` per nm^(3 atoms - 6), rigid motion taken out, as `CGFlow.logDensity` gives.
        slow: `(n, n_slow)` slow torsions in radians.
        temperature: K.
        topology: OpenMM topology of the molecule; None for vectors.
        slow_names: names of the slow torsions.
    """

    positions: np.ndarray
    log_weights: np.ndarray
    reduced_energies: np.ndarray
    log_densities: np.ndarray
    slow: np.ndarray
    temperature: float
    topology: Any
    slow_names: tuple[str, ...]

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.log_weights)

    def __len__(self) -> int:
        return self.n

    @cached_property
    def _log_weights(self) -> torch.Tensor:
        return torch.as_tensor(self.log_weights, dtype=torch.float64)

    @cached_property
    def weights(self) -> np.ndarray:
        """Normalised weights `(n,)`."""
        return torch.softmax(self._log_weights, 0).numpy()

    @cached_property
    def ess(self) -> float:
        """Kish effective sample size over n, from unclipped weights."""
        return effective_sample_size(self._log_weights)

    @cached_property
    def ess_clipped(self) -> float:
        """Kish effective sample size over n after clipping the largest 1e-4 of the weights (at least one)."""
        return effective_sample_size(clip_log_weights(self._log_weights)) if self.n > 1 else self.ess

    @cached_property
    def khat(self) -> float:
        """Pareto k-hat of the weights: above 0.7 they are not to be trusted; NaN for too few samples."""
        return pareto_k(self._log_weights)

    @property
    def trustworthy(self) -> bool:
        """Whether k-hat is known and at most 0.7 (arXiv 1507.02646)."""
        return bool(self.khat <= 0.7)

    @cached_property
    def logZ(self) -> float:
        """Log configuration integral over internal coordinates, nm and rad, rigid motion taken out."""
        return log_mean_exp(self._log_weights)[0]

    @cached_property
    def logZ_error(self) -> float:
        """Standard error of `logZ`."""
        return log_mean_exp(self._log_weights)[1]

    def reweight(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boltzmann average of an observable.

        Arguments:
            values: `(n, ...)`, the observable of each sample, in any unit.

        Returns:
            the self-normalised average and its standard error, each of shape `(...)`.

        Raises:
            InvalidInputError: if `values` does not have one row for each sample.
        """
        values = np.asarray(values, dtype=np.float64)
        if values.ndim == 0 or len(values) != self.n:
            raise InvalidInputError(
                f"reweight: values has shape {values.shape}, but there are {self.n} samples; give one row for each."
            )
        weights = self.weights.reshape(-1, *[1] * (values.ndim - 1))
        mean = (weights * values).sum(0)
        return mean, np.sqrt((weights**2 * (values - mean) ** 2).sum(0))

    def resample(self, n: int, seed: int = 0) -> np.ndarray:
        """Indices `(n,)` of samples drawn by their weights, with replacement: an unweighted Boltzmann ensemble."""
        return np.random.default_rng(seed).choice(self.n, size=n, p=self.weights)

    @property
    def trajectory(self) -> mdtraj.Trajectory:
        """The samples, in their order and unweighted, as an mdtraj trajectory; a copy at each call.

        Raises:
            InvalidInputError: for samples of vectors.
        """
        if self.topology is None:
            raise InvalidInputError("these samples are vectors, of no molecule: save them as .npz.")
        return mdtraj.Trajectory(self.positions.copy(), mdtraj.Topology.from_openmm(self.topology))

    def save(self, path: str | Path) -> None:
        """Write all as `.npz`, or frames as what mdtraj writes (`.dcd`, `.pdb`) and weights as `.npz` beside it."""
        path = Path(path)
        if path.suffix != ".npz":
            self.trajectory.save(str(path))
        arrays: dict[str, Any] = {
            "log_weights": self.log_weights,
            "reduced_energies": self.reduced_energies,
            "log_densities": self.log_densities,
            "slow": self.slow,
            "slow_names": np.array(self.slow_names, dtype=str),
            "temperature": np.array(self.temperature),
        }
        if path.suffix == ".npz":
            arrays["positions"] = self.positions
        np.savez_compressed(path.with_suffix(".npz"), **arrays)

    def __repr__(self) -> str:
        trust = "" if self.trustworthy else " (weights not to be trusted)"
        return (
            f"Samples(n={self.n}, ess={self.ess:.3f}, ess_clipped={self.ess_clipped:.3f}, "
            f"logZ={self.logZ:.3f}+-{self.logZ_error:.3f}, khat={self.khat:.2f}{trust})"
        )
