"""An OpenMM System as batched torch."""

import logging
import math
import threading
from collections.abc import Callable
from typing import Literal, Self

import openmm
import torch
from torch import Tensor

from openmm_cgflow.potentials.base import EnergyWithGradient, Potential, check_positions
from openmm_cgflow.potentials.compiled import EnergyGradient, compile_energy_gradient, compiler_available
from openmm_cgflow.potentials.contexts.check import Judge, as_array, compare_totals, positions_array
from openmm_cgflow.potentials.terms.frame import DifferenceTable, Frame, Term
from openmm_cgflow.potentials.terms.translate import build_terms
from openmm_cgflow.units import PositionsLike

__all__ = ["TorchPotential"]

_log = logging.getLogger("openmm_cgflow")
_COMPILING = threading.Lock()  # one compilation at a time; other threads go on without waiting for it
_EAGER_ENTRIES, _COMPILED_ENTRIES, _GPU_ENTRIES = 500_000, 130_000, 8_000_000  # rows x columns of a chunk
_WIDTH = 32  # chunks hold a multiple of it: then no bit of an energy depends on what else is in the batch
_AUTO_WORK = 4e9  # rows computed until "auto" compiles, which takes some 20 s
_GPU_PATIENCE = 5  # times as much on a GPU, where little is gained
_GB_WORK = 32  # what a row of an implicit solvent's System gains by it, in those of one without


