"""Independent samples with importance weights, and what can be computed from them."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import torch
from openmm import unit

from openmm_cgflow.counts import seed_number, whole_number
from openmm_cgflow.errors import InvalidInputError
from openmm_cgflow.potentials.contexts.evaluator import Evaluator
from openmm_cgflow.sampling.weights import (
    clip_log_weights,
    effective_sample_size,
    log_mean_exp,
    pareto_k,
    trustworthy,
)
from openmm_cgflow.trajectory_files import save_arrays, save_trajectory
from openmm_cgflow.units import KB, read_only, real_array

__all__ = ["Samples"]

_log = logging.getLogger("openmm_cgflow")
_TOO_MUCH = 0.1  # kT


@dataclass(frozen=True)
class Samples:
    """`n` independent samples of a flow with the weights that make them Boltzmann samples.

    Attributes:
        positions: `(n, atoms, 3)` nm, float32; of vectors `(n, dim)`.
        log_weights: `(n,)`, `-u(x) - log q(x)`; minus infinity where the energy is not finite.
        reduced_energies: `(n,)`, `U / kT`, float64.
        log_densities: `(n,)`, `log q(x)` per nm^(3 atoms - 6), rigid motion taken out, as `CGFlow.logDensity` gives.
        slow: `(n, n_slow)` slow torsions in radians.
        temperature: K.
        topology: OpenMM topology of the molecule; None for vectors.
        slow_names: names of the slow torsions.
        log_labellings: log of the number of labellings of equivalent atoms of which `logZ` counts one, and the samples
            show one: log 3 for each symmetric rotor such as CH3.
        system: the OpenMM System whose energies these are; None for vectors.

    Example:
        samples = flow.sample(10_000)
        print(samples.ess, samples.logZ, samples.khat)
        end_to_end = np.linalg.norm(samples.positions[:, 0] - samples.positions[:, -1], axis=1)
        mean, error = samples.reweight(end_to_end)
        samples.trajectory.save("samples.dcd")
    """

    positions: np.ndarray
    log_weights: np.ndarray
    reduced_energies: np.ndarray
    log_densities: np.ndarray
    slow: np.ndarray
    temperature: float
    topology: Any
    slow_names: tuple[str, ...]
    log_labellings: float = 0.0
    system: Any = None

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
        """Normalised weights `(n,)`, read-only; all zero where no sample has a finite energy."""
        return read_only(torch.softmax(self._log_weights, 0).nan_to_num(0.0).numpy())

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
        """Pareto k-hat of the weights; NaN for too few samples. What it means: `trustworthy`, and `sampling.trust`."""
        return pareto_k(self._log_weights)

    @property
    def trustworthy(self) -> bool:
        """Whether k-hat is known and below `min(1 - 1 / log10(n), 0.7)` (arXiv 1507.02646)."""
        return trustworthy(self.khat, self.n)

    @cached_property
    def logZ(self) -> float:
        """Log configuration integral over internal coordinates, nm and rad, rigid motion taken out.

        It counts one labelling of the equivalent atoms of symmetric rotors (CH3, NH3+, CF3): add `log_labellings`,
        log 3 for each rotor, for the integral over all of them, which is what a thermodynamic integral gives.
        """
        return log_mean_exp(self._log_weights)[0]

    @cached_property
    def logZ_error(self) -> float:
        """Standard error of `logZ`."""
        return log_mean_exp(self._log_weights)[1]

    def reweight(self, values: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
        """Boltzmann average of an observable.

        Arguments:
            values: `(n, ...)`, the observable of each sample, in any unit.

        Returns:
            the self-normalised average and its standard error, each of shape `(...)`; the error is infinite when only
            one sample has a weight.

        Raises:
            InvalidInputError: if `values` are not real numbers, one row for each sample, or no sample has a weight.
        """
        if unit.is_quantity(values):
            values = values.value_in_unit(values.unit)
        values = real_array(values, "reweight: values are", "a number or an array for each sample")
        if values.ndim == 0 or len(values) != self.n:
            raise InvalidInputError(
                f"reweight: values has shape {values.shape}, but there are {self.n} samples; give one row for each."
            )
        weights = self._some_weights("reweight").reshape(-1, *[1] * (values.ndim - 1))
        values = np.where(weights > 0, values, 0.0)  # what has no weight may be infinite
        mean = (weights * values).sum(0)
        alone = np.count_nonzero(weights) < 2  # of which nothing can be said
        return mean, np.sqrt((weights**2 * (values - mean) ** 2).sum(0)) + (np.inf if alone else 0.0)

    def _some_weights(self, what: str) -> np.ndarray:
        if not self.weights.any():
            raise InvalidInputError(f"{what}: none of the {self.n} samples has a finite energy; train longer.")
        return self.weights

    def resample(self, n: int, seed: int = 0) -> np.ndarray:
        """Indices `(n,)` of samples drawn by their weights, with replacement: an unweighted Boltzmann ensemble.

        Raises:
            InvalidInputError: if no sample has a weight, or `n` or the seed is no whole number.
        """
        n, generator = whole_number(n, "resample: n", least=0), np.random.default_rng(seed_number(seed))
        return generator.choice(self.n, size=n, p=self._some_weights("resample"))

    def check(self, n: int = 100, seed: int = 0) -> float:
        """Recompute the weights of some samples with OpenMM itself, in double precision (Reference platform).

        Half of them are those of the largest weights, on which averages depend most, the others any.

        Arguments:
            n: how many; all there are, at most.
            seed: of the choice.

        Returns:
            the largest difference between two log-weights of one sample, in kT; it is logged, above 0.1 as a warning.

        Raises:
            InvalidInputError: for samples of vectors, `n` below one, or if no sample has a weight.

        Example:
            >>> import openmm
            >>> system, spring = openmm.System(), openmm.CustomExternalForce("1.5*x^2")
            >>> _ = system.addParticle(1.0), spring.addParticle(0), system.addForce(spring)
            >>> x = np.array([[[1.0, 0.0, 0.0]], [[2.0, 0.0, 0.0]]])
            >>> u = np.array([1.5, 6.1]) / (KB * 300.0)  # 6.1 kJ/mol should be 6.0
            >>> samples = Samples(x, -u, u, 0 * u, np.zeros((2, 0)), 300.0, None, (), system=system)
            >>> round(samples.check(), 4)
            0.0401
        """
        if self.system is None:
            raise InvalidInputError("check: these samples are vectors, of no molecule: OpenMM has no energy of them.")
        n, seed = whole_number(n, "check: n"), seed_number(seed)
        self._some_weights("check")
        chosen = self._worth_checking(n, seed)
        energies, _ = Evaluator(self.system, "Reference")(np.asarray(self.positions[chosen], dtype=np.float64))
        differences = np.abs(energies / (KB * self.temperature) - self.reduced_energies[chosen])
        worst = int(np.nan_to_num(differences, nan=np.inf).argmax())
        _log.log(
            logging.WARNING if not differences[worst] <= _TOO_MUCH else logging.INFO,
            "weights of %d samples recomputed by OpenMM: the largest difference is %.3g kT, of sample %d",
            len(chosen),
            differences[worst],
            chosen[worst],
        )
        return float(differences[worst])

    def _worth_checking(self, n: int, seed: int) -> np.ndarray:
        """Indices of at most `n` samples that have a weight."""
        order = np.argsort(-self.log_weights, kind="stable")[: int(np.isfinite(self.log_weights).sum())]
        first, rest = order[: -(-n // 2)], order[-(-n // 2) :]
        return np.concatenate([first, np.random.default_rng(seed).permutation(rest)[: n // 2]])

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
            save_trajectory(self.trajectory, path)
        arrays: dict[str, Any] = {
            "log_weights": self.log_weights,
            "reduced_energies": self.reduced_energies,
            "log_densities": self.log_densities,
            "slow": self.slow,
            "slow_names": np.array(self.slow_names, dtype=str),
            "temperature": np.array(self.temperature),
            "log_labellings": np.array(self.log_labellings),
        }
        if path.suffix == ".npz":
            arrays["positions"] = self.positions
        save_arrays(path.with_suffix(".npz"), arrays)

    def __repr__(self) -> str:
        trust = "" if self.trustworthy else " (weights not to be trusted)"
        one = f" (one labelling: {self.log_labellings:.3f} more for all)" if self.log_labellings else ""
        return (
            f"Samples(n={self.n}, ess={self.ess:.3f}, ess_clipped={self.ess_clipped:.3f}, "
            f"logZ={self.logZ:.3f}+-{self.logZ_error:.3f}{one}, khat={self.khat:.2f}{trust})"
        )
