"""What trained flows of molecules and of plain vectors have in common: samples, densities, free energies, a file."""

import platform
from typing import Any, Generic, TypeVar

import numpy as np
import openmm
import torch
from openmm import app, unit
from torch import Tensor

from openmm_cgflow.compute import BATCH, Compute, Device, Parallel, plain_torch, seeded
from openmm_cgflow.coordinates import InternalCoordinates, LinearCoordinates
from openmm_cgflow.counts import fits_memory
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.flows import FlowSettings, JointFlow
from openmm_cgflow.potentials import Potential
from openmm_cgflow.sampling import BoltzmannTarget, Drawn, Samples
from openmm_cgflow.storage import fill, read_as
from openmm_cgflow.training.checkpoint import flatten, unflatten
from openmm_cgflow.units import KB, PositionsLike, in_radians, real_array
from openmm_cgflow.version import __version__

__all__ = ["Coordinates", "Trained"]

_TRAINED_WITH = "trained_with"  # among what a training that goes on needs: readers do not mind it there
Coordinates = TypeVar("Coordinates", InternalCoordinates, LinearCoordinates)


class Trained(Generic[Coordinates]):
    """A normalizing flow with slow and fast variables, and the potential that it is for.

    Arguments:
        potential: energies in kJ/mol.
        coordinates: slow and fast variables.
        kelvin: temperature, K.
        settings: sizes of the networks.
        device: where they live and work; by default the GPU where there is one, else the CPU.
    """

    def __init__(
        self,
        potential: Potential,
        coordinates: Coordinates,
        kelvin: float,
        settings: FlowSettings,
        device: Device | None = None,
    ) -> None:
        self.compute = Compute.on(device)
        self.potential, self._kelvin, self._settings = potential, kelvin, settings
        self.coordinates: Coordinates = coordinates
        self.flow = JointFlow.build(
            coordinates.sizes, coordinates.centre, coordinates.scale, coordinates.period, settings
        ).to(self.compute.device)
        self.target = BoltzmannTarget(potential, coordinates, KB * kelvin).to(self.compute.device)
        self.seed = settings.seed
        self.history: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._count(0)
        self._training: dict[str, Any] = {}  # what one that goes on from here needs beside the flow

    @property
    def topology(self) -> app.Topology | None:
        """The molecule; None for vectors."""
        return None

    @property
    def system(self) -> openmm.System | None:
        """Its System; None for vectors."""
        return None

    @property
    def temperature(self) -> unit.Quantity:
        """Temperature of the distribution."""
        return self._kelvin * unit.kelvin

    @property
    def slow_names(self) -> list[str]:
        """Names of the slow variables."""
        return self.coordinates.names[: self.coordinates.sizes[0]]

    @property
    def evaluations(self) -> int:
        """Energies of single configurations computed so far: what training and sampling cost."""
        return self._evaluations_before + self.potential.evaluations

    @property
    def provenance(self) -> dict[str, Any]:
        """Where this model comes from: evaluations, training seconds, seed, versions and machine.

        Versions and machine are those of its last training; None before one, and of a file that does not say.
        """
        trained = self.history[-1]["evaluations"] if self.history else 0
        return {
            "evaluations": trained,
            "seconds": self._seconds,
            "seed": self.seed,
            **dict.fromkeys(_versions_and_machine()),
            **self._trained_with,
        }

    @property
    def _trained_with(self) -> dict[str, str]:
        """Versions and machine of the last training, as far as they are known."""
        return self._training.get(_TRAINED_WITH, {})

    def _keep_training(self, state: dict[str, Any], here: bool) -> None:
        """Keep what one that goes on needs; `here` if something was trained, by these versions on this machine."""
        self._training = state | {_TRAINED_WITH: _versions_and_machine() if here else self._trained_with}

    def _count(self, evaluations: int) -> None:
        """Let `evaluations` go on from here; the potential, which others may use too, keeps its own count."""
        self._evaluations_before = evaluations - self.potential.evaluations

    def _tensors(self) -> dict[str, Tensor]:
        """What was learned, by name."""
        learned = {f"flow.{name}": t for name, t in self.flow.state_dict().items()}
        learned |= {f"coordinates.{name}": t for name, t in self.coordinates.state_dict().items()}
        return learned | flatten(self._training, "training/")[0]

    def _header(self) -> dict[str, Any]:
        """What belongs to a stored model beside its tensors and its target."""
        return {
            "temperature": self._kelvin,
            "settings": self._settings.as_dict(),
            "seed": self.seed,
            "history": self.history,
            "seconds": self._seconds,
            "training": flatten(self._training)[1],
        }

    def _restore(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Set what `_tensors` and `_header` gave."""
        for name, module in (("flow", self.flow), ("coordinates", self.coordinates)):
            fill(module, tensors, name)
        self.seed, self.history, self._seconds = header["seed"], header["history"], header["seconds"]
        if header.get("training"):
            self._training = unflatten(tensors, header["training"], "training/")
            read_as(dict[str, str], self._trained_with, f"the description.training.{_TRAINED_WITH}")
        if self.history:
            self._count(self.history[-1]["evaluations"])

    @plain_torch
    @torch.no_grad()
    def sample(self, n: int, seed: int | None = None) -> Samples:
        """`n` independent samples with importance weights.

        Equivalent hydrogens of symmetric rotors come in one of their labellings, and `logZ` counts one of them:
        `samples.log_labellings`, log 3 for each such rotor, is what it lacks.

        Arguments:
            n: number of samples.
            seed: of the draw; a new one each call by default.

        Raises:
            InvalidInputError: if `n` is not a positive integer, or so many do not fit into the memory.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n <= 0:
            raise InvalidInputError(f"sample: n is {n!r}; give a positive number of samples.")
        fits_memory(n, 2 * sum(self.coordinates.sizes), "sample: n")
        generator = seeded(seed)
        with self.compute.parallel() as parallel:
            parts = [self._draw(min(BATCH, n - i), generator, parallel) for i in range(0, n, BATCH)]
        drawn = Drawn(*(torch.cat(column) for column in zip(*parts, strict=True)))
        u, log_density = drawn.u.double(), drawn.log_density
        log_weights = -u - log_density
        fine = torch.isfinite(log_weights) & drawn.inside
        return Samples(
            positions=drawn.x.numpy(),
            log_weights=torch.where(fine, log_weights, -torch.inf).numpy(),
            reduced_energies=u.numpy(),
            log_densities=log_density.numpy(),
            slow=drawn.q[:, : self.coordinates.sizes[0]].numpy(),
            temperature=self._kelvin,
            topology=self.topology,
            slow_names=tuple(self.slow_names),
            log_labellings=self.coordinates.log_symmetry,
            system=self.system,
        )

    def _draw(self, n: int, generator: torch.Generator, parallel: Parallel) -> tuple[Tensor, ...]:
        """`n` samples around their centroids, as `Drawn` has them, on the CPU."""

        def draw(noise: Tensor) -> Drawn:
            drawn = self.target.weigh(*self.flow.sample_from(noise))
            return drawn if drawn.x.dim() == 2 else drawn._replace(x=drawn.x - drawn.x.mean(1, keepdim=True))

        return tuple(column.cpu() for column in parallel.map(draw, self.flow.draw_noise(n, generator)))

    @plain_torch
    def internal(self, positions: PositionsLike) -> tuple[Tensor, Tensor]:
        """Internal coordinates and log-determinants of positions, after checking that they can be this molecule's."""
        return self.coordinates.to_internal(self.compute.tensor(self._read(positions)))

    def _read(self, positions: PositionsLike) -> np.ndarray:
        """Structures or vectors `(n, ...)` that may be this flow's, checked."""
        raise NotImplementedError

    @plain_torch
    @torch.no_grad()
    def logDensity(self, positions: PositionsLike) -> np.ndarray:
        """Log-density of the flow at positions, per nm^(3 atoms - 6), rigid motion taken out (for vectors: in x).

        Arguments:
            positions: `(atoms, 3)` or `(n, atoms, 3)`, trajectory, Quantity or nm, in any orientation.

        Returns:
            `(n,)`; minus infinity for the other chirality or another isomer, and where the density is too small to be
            told from zero.
        """
        return self.log_density_at(self._read(positions))

    @torch.no_grad()
    def log_density_at(self, x: np.ndarray) -> np.ndarray:
        """Log-density `(n,)` at structures or vectors `(n, ...)` that need no check."""
        q, logdet = self.coordinates.to_internal(self.compute.tensor(x))
        log_prob = self.flow.log_prob(q.float()).double() - logdet
        fine = self.coordinates.in_domain(q) & ~torch.isnan(log_prob)
        return torch.where(fine, log_prob, -torch.inf).cpu().numpy()

    @plain_torch
    @torch.no_grad()
    def slowVariables(self, positions: PositionsLike) -> np.ndarray:
        """The slow variables `(n, n_slow)` of positions: torsions in radians."""
        return self.internal(positions)[0][:, : self.coordinates.sizes[0]].cpu().numpy()

    @plain_torch
    @torch.no_grad()
    def freeEnergy(self, slow: Any) -> unit.Quantity:  # noqa: ANN401
        """The CG free energy `-kT log q(s)` of slow torsions, in kJ/mol.

        Arguments:
            slow: `(n, n_slow)` or `(n_slow,)`, Quantity or radians.

        Returns:
            Quantity `(n,)`, normalised: `exp(-F / kT)` integrates to one over the torsions.

        Raises:
            InvalidInputError: for what are no angles.
            MismatchError: for another number of torsions.
        """
        s = np.atleast_2d(real_array(in_radians(slow), "freeEnergy: slow is", "angles in radians"))
        n_slow = self.coordinates.sizes[0]
        if s.ndim != 2 or s.shape[1] != n_slow:
            raise MismatchError(f"freeEnergy: slow has shape {s.shape}; give (n, {n_slow}): {self.slow_names}.")
        log_prob = self.flow.bead_flow.slow.log_prob(self.compute.tensor(s).float()).double()
        return (-self.target.kT * log_prob).cpu().numpy() * unit.kilojoule_per_mole


def _versions_and_machine() -> dict[str, str]:
    return {
        "version": __version__,
        "torch": torch.__version__,
        "openmm": openmm.Platform.getOpenMMVersion(),
        "machine": f"{platform.machine()}, {platform.processor() or platform.system()}",
    }