class TorchPotential(Potential):
    """The energy of an OpenMM System, translated to torch and vectorised over the batch.

    Built by `fromSystem`. Energies and gradients are computed together, in chunks of the batch that stay in the
    processor's cache, batch last in memory.

    Compiled code is for energies with gradients; energies alone are always computed by the uncompiled terms, which
    costs as much, so that they do not depend on when something was compiled. Whether it is used depends on the number
    of energies alone: see `settle`. What is computed of a configuration does not depend on the others in the batch.

    Attributes:
        dtype: The precision of the computation; energies are summed up and returned in float64.
        forces: Names of the forces in it.
    """

    recordable = True

    def __init__(self, system: openmm.System, terms: list[tuple[int, Term]], table: DifferenceTable, dtype: torch.dtype,
                 compile: bool | Literal["auto"] = "auto") -> None:  # fmt: skip
        super().__init__(system.getNumParticles())
        self.dtype = dtype
        names = [force.getName() for force in system.getForces()]
        self.forces = [names[number] for number, _ in terms]
        self._n_forces, self._numbers = len(names), [number for number, _ in terms]
        self._terms = torch.nn.ModuleList(term for _, term in terms)
        self._constants = [term.constant for _, term in terms]
        self._sizes = table.sizes
        self._index = table.index(self.n_atoms, dtype)
        self._compile = compile
        self._compiled: EnergyGradient | None = None
        self._judge: Judge | None = None
        self._work = sum(table.sizes) * (_GB_WORK if any("GB" in name for name in self.forces) else 1)

    @classmethod
    def fromSystem(
        cls,
        system: openmm.System,
        dtype: torch.dtype = torch.float32,
        positions: PositionsLike = None,
        compile: bool | Literal["auto"] = "auto",
        only: tuple[type, ...] | None = None,
        temperature: float = 300.0,
    ) -> Self:
        """Translate a System.

        Arguments:
            system: An OpenMM System without a periodic box.
            dtype: torch.float32, or torch.float64 for exact work.
            positions: (atoms, 3), nm or a Quantity. If given, energies and forces of each Force are compared with a
                double-precision OpenMM Context, there, at shaken copies and at structures of a short dynamics: the
                translation in double precision, and what is going to run, compiled or not, in kT.
            compile: True: compile at the first batch, or raise; False: never; "auto": at the first
                `settle` after as much work as compiling costs (some 100,000 evaluations of 40 atoms in implicit
                solvent, millions in vacuum), where a compiler exists and works, else go on without; without
                `positions`, at the first batch after it.
            only: Translate forces of these types alone (no comparison then).
            temperature: K, at which energies are going to be used: for the comparison.

        Raises:
            UnsupportedForceError: A force has no translation, or the comparison fails; the message names the force.
            InvalidInputError: The System is periodic, has virtual sites or no particles; or the positions do not fit.

        Example:
            >>> import openmm, torch
            >>> system, spring = openmm.System(), openmm.HarmonicBondForce()
            >>> _ = system.addParticle(1.0), system.addParticle(1.0), spring.addBond(0, 1, 0.1, 1000.0)
            >>> _ = system.addForce(spring)
            >>> potential = TorchPotential.fromSystem(system)
            >>> round(potential.energy(torch.tensor([[[0.0, 0.0, 0.0], [0.2, 0.0, 0.0]]])).item(), 4)
            5.0
        """
        table = DifferenceTable()
        self = cls(system, build_terms(system, table, dtype, only), table, dtype, compile)
        if positions is not None and only is None:
            judge = Judge(system, positions_array(positions, system.getNumParticles()), temperature)
            exact = self if dtype == torch.float64 else cls.fromSystem(system, dtype=torch.float64, compile=False)
            exact.stand_before(judge)
            if exact is not self:
                self.stand_before(judge)
        return self

    def stand_before(self, judge: Judge) -> None:
        """Be compared with OpenMM, and remember the judge for what is compiled later.

        Raises:
            UnsupportedForceError: A force is not what it is in OpenMM; the message names it.
        """
        x = torch.from_numpy(judge.x).to(self._index.plus.device)
        energies, gradients = self._by_force(x)
        if self.dtype == torch.float64:
            judge.demand_exact(energies, -gradients)
        else:
            judge.demand_precise(energies, -gradients, str(self.dtype).removeprefix("torch."))
        energy, gradient = self._eager(x, gradient=True)
        judge.demand_total(energy, -gradient, "the energies of all forces together")
        self._judge = judge

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._compiled = None
        result = super()._apply(fn, recurse)
        floating = next((b for b in self.buffers() if b.is_floating_point()), None)
        if floating is not None:
            self.dtype = floating.dtype
        return result

    # What runs on (atoms, 3, columns), in the precision of the parameters, without the terms' constants.

    def _columns_energy(self, x: Tensor, number: int | None = None) -> Tensor:
        frame = Frame(x, self._index, self._sizes)
        energy = x.new_zeros(x.shape[-1])
        for force, term in zip(self._numbers, self._terms, strict=True):
            if number is None or number == force:
                energy = energy + term(frame)
        return energy

    def _columns_gradient(self, x: Tensor, number: int | None = None) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            energy = self._columns_energy(leaf, number)
            if not energy.requires_grad:
                return energy, torch.zeros_like(x)
            (gradient,) = torch.autograd.grad(energy.sum(), leaf)
        return energy.detach(), gradient

    def _constant(self, number: int | None = None) -> float:
        pairs = zip(self._numbers, self._constants, strict=True)
        return math.fsum(constant for force, constant in pairs if number is None or number == force)

    def _widest(self, device: torch.device, compiled: bool) -> int:
        """Configurations in a chunk: a power of two such that its largest tensors stay in cache."""
        entries = (_COMPILED_ENTRIES if compiled else _EAGER_ENTRIES) if device.type == "cpu" else _GPU_ENTRIES
        rows = max(1, sum(self._sizes))
        highest = 12 if device.type != "cpu" else 8 if compiled else 10
        return 2 ** min(max(round(math.log2(entries / rows)), int(math.log2(_WIDTH))), highest)

    # What runs on (batch, atoms, 3).

    def _chunks(self, x: Tensor, function: EnergyGradient, widest: int, fixed: bool) -> tuple[Tensor, Tensor]:
        """Energies (batch,) in float64 and gradients (batch, atoms, 3), chunk by chunk, without the constants."""
        batch = x.shape[0]
        energy = torch.empty(batch, dtype=torch.float64, device=x.device)
        gradient = torch.empty(batch, self.n_atoms, 3, dtype=self.dtype, device=x.device)
        for start in range(0, batch, widest):
            chunk = x[start : start + widest]
            size = chunk.shape[0]
            width = widest if fixed else -(-size // _WIDTH) * _WIDTH
            if size < width:
                chunk = torch.cat([chunk, chunk[-1:].expand(width - size, -1, -1)])
            with torch.no_grad():
                e, g = function(chunk.permute(1, 2, 0).to(self.dtype).contiguous())
            energy[start : start + size] = e[:size]
            if g.numel():
                gradient[start : start + size] = g.permute(2, 0, 1)[:size]
        return energy, gradient

    def _eager(self, x: Tensor, gradient: bool, number: int | None = None) -> tuple[Tensor, Tensor]:
        def function(block: Tensor) -> tuple[Tensor, Tensor]:
            if gradient:
                return self._columns_gradient(block, number)
            return self._columns_energy(block, number), block.new_empty(0)

        energy, slope = self._chunks(x, function, self._widest(x.device, compiled=False), fixed=False)
        return energy + self._constant(number), slope

    def _by_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (forces, batch) and gradients (forces, batch, atoms, 3) of every Force of the System by itself."""
        found = [self._eager(x, gradient=True, number=number) for number in range(self._n_forces)]
        energies = torch.stack([energy for energy, _ in found]) if found else x.new_zeros(0, len(x))
        return energies, torch.stack([g for _, g in found]) if found else x.new_zeros(0, *x.shape)

    def _energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (batch,) and gradient (batch, atoms, 3) of detached positions (batch, atoms, 3)."""
        compiled = self._compiled_function(x)
        if compiled is None:
            energy, gradient = self._eager(x, gradient=True)
        else:
            energy, gradient = self._run_compiled(compiled, x)
        self.count(x.shape[0])
        return energy, gradient

    def _run_compiled(self, compiled: EnergyGradient, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = self._chunks(x, compiled, self._widest(x.device, compiled=True), fixed=True)
        return energy + self._constant(), gradient

    # When to compile.

    def settle(self) -> bool:
        """Compile, if that is worth it by now and the result can be compared with OpenMM.

        It depends on the number of evaluations alone, and not on when a thread comes to it: energies of compiled code
        differ in their last bits.
        """
        before = self._compiled
        if self._compile == "auto" and self._judge is not None and self._worth_compiling():
            self._make_compiled(torch.from_numpy(self._judge.x).to(self._index.plus.device))
        return self._compiled is not before

    def _worth_compiling(self) -> bool:
        patience = 1 if self._index.plus.device.type == "cpu" else _GPU_PATIENCE
        return self._computed * self._work >= _AUTO_WORK * patience

    def _compiled_function(self, x: Tensor) -> EnergyGradient | None:
        """The compiled function; None where it is not (yet) to be used.

        Without a judge there is nothing to settle on but the batch at hand, the first that is worth it.
        """
        if self._compile is False or not len(x):
            return None
        wanted = self._compile is True or (self._judge is None and self._worth_compiling())
        if self._compiled is None and wanted:
            self._make_compiled(x, blocking=self._compile is True)
        return self._compiled

    def _make_compiled(self, x: Tensor, blocking: bool = True) -> None:
        if not _COMPILING.acquire(blocking=blocking):
            return
        try:
            if self._compiled is None and self._compile is not False:
                self._compile_for(x)
        finally:
            _COMPILING.release()

    def _compile_for(self, x: Tensor) -> None:
        if self._compile == "auto" and not compiler_available(x.device):
            _log.info("no compiler found: TorchPotential runs without compilation")
            self._compile = False
            return
        columns = self._widest(x.device, compiled=True)
        example = x[torch.arange(columns, device=x.device) % len(x)].permute(1, 2, 0).to(self.dtype).contiguous()
        try:
            compiled = compile_energy_gradient(self._columns_gradient, example)
            self._compare_compiled(compiled, x[:columns])
        except Exception as error:
            if self._compile is True:
                raise
            _log.info("compiling failed (%s): TorchPotential runs without compilation", error)
            self._compile = False
        else:
            self._compiled = compiled

    def _compare_compiled(self, compiled: EnergyGradient, x: Tensor) -> None:
        """What was compiled beside OpenMM itself, or, without a judge, beside the uncompiled terms at `x`."""
        what = "the compiled energies"
        if self._judge is not None:
            energy, gradient = self._run_compiled(compiled, torch.from_numpy(self._judge.x).to(x.device))
            self._judge.demand_total(energy, -gradient, what)
            return
        energy, gradient = self._run_compiled(compiled, x)
        true_energy, true_gradient = self._eager(x, gradient=True)
        compare_totals(as_array(energy), as_array(gradient), as_array(true_energy), as_array(true_gradient), what)

    # What everybody calls.

    def energy(self, x: Tensor) -> Tensor:
        """Energies of `x` (batch, atoms, 3) in nm: (batch,) in kJ/mol, float64, differentiable once in `x`.

        Raises:
            InvalidInputError: `x` has another shape.
        """
        check_positions(x, self.n_atoms)
        if torch.is_grad_enabled() and x.requires_grad:
            energy, gradient = self._energy_and_gradient(x.detach())
            return EnergyWithGradient.apply(x, energy, gradient.to(x.dtype))
        energy, _ = self._eager(x.detach(), gradient=False)
        self.count(x.shape[0])
        return energy

    def energy_and_forces(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (batch,) in kJ/mol, float64, and forces as `x` in kJ/mol/nm, without an autograd graph.

        Raises:
            InvalidInputError: `x` has another shape.
        """
        check_positions(x, self.n_atoms)
        energy, gradient = self._energy_and_gradient(x.detach())
        return energy, -gradient.to(x.dtype)
