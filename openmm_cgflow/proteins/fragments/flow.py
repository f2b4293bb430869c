"""The atoms of a residue around its backbone and those of its neighbours: the atom half of a fragment's flow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError, ModelFileError
from openmm_cgflow.flows import FlowSettings, JointFlow
from openmm_cgflow.storage import Allowance, read_as

__all__ = ["FragmentFlow", "StoredFragment"]

_LEFT_OUT = ("bead_flow.slow.density.", "bead_flow.stiff.couplings.")
"""What the conditional density of the atoms does not need: the density of the beads themselves."""


@dataclass(frozen=True)
class StoredFragment:
    """What the description of a file says of one fragment.

    Attributes:
        atoms: each atom as `[shift, name]`: of the residue itself (0), of the one before (-1) or after it (1, 2).
        coordinates: state of the internal coordinates.
        settings: sizes of the networks.
    """

    atoms: list[tuple[int, str]]
    coordinates: dict[str, Any]
    settings: FlowSettings


class FragmentFlow:
    """`q(atoms | beads)` of a fragment whose beads are its backbone and its caps.

    Arguments:
        stored: atoms, coordinates, sizes.
        flow: the joint flow, of which only the atom half, and what shows the beads to it, is used.

    Attributes:
        beads: names of the beads as `(shift, name)`, in the order in which they are wanted.
        others: names of all other atoms, in the order in which they are given.

    Example:
        flow = library.flows["LEU"]
        x, log_density = flow.draw(beads, torch.Generator().manual_seed(0))  # beads: (n, len(flow.beads), 3) nm
    """

    def __init__(self, stored: StoredFragment, coordinates: InternalCoordinates, flow: JointFlow) -> None:
        self.stored, self.coordinates, self.flow = stored, coordinates, flow.eval()
        placed = list(coordinates.bead_atoms)
        self.beads = [stored.atoms[i] for i in placed]
        self._rest = [i for i in range(len(stored.atoms)) if i not in set(placed)]
        self.others = [stored.atoms[i] for i in self._rest]
        self._bead_coordinates = coordinates.bead_coordinates()
        self._gauge = [placed.index(atom) for atom in coordinates.layout.order[:3]]

    @classmethod
    def of(
        cls, atoms: list[tuple[int, str]], coordinates: InternalCoordinates, flow: JointFlow, settings: FlowSettings
    ) -> "FragmentFlow":
        """That of a trained flow.

        Arguments:
            atoms: its atoms' names, see `StoredFragment`.
            coordinates: its internal coordinates.
            flow: what was trained.
            settings: the sizes of its networks.
        """
        return cls(StoredFragment(atoms, coordinates.state(), settings), coordinates, flow)

    @torch.no_grad()
    def draw(self, beads: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One structure around each row of beads.

        Arguments:
            beads: `(n, beads, 3)` nm, in the order of `beads`.
            generator: of everything random.

        Returns:
            places of `others`, `(n, others, 3)` nm, and their log-densities `(n,)`, per nm^(3 others).
        """
        q, measure = self._bead_coordinates.to_internal(beads)
        context = self.flow.bead_flow.features(q, q[:, :0])
        noise = self.flow.atom_flow.draw_noise(len(q), generator).to(q)
        atoms = self.flow.atom_flow.decode(noise, context)
        x, whole = self.coordinates.to_cartesian(torch.cat([q, atoms.value], 1))
        x = self._onto(x, beads)
        return x[:, self._rest], atoms.log_prob - (whole - measure)

    @torch.no_grad()
    def log_density(self, x: Tensor) -> Tensor:
        """`log q(others | beads)`, `(n,)`, of whole fragments `(n, atoms, 3)` nm in the order of `stored.atoms`.

        Symmetric rotors (CH3, NH3+) have the density of one of their labellings, as in `CGFlow`.
        """
        q, whole = self.coordinates.to_internal(x)
        n_beads = sum(self.coordinates.sizes[:2])
        bead, atom = q[:, :n_beads], q[:, n_beads:]
        measure = self._bead_coordinates.log_measure(bead)
        context = self.flow.bead_flow.features(bead, bead[:, :0])
        return self.flow.atom_flow.log_prob(atom, context) - (whole - measure)

    def _onto(self, x: Tensor, beads: Tensor) -> Tensor:
        """Turn and move structures from their gauge onto their beads."""
        origin, first, second = beads[:, self._gauge].unbind(1)
        along = torch.nn.functional.normalize(first - origin, dim=1)
        normal = torch.nn.functional.normalize(torch.linalg.cross(along, second - origin), dim=1)
        return x @ torch.stack([along, torch.linalg.cross(normal, along), normal], 1) + origin.unsqueeze(1)

    # ---- storage

    def tensors(self) -> dict[str, Tensor]:
        """What is kept: matrices in half precision, all else as it is."""
        state = {k: t for k, t in self.flow.state_dict().items() if not k.startswith(_LEFT_OUT)}
        return {k: t.half() if t.dim() > 1 and t.is_floating_point() else t.clone() for k, t in state.items()}

    def described(self) -> dict[str, Any]:
        """`stored`, as what JSON can hold."""
        stored = self.stored
        atoms = [list(atom) for atom in stored.atoms]
        return {"atoms": atoms, "coordinates": stored.coordinates, "settings": stored.settings.as_dict()}

    @classmethod
    def from_stored(cls, described: Any, tensors: Mapping[str, Tensor]) -> "FragmentFlow":  # noqa: ANN401
        """The inverse of `described` and `tensors`.

        Raises:
            ModelFileError: if they do not fit together.
        """
        stored = read_as(StoredFragment, described, "a fragment")
        try:
            coordinates = InternalCoordinates.from_state(stored.coordinates)
        except InvalidInputError as error:
            raise ModelFileError(str(error)) from error
        if len(stored.atoms) != coordinates.n_atoms or len(coordinates.layout.beads) < 4:
            raise ModelFileError("a fragment's names are not those of its atoms")
        for name, size in stored.settings.as_dict().items():
            if name != "seed" and size < (0 if name.endswith("couplings") else 2 if name == "hidden" else 1):
                raise ModelFileError(f"the settings of a fragment have {name} = {size}")
        values = sum(t.numel() for t in tensors.values())
        with Allowance(6 * values + 1_000_000, 80 * len(tensors) + 4_000):
            flow = JointFlow.build(
                coordinates.sizes, coordinates.centre, coordinates.scale, coordinates.period, stored.settings
            )
        whole = flow.state_dict()
        wanted = {k: t for k, t in whole.items() if not k.startswith(_LEFT_OUT)}
        if set(wanted) != set(tensors) or any(wanted[k].shape != t.shape for k, t in tensors.items()):
            raise ModelFileError("the networks of a fragment are not those that are declared")
        flow.load_state_dict(whole | {k: t.to(wanted[k].dtype) for k, t in tensors.items()})
        return cls(stored, coordinates, flow.requires_grad_(requires_grad=False))
