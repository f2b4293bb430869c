"""Atoms from turns of planes and torsions of side chains."""

import math

import torch
from torch import Tensor

from openmm_cgflow.proteins.chain.residues import hydrogens_of_n
from openmm_cgflow.proteins.placing.layout import ProteinLayout
from openmm_cgflow.proteins.placing.planes import Backbone, Planes

__all__ = ["Assembly"]

_N_H, _C_O, _C_O_DOUBLE = 0.101, 0.125, 0.1229  # nm; the second of carboxylates
_CARBOXYL = math.radians(117.0)
_TETRAHEDRAL = math.radians(109.5)
_OF_AMINE = {"H": math.pi, "H2": math.pi / 3, "H3": -math.pi / 3}
_OF_PROLINE = {"H2": math.radians(-125.0), "H3": math.radians(-5.0)}


class Assembly:
    """Puts the backbone of a protein together.

    Arguments:
        layout: the protein.
        planes: its planes.
    """

    def __init__(self, layout: ProteinLayout, planes: Planes) -> None:
        self.layout, self.planes = layout, planes
        columns = {name: layout.of(name) for name in ("C", "O", "N", "H", "CA", "OXT")}

        def of(residues: Tensor, name: str) -> Tensor:
            return torch.where(residues >= 0, columns[name][residues.clamp_min(0)], -1)

        self.indices = torch.stack(
            [of(planes.first, "C"), of(planes.first, "O"), of(planes.second, "N"), of(planes.second, "H")], 1
        )
        """`(planes, 4)`, of the atoms of each plane; -1 for those that are not there."""
        self.ca = columns["CA"]
        self.real = self.indices >= 0
        self.last = [k for k in range(len(layout.sequence)) if layout.sequence.is_last(k)]
        self.first = [k for k in range(len(layout.sequence)) if layout.sequence.is_first(k)]
        self.oxt = columns["OXT"][self.last]

    def backbone(self, backbone: Backbone, gamma: Tensor) -> Tensor:
        """Backbones at `gamma (batch, planes)`: `(batch, atoms, 3)` nm, zeros where side chains will be."""
        atoms = backbone.atoms(gamma)
        x = atoms.new_zeros(len(atoms), self.layout.n_atoms, 3)
        x = x.index_copy(1, self.indices[self.real].to(x.device), atoms[:, self.real.to(x.device)])
        x = x.index_copy(1, self.ca.to(x.device), backbone.trace)
        c, _, n, _ = atoms[:, self.planes.after[self.last]].unbind(2)
        oxt = c + _C_O * torch.nn.functional.normalize(n - c, dim=-1)
        x = x.index_copy(1, self.oxt.to(x.device), oxt)
        return self._amines(x)

    def given(self, backbone: Tensor) -> Tensor:
        """Backbones `(batch, atoms, 3)` nm of given N, CA, C (and O) `(batch, residues, 3 or 4, 3)`."""
        n, ca, c, *oxygens = backbone.unbind(2)
        x = backbone.new_zeros(len(backbone), self.layout.n_atoms, 3)
        for name, place in (("N", n), ("CA", ca), ("C", c)):
            x = x.index_copy(1, self.layout.of(name).to(x.device), place)
        inner = [k for k in range(backbone.shape[1]) if k not in self.last]
        oxygen = c[:, inner] - _C_O_DOUBLE * _halfway(
            ca[:, inner] - c[:, inner], n[:, [k + 1 for k in inner]] - c[:, inner]
        )
        x = x.index_copy(1, self.layout.of("O")[inner].to(x.device), oxygen)
        index = self.layout.of("H")
        later = [k for k in range(backbone.shape[1]) if k not in self.first and int(index[k]) >= 0]
        hydrogen = n[:, later] - _N_H * _halfway(c[:, [k - 1 for k in later]] - n[:, later], ca[:, later] - n[:, later])
        x = x.index_copy(1, index[later].to(x.device), hydrogen)
        for k in self.last:
            turns = torch.tensor([math.radians(150.0), math.radians(-30.0)]).to(x)
            where = torch.tensor([self.layout.index[k]["O"], self.layout.index[k]["OXT"]], device=x.device)
            x = x.index_copy(1, where, beyond(n[:, k], ca[:, k], c[:, k], _C_O, _CARBOXYL, turns))
        for o in oxygens:
            x = x.index_copy(1, self.layout.of("O").to(x.device), o)
            ends = (ca[:, self.last] - c[:, self.last], o[:, self.last] - c[:, self.last])
            x = x.index_copy(1, self.oxt.to(x.device), c[:, self.last] - _C_O * _halfway(*ends))
        return self._amines(x)

    def _amines(self, x: Tensor) -> Tensor:
        """The same with hydrogens on the first nitrogens."""
        for k in self.first:
            names, index = hydrogens_of_n(self.layout.sequence.residues[k].variant, True), self.layout.index[k]
            turns = _OF_PROLINE if "H" not in names else _OF_AMINE
            where = torch.tensor([index[name] for name in names], device=x.device)
            c, ca, n = (x[:, index[name]] for name in ("C", "CA", "N"))
            placed = beyond(c, ca, n, _N_H, _TETRAHEDRAL, torch.tensor([turns[name] for name in names]).to(x))
            x = x.index_copy(1, where, placed)
        return x

    def with_sides(self, x: Tensor, sides: Tensor) -> Tensor:
        """The same with side chains `(batch, side atoms, 3)` in place."""
        return x.index_copy(1, self.layout.side_atoms.to(x.device), sides)


def beyond(a: Tensor, b: Tensor, c: Tensor, length: float, angle: float, torsions: Tensor) -> Tensor:
    """Points at a bond from c, an angle b-c-x and torsions a-b-c-x: `(batch, torsions, 3)` of points `(batch, 3)`."""
    along = torch.nn.functional.normalize(c - b, dim=-1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, along), dim=-1)
    inward = torch.linalg.cross(normal, along)
    sine = length * math.sin(angle)
    side = sine * (torch.cos(torsions)[:, None] * inward[:, None] + torch.sin(torsions)[:, None] * normal[:, None])
    return c[:, None] - length * math.cos(angle) * along[:, None] + side


def _halfway(first: Tensor, second: Tensor) -> Tensor:
    """Unit vectors half way between two directions."""
    unit = torch.nn.functional.normalize
    return unit(unit(first, dim=-1) + unit(second, dim=-1), dim=-1)
