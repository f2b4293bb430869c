"""What every potential offers: batched energies, differentiable in the positions."""

import threading

import torch
from torch import Tensor

from openmm_cgflow.compute import on_host
from openmm_cgflow.errors import InvalidInputError

__all__ = ["EnergyWithGradient", "Potential", "check_positions"]

_COUNTING = threading.Lock()


class EnergyWithGradient(torch.autograd.Function):
    """Energy whose gradient was computed beside it, so that going backward is one product."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, energy: Tensor, gradient: Tensor) -> Tensor:
        """Return `energy` (batch,); remember `gradient`, its derivative with the shape and the dtype of `x`."""
        ctx.save_for_backward(gradient)
        return energy.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, upstream: Tensor) -> tuple[Tensor, None, None]:
        """Multiply the stored gradient by the upstream one, configuration by configuration."""
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        shape = (-1,) + (1,) * (gradient.dim() - 1)
        return gradient * upstream.reshape(shape).to(gradient.dtype), None, None


def check_positions(x: Tensor, n_atoms: int) -> None:
    """Raise InvalidInputError unless `x` is a floating tensor of shape (batch, n_atoms, 3)."""
    if x.dim() != 3 or x.shape[1] != n_atoms or x.shape[2] != 3:
        raise InvalidInputError(
            f"positions have shape {tuple(x.shape)}, but this potential needs (batch, {n_atoms}, 3), in nm"
        )
    if not x.is_floating_point():
        raise InvalidInputError(f"positions have dtype {x.dtype}; give a floating point tensor, in nm")


class Potential(torch.nn.Module):
    """A batched energy function U(x) in kJ/mol.

    Energies of molecules are in double precision whatever the positions are in, for a total energy may be many million
    times larger than the differences that matter.

    Attributes:
        n_atoms: The number of atoms (for toy targets, the dimension).
        piece: How many configurations to ask for at once, where they are evaluated one by one and limits of time are to
            be kept; None where a batch is as quick as a part of it.
        recordable: Whether a CUDA graph may hold the energies: made by torch alone, on the device of the positions,
            without waiting for it.
    """

    piece: int | None = None
    recordable: bool = False
    n_atoms: int

    def __init__(self, n_atoms: int) -> None:
        super().__init__()
        self.n_atoms = n_atoms
        self._computed = 0
        self._before = 0

    @property
    def evaluations(self) -> int:
        """How many single-configuration energies were computed so far; set it to go on counting from an earlier run."""
        return self._before + self._computed

    @evaluations.setter
    def evaluations(self, number: int) -> None:
        self._before = number - self._computed

    def count(self, evaluations: int) -> None:
        """Note that energies were computed; threads may share a potential."""
        on_host(self._add, evaluations)

    def _add(self, evaluations: int) -> None:
        with _COUNTING:
            self._computed += evaluations

    def settle(self) -> bool:
        """To be called between batches, by one thread: how energies are computed may change here, and only here.

        Returns:
            Whether it has.
        """
        return False

    def energy(self, x: Tensor) -> Tensor:
        """Energies of `x` (batch, atoms, 3) in nm: (batch,) in kJ/mol, differentiable once in `x`."""
        raise NotImplementedError

    def energy_and_forces(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (batch,) in kJ/mol and forces, shaped as `x`, in kJ/mol/nm, without an autograd graph."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            energy = self.energy(leaf)
            (gradient,) = torch.autograd.grad(energy.sum(), leaf)
        return energy.detach(), -gradient

    def forward(self, x: Tensor) -> Tensor:
        """The same as `energy`."""
        return self.energy(x)
