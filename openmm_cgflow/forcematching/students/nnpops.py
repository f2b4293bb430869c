"""The energy of a chain with pairs and convolutions by NNPOps, where it is installed."""

import copy
import warnings

import torch
from torch import Tensor, nn

from openmm_cgflow.errors import UnsupportedForceError
from openmm_cgflow.forcematching.students.chain_network import REPULSION, ChainNetwork
from openmm_cgflow.forcematching.students.convolution import FilterConvolution

__all__ = ["NNPOpsEnergy", "record", "why_no_nnpops"]


def why_no_nnpops() -> str | None:
    """None if NNPOps can be used; else why not, and what to do."""
    try:
        import NNPOps  # noqa: F401
    except (ImportError, OSError) as error:  # a library of another torch cannot be loaded
        return f"NNPOps cannot be imported ({error}); it is a package of conda-forge: conda install nnpops"
    return None


class NNPOpsEnergy(nn.Module):
    """The energy of one structure of a chain, as `ChainNetwork` gives it but for rounding.

    Convolutions are `CFConv`, in single precision, with a list of neighbours; beads that repel come from
    `getNeighborPairs`. All else is the student's own. Neither has gradients by the weights: this is not for learning.

    Arguments:
        student: a trained one.

    Raises:
        UnsupportedForceError: if NNPOps is not installed.

    Example:
        >>> energy = NNPOpsEnergy(force_field.student)  # doctest: +SKIP
        >>> energy(positions, torch.tensor(1.0))  # (beads, 3), nm; kJ/mol  # doctest: +SKIP
        tensor(-12.3, dtype=torch.float64)
    """

    apart: Tensor

    def __init__(self, student: ChainNetwork) -> None:
        super().__init__()
        reason = why_no_nnpops()
        if reason is not None:
            raise UnsupportedForceError(reason)
        self.student = student
        self.convolutions = nn.ModuleList(_scripted(one) for one in student.network.convolutions)
        n = student.coordinates.n_atoms
        apart = torch.zeros(n, n, dtype=torch.float64)
        apart[student.first, student.second] = student.least_distances
        self.register_buffer("apart", apart + apart.T)
        self.furthest = max(float(apart.max()), 1e-3)  # a cutoff is positive

    def _repulsion(self, positions: Tensor) -> Tensor:
        from NNPOps.neighbors import getNeighborPairs

        neighbors = getNeighborPairs(positions.detach().contiguous(), self.furthest)[0].long()
        first, second = neighbors.clamp(min=0).unbind()  # -1 stands for pairs that are too far: 0 and 0 do not repel
        apart = positions.index_select(0, first) - positions.index_select(0, second)
        distances = ((apart * apart).sum(1) + 1e-30).sqrt()
        within = torch.relu(self.apart[first, second] - distances)
        return REPULSION * (within * within).sum()

    def forward(self, positions: Tensor, scale: Tensor) -> Tensor:
        """Energy in kJ/mol, one number, of positions `(beads, 3)`, nm, times a scale."""
        student, x, single = self.student, positions.double(), positions.float()

        def by(convolution: nn.Module, features: Tensor) -> Tensor:
            return convolution(single, features[0].float()).double().unsqueeze(0)

        q = student.coordinates.to_internal(x.unsqueeze(0))[0]
        shape, wall = student.shape(q)
        learned = student.network(student.beads, shape, [lambda f, c=c: by(c, f) for c in self.convolutions])
        reduced = student.springs(q) + wall + learned + student.offset
        energy: Tensor = scale.double() * student.kT * (reduced[0] + self._repulsion(x))
        return energy


def record(student: ChainNetwork, positions: Tensor) -> torch.jit.ScriptModule:
    """`NNPOpsEnergy` as TorchScript, whose gradient is made as it runs, by NNPOps too.

    Arguments:
        student: a trained one.
        positions: an example, `(beads, 3)`, nm.

    Raises:
        UnsupportedForceError: if NNPOps is not installed.
    """
    energy = NNPOpsEnergy(copy.deepcopy(student))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TorchScript, which is what a TorchForce takes
        return torch.jit.trace(energy, (positions, torch.tensor(1.0, dtype=torch.float64)), check_trace=False)


def _scripted(convolution: FilterConvolution) -> torch.jit.ScriptModule:
    """A convolution of positions and features, by NNPOps."""
    from NNPOps.CFConv import CFConv
    from NNPOps.CFConvNeighbors import CFConvNeighbors

    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neighbors = CFConvNeighbors(convolution.cutoff)
            # NNPOps asks for (gaussians, width) and reads the numbers as (width, gaussians)
            weights = [one.weight.detach().T for one in (convolution.first, convolution.second)]
            biases = [one.bias.detach() for one in (convolution.first, convolution.second)]
            self.conv = CFConv(convolution.step, "ssp", weights[0], biases[0], weights[1], biases[1])

        def forward(self, positions: Tensor, features: Tensor) -> Tensor:
            self.neighbors.build(positions)
            return self.conv(self.neighbors, positions, features)

    return torch.jit.script(Convolution())
