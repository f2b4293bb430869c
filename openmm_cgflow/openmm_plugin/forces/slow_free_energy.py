"""The free energy of the slow torsions as one module of positions."""

import copy

import torch
from torch import Tensor, nn

from openmm_cgflow.flows import SoftVariables

__all__ = ["SlowFreeEnergy"]


class SlowFreeEnergy(nn.Module):
    """`-kT log q(s(x))` of the slow torsions of positions, times a scale; for `compile_forces`.

    The same numbers as `CGFlow.freeEnergy`, from positions, in double precision, on the device of the module's buffers.

    Arguments:
        slow: the flow's slow density, of torsions alone.
        torsions: the four atoms of each.
        kT: thermal energy in kJ/mol.
    """

    atoms: Tensor

    def __init__(self, slow: SoftVariables, torsions: list[tuple[int, int, int, int]], kT: float) -> None:
        super().__init__()
        if slow.n != slow.n_circular or slow.n != len(torsions):
            raise ValueError("only a density of torsions is a function of positions")
        self.register_buffer("atoms", torch.tensor(torsions).reshape(-1, 4).T.reshape(-1).contiguous())
        self.slow = copy.deepcopy(slow).cpu().double().requires_grad_(False)
        self.kT = kT

    def forward(self, positions: Tensor, scale: Tensor) -> Tensor:
        """Energy in kJ/mol, a scalar in double precision.

        Arguments:
            positions: `(atoms, 3)` in nm, of any precision.
            scale: the factor, a scalar.
        """
        angles = self.torsions(positions.to(torch.float64)).unsqueeze(0)
        log_prob = self.slow.log_prob(angles, angles[:, :0]).sum()
        return -self.kT * log_prob * scale.to(torch.float64)

    def torsions(self, x: Tensor) -> Tensor:
        """The torsions `(n,)` in radians of positions `(atoms, 3)`."""
        a, b, c, d = torch.chunk(x.index_select(0, self.atoms), 4)
        b1, b2, b3 = b - a, c - b, d - c
        n1, n2 = torch.linalg.cross(b1, b2), torch.linalg.cross(b2, b3)
        return torch.atan2(torch.linalg.vector_norm(b2, dim=1) * (b1 * n2).sum(1), (n1 * n2).sum(1))
