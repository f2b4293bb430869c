"""An OpenMM System as batched torch."""

import logging
import math
import threading
from collections.abc import Callable
from typing import Any, Literal, Self

import openmm
import torch
from torch import Tensor

from openmm_cgflow.potentials.base import EnergyWithGradient, Potential, check_positions
from openmm_cgflow.potentials.check import compare_with_context, positions_array, shaken
from openmm_cgflow.potentials.compiled import EnergyGradient, compile_energy_gradient, compiler_available
from openmm_cgflow.potentials.frame import DifferenceTable, Frame, Term
from openmm_cgflow.potentials.translate import build_terms

__all__ = ["TorchPotential"]

_log = logging.getLogger(__name__)
_COMPILING = threading.Lock()  # one compilation at a time
_COUNTING = threading.Lock()
_EAGER_ENTRIES, _COMPILED_ENTRIES, _GPU_ENTRIES = 500_000, 130_000, 8_000_000  # rows x columns of a chunk
_SMALL = 16  # configurations up to which compiled code, which always computes a full chunk, is not used
_AUTO_WORK = 4e9  # rows computed until "auto" compiles, which takes some 20 s
_GB_WORK = 32  # what a row of an implicit solvent's System gains by it, in those of one without


class TorchPotential(Potential):
    """The energy of an OpenMM System, translated to torch and vectorised over the batch.

    Built by `fromSystem`. Energies and gradients are computed together, in chunks of the batch that stay in the
    processor's cache, batch last in memory.

    Attributes:
        dtype: The precision of the computation.
        forces: Names of the forces in it.
    """

    def __init__(self, n_atoms: int, terms: list[tuple[str, Term]], table: DifferenceTable, dtype: torch.dtype,
                 compile: bool | Literal["auto"] = "auto") -> None:  # fmt: skip
        super().__init__(n_atoms)
        self.dtype = dtype
        self.forces = [name for name, _ in terms]
        self._terms = torch.nn.ModuleList(term for _, term in terms)
        self._sizes = table.sizes
        self._index = table.index(n_atoms, dtype)
        self._compile = compile
        self._compiled: EnergyGradient | None = None
        self._done = 0  # by this object; `evaluations` may go on from an earlier run
        self._work = sum(table.sizes) * (_GB_WORK if any("GB" in name for name in self.forces) else 1)

    @classmethod
    def fromSystem(
        cls,
        system: openmm.System,
        dtype: torch.dtype = torch.float32,
        positions: Any = None,  # noqa: ANN401
        compile: bool | Literal["auto"] = "auto",
        only: tuple[type, ...] | None = None,
    ) -> Self:
        """Translate a System.

        Arguments:
            system: An OpenMM System without a periodic box.
            dtype: torch.float32, or torch.float64 for exact work.
            positions: (atoms, 3), nm or a Quantity. If given, energies and forces there (and at a few shaken copies)
                are compared with a double-precision OpenMM Context.
            compile: True: compile at the first large batch, or raise; False: never; "auto": at the first `settle` after
                as much work as compiling costs (some 100,000 evaluations of 40 atoms in implicit solvent, millions in
                vacuum), where a compiler exists and works, else go on without.
            only: Translate forces of these types alone (no comparison then).

        Raises:
            UnsupportedForceError: A force has no translation, or the comparison fails; the message names the force.
            InvalidInputError: The System is periodic, has virtual sites or no particles; or the positions do not fit.
        """
        table = DifferenceTable()
        terms = build_terms(system, table, dtype, only)
        if positions is not None and only is None:
            x = shaken(positions_array(positions, system.getNumParticles()))
            compare_with_context(system, x, lambda s: cls.fromSystem(s, dtype=torch.float64, compile=False))
        return cls(system.getNumParticles(), terms, table, dtype, compile)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._compiled = None
        result = super()._apply(fn, recurse)
        floating = next((b for b in self.buffers() if b.is_floating_point()), None)
        if floating is not None:
            self.dtype = floating.dtype
        return result

    def _columns_energy(self, x: Tensor) -> Tensor:
        frame = Frame(x, self._index, self._sizes)
        energy = x.new_zeros(x.shape[-1])
        for term in self._terms:
            energy = energy + term(frame)
        return energy

    def _columns_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            energy = self._columns_energy(leaf)
            if not energy.requires_grad:
                return energy, torch.zeros_like(x)
            (gradient,) = torch.autograd.grad(energy.sum(), leaf)
        return energy.detach(), gradient

    def _columns(self, device: torch.device, compiled: bool) -> int:
        """Configurations in a chunk: a power of two such that its largest tensors stay in cache."""
        entries = (_COMPILED_ENTRIES if compiled else _EAGER_ENTRIES) if device.type == "cpu" else _GPU_ENTRIES
        rows = max(1, sum(self._sizes))
        return 2 ** min(max(round(math.log2(entries / rows)), 5), 12 if device.type != "cpu" else 8 if compiled else 10)

    def _count(self, evaluations: int) -> None:
        with _COUNTING:  # threads may share a potential
            self.evaluations += evaluations
            self._done += evaluations

    def _compiled_function(self, device: torch.device, batch: int) -> EnergyGradient | None:
        """The compiled function; None where it is not (yet) to be used."""
        if self._compile is False or batch <= _SMALL:
            return None
        if self._compile is True and self._compiled is None:
            with _COMPILING:
                self._make_compiled(device)
        return self._compiled

    def settle(self) -> None:
        """Compile if that is worth it by now.

        It depends on the number of evaluations alone, and not on when a thread comes to it: energies of compiled code
        differ in their last bits.
        """
        if self._compile == "auto" and self._done * self._work >= _AUTO_WORK:
            with _COMPILING:
                self._make_compiled(next(self.buffers()).device)

    def _make_compiled(self, device: torch.device) -> None:
        if self._compiled is not None or self._compile is False:
            return
        if self._compile == "auto" and not compiler_available(device):
            _log.info("no compiler found: TorchPotential runs without compilation")
            self._compile = False
            return
        columns = self._columns(device, compiled=True)
        example = torch.randn(self.n_atoms, 3, columns, dtype=self.dtype, device=device)
        try:
            self._compiled = compile_energy_gradient(self._columns_gradient, example)
        except Exception as error:
            if self._compile is True:
                raise
            _log.info("compiling failed (%s): TorchPotential runs without compilation", error)
            self._compile = False

    def _energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (batch,) and gradient (batch, atoms, 3) of detached positions (batch, atoms, 3)."""
        batch = x.shape[0]
        compiled = self._compiled_function(x.device, batch)
        columns = self._columns(x.device, compiled is not None)
        energy = torch.empty(batch, dtype=self.dtype, device=x.device)
        gradient = torch.empty(batch, self.n_atoms, 3, dtype=self.dtype, device=x.device)
        for start in range(0, batch, columns):
            chunk = x[start : start + columns]
            size = chunk.shape[0]
            if compiled is not None and size < columns:
                chunk = torch.cat([chunk, chunk[-1:].expand(columns - size, -1, -1)])
            block = chunk.permute(1, 2, 0).to(self.dtype).contiguous()
            with torch.no_grad():
                e, g = (compiled or self._columns_gradient)(block)
            energy[start : start + size] = e[:size]
            gradient[start : start + size] = g.permute(2, 0, 1)[:size]
        self._count(batch)
        return energy, gradient

    def energy(self, x: Tensor) -> Tensor:
        """Energies of `x` (batch, atoms, 3) in nm: (batch,) in kJ/mol, differentiable once in `x`.

        Raises:
            InvalidInputError: `x` has another shape.
        """
        check_positions(x, self.n_atoms)
        if torch.is_grad_enabled() and x.requires_grad:
            energy, gradient = self._energy_and_gradient(x.detach())
            return EnergyWithGradient.apply(x, energy, gradient.to(x.dtype))
        return self._energy_only(x.detach())

    def _energy_only(self, x: Tensor) -> Tensor:
        if self._compiled_function(x.device, x.shape[0]) is not None:
            return self._energy_and_gradient(x)[0]
        columns = self._columns(x.device, compiled=False)
        with torch.no_grad():
            parts = [
                self._columns_energy(chunk.permute(1, 2, 0).to(self.dtype).contiguous()) for chunk in x.split(columns)
            ]
        self._count(x.shape[0])
        return torch.cat(parts)

    def energy_and_forces(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (batch,) in kJ/mol and forces (batch, atoms, 3) in kJ/mol/nm, without an autograd graph."""
        check_positions(x, self.n_atoms)
        energy, gradient = self._energy_and_gradient(x.detach())
        return energy, -gradient
