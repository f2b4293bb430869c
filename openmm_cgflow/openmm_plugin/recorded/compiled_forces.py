"""Energy and forces of a module recorded as one graph: as TorchScript, or as machine code, which is faster still."""

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from openmm_cgflow.compute import record, without_trial

__all__ = ["EnergyAndForces", "Particles", "compile_forces", "compile_to_machine_code", "fold_constants"]

EnergyAndForces = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_ATEN = torch.ops.aten
_log = logging.getLogger("openmm_cgflow")


_OTHER = (
    "this force is for {} particles, but the System has {}: add it to the System of the molecule that the flow was "
    "trained on, or say with atoms= which of its particles that molecule is."
)
_FEW = "this force is on particle {}, but the System has {}: give other atoms=."


class Particles(NamedTuple):
    """Which particles of a System an energy is of.

    Attributes:
        chosen: their numbers, in the order in which the energy takes them.
        total: how many the System has; None for any System that has these.
    """

    chosen: tuple[int, ...]
    total: int | None

    def misfit(self, found: int) -> str | None:
        """What to say of a System with so many particles; None if it fits."""
        if self.total is not None and found != self.total:
            return _OTHER.format(self.total, found)
        return _FEW.format(max(self.chosen), found) if found <= max(self.chosen) else None


class _OfParticles(nn.Module):
    """The graph works on its own particles in double precision; positions and forces are in that of the platform."""

    chosen: Tensor

    def __init__(self, graph: torch.jit.ScriptModule, particles: Particles) -> None:
        super().__init__()
        self.graph, self.total, self.last = graph, particles.total or 0, max(particles.chosen)
        self.other, self.few = _OTHER, _FEW
        self.register_buffer("chosen", torch.tensor(particles.chosen, dtype=torch.int64))

    def forward(self, positions: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        found = positions.shape[0]
        if self.total > 0 and found != self.total:
            raise RuntimeError(self.other.format(self.total, found))
        if found <= self.last:
            raise RuntimeError(self.few.format(self.last, found))
        with torch.no_grad():  # openmm-torch hands over positions that ask for a gradient
            own = positions.index_select(0, self.chosen).to(torch.float64)
            energy, pulled = self.graph(own, scale.to(torch.float64))
            forces = torch.zeros_like(positions).index_copy(0, self.chosen, pulled.to(positions.dtype))
        return energy, forces.contiguous()


def compile_forces(module: nn.Module, positions: Tensor, particles: Particles | None = None) -> torch.jit.ScriptModule:
    """A TorchScript module `(positions, scale) -> (energy, forces)`, forces as OpenMM's `setOutputsForces` wants them.

    The operations of the energy and of its gradient are recorded once, and replayed from then on.

    Arguments:
        module: energy in kJ/mol, a scalar, of positions `(n, 3)` in nm and a scale, in double precision.
        positions: an example, `(n, 3)`.
        particles: which of a System's the n are; all by default.
    """
    recorded, example = _record(module, positions)
    _tidy(recorded)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, which is what a TorchForce takes
        graph = torch.jit.trace(recorded, example, check_trace=False)
        n = len(positions)
        return torch.jit.script(_OfParticles(graph, particles or Particles(tuple(range(n)), n)))


def compile_to_machine_code(module: nn.Module, positions: Tensor) -> EnergyAndForces:
    """The same as a function of `(positions, scale)` in double precision, by torch's compiler: most of a minute."""
    from torch._inductor import (  # seconds, which most programs need not wait
        aoti_compile_and_package,
        aoti_load_package,
    )

    start = time.perf_counter()
    _log.info("compiling the force: half a minute or more")
    recorded, example = _record(module, positions)
    for node in recorded.graph.nodes:
        node.meta.clear()  # of what was recorded, which the compiler takes for its own
    with _quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        package = str(Path(folder) / "force.pt2")
        program = torch.export.export(recorded, example)
        # a library that is called as it is: what torch puts around compiled functions takes as long as the function
        loader = without_trial(
            lambda: aoti_load_package(aoti_compile_and_package(program, package_path=package)).loader
        )
    _log.info("compiled the force in %.0f s", time.perf_counter() - start)

    def compiled(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        energy, forces = loader.run([x, scale])
        return energy, forces

    return compiled


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings of operations that it calls in a slower way."""
    inductor = logging.getLogger("torch._inductor")
    before = inductor.level
    inductor.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        inductor.setLevel(before)


def _record(module: nn.Module, positions: Tensor) -> tuple[fx.GraphModule, tuple[Tensor, Tensor]]:
    """The operations of energy and forces, and an example of their arguments."""

    def energy_and_forces(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        gradient, energy = torch.func.grad_and_value(module)(x, scale)
        return energy, -gradient

    example = (positions.to(torch.float64), torch.tensor(1.0, dtype=torch.float64))
    recorded = record(energy_and_forces, *example)
    fold_constants(recorded)
    return recorded, example


def fold_constants(recorded: fx.GraphModule) -> None:
    """What depends on parameters alone is computed once; so is what is made of nothing, if nothing is changed in place.

    That is then a constant of the graph, which moves to a device with it.
    """
    known: dict[fx.Node, Any] = {}
    nodes = list(recorded.graph.nodes)
    making = not any(_changes_in_place(node) for node in nodes)
    for node in nodes:
        if node.op == "get_attr":
            known[node] = getattr(recorded, node.target)
        elif (
            node.op == "call_function"
            and (node.all_input_nodes or (making and not _is_random(node)))
            and all(k in known for k in node.all_input_nodes)
        ):
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    for index, (node, value) in enumerate(known.items()):
        if isinstance(value, Tensor) and any(user not in known for user in node.users):
            name = f"folded{index}"
            recorded.register_buffer(name, value.detach().clone(memory_format=torch.contiguous_format))
            with recorded.graph.inserting_before(node):
                constant = recorded.graph.get_attr(name)
            node.replace_all_uses_with(constant, delete_user_cb=lambda user: user not in known)
    recorded.graph.eliminate_dead_code()
    used = {node.target for node in recorded.graph.nodes if node.op == "get_attr"}
    for name in [name for name in (*recorded._parameters, *recorded._buffers) if name not in used]:
        delattr(recorded, name)


def _changes_in_place(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_random(node: fx.Node) -> bool:
    return not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded in node.target.tags


def _tidy(recorded: fx.GraphModule) -> None:
    """Only operations that TorchScript and openmm-torch take.

    New tensors are made where the positions are, not where the recording was; and products are written as `matmul`,
    since openmm-torch freezes the graph, which then has wrong shapes for `mm` and `addmm` with constants (torch 2.9.1).
    """
    positions = next(node for node in recorded.graph.nodes if node.op == "placeholder")
    for node in recorded.graph.nodes:
        if node.target is _ATEN.zeros.default:
            node.target, node.args = _ATEN.new_zeros.default, (positions, *node.args)
        elif node.target is _ATEN.scalar_tensor.default:
            node.target, node.args = _ATEN.new_full.default, (positions, [], *node.args)
        elif node.target is _ATEN.mm.default:
            node.target = _ATEN.matmul.default
        elif node.target is _ATEN.addmm.default:
            bias, left, right = node.args
            with recorded.graph.inserting_before(node):
                product = recorded.graph.call_function(_ATEN.matmul.default, (left, right))
            node.target, node.args = _ATEN.add.Tensor, (product, bias)
        if "device" in node.kwargs:
            node.kwargs = {name: value for name, value in node.kwargs.items() if name == "dtype"}
    recorded.graph.eliminate_dead_code()
    recorded.recompile()
