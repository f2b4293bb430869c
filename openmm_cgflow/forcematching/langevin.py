"""Langevin dynamics of many copies of the beads at once, on any device."""

import copy
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from openmm import unit
from torch import Tensor, nn

from openmm_cgflow.compute import Compute, Device, seeded
from openmm_cgflow.errors import InvalidInputError, TrainingError
from openmm_cgflow.units import in_nm, scalar_in

__all__ = ["BatchedLangevin"]

_log = logging.getLogger("openmm_cgflow")
_STRANGE = 1e-3  # share of frames outside what the energy was fitted to, from which it is said
_NOISE = 4_000_000  # normal numbers that are drawn at once


class BatchedLangevin:
    """Langevin dynamics of walkers that do not see one another, a batch in each operation.

    The splitting of OpenMM's `LangevinMiddleIntegrator`: a kick by the forces, half a step of drift, friction and
    noise, and half a step of drift. Noise is drawn on the CPU, so that a seed gives the same on any device, but for
    rounding.

    Arguments:
        energy: of positions `(walkers, beads, 3)`, nm, gives `(walkers,)` in kJ/mol; a module, which is copied.
        positions: where the walkers start, `(walkers, beads, 3)`, nm.
        masses: of the beads, dalton.
        kT: thermal energy, kJ/mol, of the thermostat and of the velocities at the start.
        friction: 1/ps.
        timestep: ps.
        seed: of velocities and noise.
        device: where it works; by default the GPU where there is one.
        dtype: precision; single is enough for sampling.
        centred: whether each walker is moved back to the origin now and then, for energies of the shape alone: walkers
            diffuse, and far from the origin single precision has no digits left for their bonds.

    Attributes:
        positions: `(walkers, beads, 3)`, nm.
        velocities: `(walkers, beads, 3)`, nm/ps.

    Raises:
        InvalidInputError: for positions or masses of another shape, or numbers that are not positive.

    Source: Zhang et al., J. Phys. Chem. A 123, 6056 (2019): the "middle" scheme.

    Example:
        >>> class Springs(nn.Module):
        ...     def forward(self, x):
        ...         return 500.0 * (x * x).sum((1, 2))
        >>> walkers = BatchedLangevin(Springs(), torch.zeros(10, 4, 3), [12.0] * 4, kT=2.494, device="cpu")
        >>> walkers.run(20, every=10).shape
        torch.Size([2, 10, 4, 3])
    """

    def __init__(
        self,
        energy: nn.Module,
        positions: Tensor,
        masses: Sequence[float],
        kT: float,
        friction: float = 1.0,
        timestep: float = 0.002,
        seed: int = 0,
        device: Device | None = None,
        dtype: torch.dtype = torch.float32,
        centred: bool = False,
    ) -> None:
        positions = positions if isinstance(positions, Tensor) else torch.as_tensor(in_nm(positions))
        masses = [scalar_in(mass, unit.dalton, "BatchedLangevin: a mass") for mass in masses]
        kT = scalar_in(kT, unit.kilojoule_per_mole, "BatchedLangevin: kT")
        friction = scalar_in(friction, unit.picosecond**-1, "BatchedLangevin: friction")
        timestep = scalar_in(timestep, unit.picosecond, "BatchedLangevin: timestep")
        if positions.dim() != 3 or positions.shape[1:] != (len(masses), 3) or not len(positions):
            raise InvalidInputError(
                f"BatchedLangevin: positions have shape {tuple(positions.shape)} and there are {len(masses)} masses; "
                "give (walkers, beads, 3), in nm, and a mass for each bead"
            )
        wrong = [mass for mass in masses if not 0 < mass < math.inf]
        if wrong:
            raise InvalidInputError(f"BatchedLangevin: a mass is {wrong[0]}; give positive ones, in dalton")
        for name, value, least in (("kT", kT, 0.0), ("friction", friction, -1e-300), ("timestep", timestep, 0.0)):
            if not least < value < math.inf:
                raise InvalidInputError(f"BatchedLangevin: {name} is {value}; give a positive number")
        self.device, self.dtype, self._generator = Compute.on(device).device, dtype, seeded(seed)
        self.centred = centred
        self.energy: Any = copy.deepcopy(energy).to(self.device, dtype).eval().requires_grad_(False)
        mass = torch.tensor(masses, dtype=torch.float64)[:, None]
        self._kick = (timestep / mass).to(self.device, dtype)
        self._drift = 0.5 * timestep
        self._keep = math.exp(-friction * timestep)
        self._thermal = torch.sqrt(kT / mass).to(self.device, dtype)
        self.positions = positions.detach().to(self.device, dtype)
        self.velocities = self._thermal * self._noise(1)[0].to(self.device)

    def _noise(self, steps: int) -> Tensor:
        return torch.randn(steps, *self.positions.shape, generator=self._generator, dtype=self.dtype)

    def forces(self, positions: Tensor) -> Tensor:
        """Forces `(walkers, beads, 3)` in kJ/mol/nm."""
        with torch.enable_grad():
            x = positions.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy(x).sum(), x)
        return -gradient

    @torch.no_grad()
    def step(self, steps: int) -> None:
        """Take steps of all walkers.

        Raises:
            TrainingError: if a walker is lost; the message says which.
        """
        block = max(1, _NOISE // self.positions.numel())
        x, v, heat = self.positions, self.velocities, math.sqrt(1 - self._keep**2)
        for done in range(0, steps, block):
            for noise in self._noise(min(block, steps - done)).to(self.device):
                v = v + self._kick * self.forces(x)
                x = x + self._drift * v
                v = self._keep * v + heat * self._thermal * noise
                x = x + self._drift * v
            if self.centred:
                x = x - x.mean(1, keepdim=True)
        lost = ~torch.isfinite(x).all(2).all(1)
        if bool(lost.any()):
            raise TrainingError(
                f"{int(lost.sum())} of {len(x)} walkers have blown up, the first is {int(lost.int().argmax())}: "
                "shorten the time step, or start nearer to beads that the flow knows."
            )
        self.positions, self.velocities = x, v

    def run(self, steps: int, every: int = 100) -> Tensor:
        """Take steps and keep frames.

        A warning says how many frames are outside what the energy was fitted to, if it knows that (`outside`).

        Arguments:
            steps: of each walker.
            every: steps between frames.

        Returns:
            `(steps // every, walkers, beads, 3)`, nm, on the CPU, each walker around its centroid.

        Raises:
            InvalidInputError: for numbers that are not positive, or fewer steps than `every`.
            TrainingError: if a walker is lost.
        """
        if every < 1 or steps < every:
            raise InvalidInputError(f"run: steps is {steps} and every {every}; give at least one frame")
        frames, strange = [], 0
        for _ in range(steps // every):
            self.step(every)
            frames.append((self.positions - self.positions.mean(1, keepdim=True)).cpu())
            strange += int(self.energy.outside(self.positions).sum()) if hasattr(self.energy, "outside") else 0
        total = len(frames) * len(self.positions)
        if strange > _STRANGE * total:
            _log.warning(
                "run: %d of %d frames are outside what the energy was fitted to, where walls drive the beads back: "
                "start nearer to beads that it knows, or leave these frames out (energy.outside(frames) says which)",
                strange,
                total,
            )
        return torch.stack(frames)
