"""Forces of atoms projected onto beads, and forces on beads as forces on their internal coordinates."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import networkx
import numpy as np
import torch
from openmm import unit
from torch import Tensor

from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.forcematching.frames.bead_model import BeadModel
from openmm_cgflow.forcematching.frames.checked import check_finite
from openmm_cgflow.units import KB, in_kelvin

__all__ = ["ForceMap", "aggregated_map", "generalised_forces", "internal_slopes", "optimal_map", "reduced_forces"]

_FORCE = unit.kilojoule_per_mole / unit.nanometer
_RIDGE = 1e-3  # of the mean square force of an atom, by which the least squares are held to the aggregated map
_GAIN = 0.02  # of the mean square force on held-out frames, below which the aggregated map stays
_BLOCKS = 10  # of consecutive held-out frames, whose scatter says what of a gain is luck
_FEWEST = 5  # held-out frames, below which errors say nothing
_CHUNK = 1000  # frames whose generalised forces are computed at a time


@dataclass(frozen=True)
class ForceMap:
    """A linear map from forces on atoms to forces on beads whose mean is the mean force of the beads.

    Source: Ciccotti, Kapral and Vanden-Eijnden 2005 (doi:10.1002/cphc.200400669); Noid et al. 2008
    (doi:10.1063/1.2938860), eq. 45 for what a map must fulfil.

    Attributes:
        matrix: `(beads, atoms)`.
    """

    matrix: np.ndarray

    def __call__(self, forces: Any) -> np.ndarray:  # noqa: ANN401
        """Forces on beads `(frames, beads, 3)` in kJ/mol/nm.

        Arguments:
            forces: on atoms, `(frames, atoms, 3)`, kJ/mol/nm, or a Quantity.

        Raises:
            MismatchError: another number of atoms.
            InvalidInputError: not forces, or NaN; frames are named.
        """
        values = in_kj_per_nm(forces)
        if values.ndim != 3 or values.shape[1:] != (self.matrix.shape[1], 3):
            raise MismatchError(
                f"forces have shape {values.shape}; give (frames, {self.matrix.shape[1]}, 3): of every atom of the "
                "Topology that the beads were chosen from"
            )
        check_finite(values, "force of frame")
        return np.einsum("ba,fax->fbx", self.matrix, values)


def in_kj_per_nm(forces: Any) -> np.ndarray:  # noqa: ANN401
    """Forces as a float64 array in kJ/mol/nm.

    Arguments:
        forces: an array in kJ/mol/nm, a Quantity, or a list of these.

    Raises:
        InvalidInputError: another kind of unit, or no array of numbers.

    Example:
        >>> in_kj_per_nm([[1.0, 0.0, 0.0]] * unit.kilocalorie_per_mole / unit.angstrom)
        array([[41.84,  0.  ,  0.  ]])
    """
    if isinstance(forces, list | tuple) and any(unit.is_quantity(row) for row in forces):
        return np.stack([in_kj_per_nm(row) for row in forces])
    if unit.is_quantity(forces):
        if not forces.unit.is_compatible(_FORCE):
            raise InvalidInputError(f"forces are given in {forces.unit}; give them in kJ/mol/nm, or another such unit")
        forces = forces.value_in_unit(_FORCE)
    if hasattr(forces, "detach"):
        forces = forces.detach().cpu().numpy()
    try:
        return np.array(forces, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError("forces are not an array of numbers; give (frames, atoms, 3), kJ/mol/nm") from error


def reduced_forces(forces: Any, temperature: Any) -> np.ndarray:  # noqa: ANN401
    """Forces in kT/nm.

    Arguments:
        forces: kJ/mol/nm, or a Quantity.
        temperature: K, or a Quantity.
    """
    return in_kj_per_nm(forces) / (KB * in_kelvin(temperature))


def aggregated_map(model: BeadModel, constraints: Iterable[tuple[int, int]] = ()) -> ForceMap:
    """The map that gives each atom's whole force to the bead that it hangs on.

    Without constraints it is the best linear map but for a few per cent (see `optimal_map`), and much better than the
    forces on the beads' own atoms: its forces have a fifth of their noise.

    Arguments:
        model: beads made of atoms.
        constraints: pairs of atoms at a constrained distance, whose forces must go to one bead together.

    Raises:
        InvalidInputError: there are no atoms, or a group of atoms that constraints join has two beads.

    Example:
        >>> from openmmtools.testsystems import AlanineDipeptideVacuum
        >>> model = BeadModel.fromTopology(AlanineDipeptideVacuum().topology, "dipeptide")
        >>> aggregated_map(model).matrix.sum(1)
        array([6., 2., 6., 2., 6.])
    """
    groups, owner = _constrained_groups(model, constraints)
    matrix = np.zeros((model.n_beads, len(owner)))
    for group in groups:
        if owner[group[0]] >= 0:
            matrix[owner[group[0]], group] = 1.0
    return ForceMap(matrix)


def optimal_map(
    model: BeadModel,
    forces: Any,  # noqa: ANN401
    constraints: Iterable[tuple[int, int]] = (),
    held_out: float = 0.2,
) -> ForceMap:
    """The linear map whose forces have the least mean square; the aggregated map where that is as good.

    A fifth of the frames decides which of the two it is: the gain there has to be 2 %, and two standard errors.

    Source: Krämer et al. 2023 (doi:10.1021/acs.jpclett.3c00444).

    Arguments:
        model: beads made of atoms.
        forces: on atoms, `(frames, atoms, 3)`, kJ/mol/nm, or a Quantity.
        constraints: pairs of atoms at a constrained distance.
        held_out: share of the frames that are kept for the comparison, the last ones.

    Raises:
        InvalidInputError, MismatchError: as `aggregated_map` and `ForceMap`.
    """
    constraints = list(constraints)
    plain = aggregated_map(model, constraints)
    values = in_kj_per_nm(forces)
    plain(values[:1])  # looks at the shape
    check_finite(values, "force of frame")
    groups, owner = _constrained_groups(model, constraints)
    assert model.groups is not None
    of_beads = {atom for group in model.groups for atom in group}
    inside = [group for group in groups if owner[group[0]] >= 0]
    summed = np.stack([values[:, group].sum(1) for group in inside], axis=1)
    last = len(values) - int(held_out * len(values))
    learned = summed[:last]
    gram = np.einsum("fgx,fhx->gh", learned, learned) / len(learned)
    free = np.array([not of_beads.intersection(group) for group in inside])
    start = np.stack([[float(owner[group[0]] == bead) for group in inside] for bead in range(model.n_beads)])
    weights = start.copy()
    if free.any():
        inner = gram[np.ix_(free, free)]
        inner = inner + _RIDGE * np.trace(inner) / len(inner) * np.eye(len(inner))
        weights[:, free] -= np.linalg.solve(inner, (start @ gram)[:, free].T).T
    noise, other = (np.square(np.einsum("bg,fgx->fbx", map_, summed[last:])).mean((1, 2)) for map_ in (start, weights))
    if not _is_better(noise, other):
        return plain
    matrix = np.zeros_like(plain.matrix)
    for k, group in enumerate(inside):
        matrix[:, group] = weights[:, k : k + 1]
    return ForceMap(matrix)


def _is_better(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the second of two mean square forces of the same frames is lower, by more than little and than luck."""
    if len(before) < _FEWEST:
        return False
    gains = [part.mean() for part in np.array_split(before - after, min(_BLOCKS, len(before)))]
    error = np.std(gains, ddof=1) / np.sqrt(len(gains))
    return bool(np.mean(gains) > max(_GAIN * before.mean(), 2 * error))


def _constrained_groups(model: BeadModel, constraints: Iterable[tuple[int, int]]) -> tuple[list[list[int]], np.ndarray]:
    """Atoms that constraints join, and the bead to which each atom's force goes (-1: none)."""
    if model.groups is None or model.owners is None or model.atoms is None:
        raise InvalidInputError(
            "the model is of beads alone, so that there are no forces of atoms to project: make it with "
            "BeadModel.fromTopology, or give forces that were projected onto the beads"
        )
    graph = networkx.Graph(list(constraints))
    graph.add_nodes_from(range(model.atoms.n_atoms))
    bead_of = {atom: bead for bead, group in enumerate(model.groups) for atom in group}
    owner, groups = model.owners.copy(), []
    for part in networkx.connected_components(graph):
        group = sorted(part)
        beads = {bead_of[atom] for atom in group if atom in bead_of}
        if len(beads) > 1:
            names = ", ".join(model.labels[bead] for bead in sorted(beads))
            raise InvalidInputError(
                f"constraints join the beads {names}, and no linear map of forces is then one of mean forces; use "
                "forces of a simulation with constraints=None or HBonds, or fit without forces"
            )
        owner[group] = beads.pop() if beads else owner[group[0]]
        groups.append(group)
    return groups, owner


def generalised_forces(
    coordinates: InternalCoordinates,
    frames: np.ndarray,
    forces: np.ndarray,
    fixed: Iterable[tuple[int, int]] = (),
) -> Tensor:
    """Forces on the internal coordinates of beads, `f_q = (B B^T)^-1 B F` with `B = dq/dx`, rows `(frames, dof)`.

    What moves or turns the beads as a whole drops out. Their mean at given q is `d/dq (log q - log |det dx/dq|)`.

    Arguments:
        coordinates: of the beads alone.
        frames: `(frames, beads, 3)`, nm.
        forces: on the beads, of the same shape, in any unit of energy per nm.
        fixed: bonds that are no coordinates because their length is constrained.

    Raises:
        MismatchError: forces of another shape.

    Example:
        >>> model = BeadModel.fromSequence("GGGG")
        >>> noise = np.random.default_rng(0).normal(0, 0.02, (9, 4, 3))
        >>> x = [[0, 0, 0], [0.4, 0, 0], [0.4, 0.4, 0], [0.4, 0.4, 0.4]] + noise
        >>> bool(generalised_forces(model.coordinates(x), x, np.ones_like(x)).abs().max() < 1e-9)  # a push of all
        True
    """
    if forces.shape != frames.shape:
        raise MismatchError(
            f"forces have shape {forces.shape}, frames {frames.shape}; give one force for each bead of each frame "
            "(forces on atoms go through aggregated_map first)"
        )
    parts = []
    for start in range(0, len(frames), _CHUNK):
        rows = slice(start, start + _CHUNK)
        f = torch.as_tensor(forces[rows], dtype=torch.float64).flatten(1)
        b = internal_slopes(coordinates, frames[rows], fixed)
        found = torch.linalg.solve(b @ b.transpose(1, 2), (b @ f.unsqueeze(2)))
        parts.append(found.squeeze(2)[:, : coordinates.dof])
    return torch.cat(parts) if parts else torch.zeros(0, coordinates.dof, dtype=torch.float64)


def internal_slopes(
    coordinates: InternalCoordinates, frames: np.ndarray, fixed: Iterable[tuple[int, int]] = ()
) -> Tensor:
    """Derivatives `B = dq/dx` of internal coordinates, `(frames, dof + fixed, 3 beads)`.

    Arguments:
        coordinates: of the beads alone.
        frames: `(frames, beads, 3)`, nm.
        fixed: bonds whose lengths are added to the coordinates.
    """
    pairs = torch.tensor(sorted(fixed), dtype=torch.int64).reshape(-1, 2)
    with torch.enable_grad():
        x = torch.as_tensor(frames, dtype=torch.float64).clone().requires_grad_(True)
        held = (x[:, pairs[:, 0]] - x[:, pairs[:, 1]]).norm(dim=2)
        values = torch.cat([coordinates.to_internal(x)[0], held], dim=1)
        slopes = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0].flatten(1) for column in values.T]
    return torch.stack(slopes, dim=1)
