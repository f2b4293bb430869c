"""Peptide planes on virtual bonds between alpha carbons, and the frames of residues.

A plane holds C and O of one residue, N and H of the next. It is flat, and turns about the virtual bond by one angle,
gamma. Its bonds keep their lengths whatever the distance of the alpha carbons is: its angles open and close for that,
and bonds give way only as far as the stiffness of angles and bonds (ff14SB) has it.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["PLANE_ATOMS", "axes_of", "dihedrals", "place_planes", "plane_shape", "residue_frames"]

PLANE_ATOMS = ("C", "O", "N", "H")
"""Of a plane: the first two belong to the residue before it, the others to the one after it."""

_CA_C, _C_N, _N_CA, _C_O, _N_H = 0.1526, 0.1335, 0.1449, 0.1229, 0.1010  # nm, ff14SB
_CA_C_N, _C_N_CA = np.radians(116.6), np.radians(121.9)
_BOND_STIFFNESS = 12000.0  # kcal/mol per squared relative change of the three bonds on the way; ff14SB has 2318, and
# leaves less to angles: bonds shall stay within a tenth of their length on noisy traces
_ANGLE_STIFFNESS = 130.0  # kcal/mol/rad^2 of the two angles on it, and those of O and H that they take with them
_SHORTEST, _LONGEST, _ROWS = 0.24, 0.52, 281  # nm; of the table


@lru_cache(maxsize=2)
def _table(cis: bool) -> np.ndarray:
    """Places of C, O, N, H along the virtual bond and beside it, `(rows, 4, 2)` nm, for distances of alpha carbons."""
    opening = np.linspace(-0.7, 0.9, 1601)
    shapes = np.stack([_flat(delta, cis) for delta in opening])  # (openings, 5, 2), unscaled; the last is CA
    reach = shapes[:, 4, 0]
    rows = []
    for distance in np.linspace(_SHORTEST, _LONGEST, _ROWS):
        scale = distance / reach
        cost = _BOND_STIFFNESS * (scale - 1) ** 2 + _ANGLE_STIFFNESS * opening**2
        best = int(cost.argmin())
        c, o, n, h = shapes[best, :4]
        c, o, n, h = c * scale[best], o + c * (scale[best] - 1), n * scale[best], h + n * (scale[best] - 1)
        rows.append(np.stack([c, o, n, h]))  # C-O and N-H keep their lengths
    return np.stack(rows)


def _flat(delta: float, cis: bool) -> np.ndarray:
    """C, O, N, H and the second CA in the plane's own axes, the first CA at the origin and the second on the x axis."""
    first, second = _CA_C_N + delta, _C_N_CA + delta
    turn = -1.0 if cis else 1.0

    def step(direction: float, length: float) -> np.ndarray:
        return length * np.array([np.cos(direction), np.sin(direction)])

    c = step(0.0, _CA_C)
    bond = np.pi - first  # direction of C-N
    n = c + step(bond, _C_N)
    ca = n + step(bond - turn * (np.pi - second), _N_CA)
    outward = bond - np.pi  # from N back to C
    inward = np.pi  # from C back to CA
    o = c - _C_O * _middle(inward, bond)
    h = n - _N_H * _middle(outward, bond - turn * (np.pi - second))
    points = np.stack([c, o, n, h, ca])
    tilt = np.arctan2(ca[1], ca[0])
    rotation = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    return points @ rotation


def _middle(first: float, second: float) -> np.ndarray:
    """The unit vector half way between two directions."""
    total = np.array([np.cos(first) + np.cos(second), np.sin(first) + np.sin(second)])
    return total / np.linalg.norm(total)


def plane_shape(distance: Tensor, cis: Tensor) -> Tensor:
    """Places of C, O, N and H along the virtual bond and beside it.

    Arguments:
        distance: `(...)` nm, of the two alpha carbons.
        cis: `(...)` bool.

    Returns:
        `(..., 4, 2)` nm.
    """
    tables = torch.as_tensor(np.stack([_table(False), _table(True)]), dtype=distance.dtype, device=distance.device)
    row = ((distance - _SHORTEST) / (_LONGEST - _SHORTEST) * (_ROWS - 1)).clamp(0, _ROWS - 1.001)
    low = row.long()
    share = (row - low)[..., None, None]
    kind = cis.long()
    return (1 - share) * tables[kind, low] + share * tables[kind, low + 1]


def axes_of(start: Tensor, end: Tensor, beside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three axes of each virtual bond, `(..., 3)` each: along it, and two beside it from which gamma is counted.

    Arguments:
        start: `(..., 3)`, the first alpha carbon.
        end: the second one.
        beside: a vector that is not along the bond; the second axis is in its plane.
    """
    along = torch.nn.functional.normalize(end - start, dim=-1)
    third = torch.linalg.cross(along, beside)
    short = third.norm(dim=-1, keepdim=True) < 1e-4 * beside.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    smallest = torch.nn.functional.one_hot(along.abs().argmin(-1), 3).to(along.dtype)
    third = torch.nn.functional.normalize(torch.where(short, torch.linalg.cross(along, smallest), third), dim=-1)
    return along, torch.linalg.cross(third, along), third


def place_planes(start: Tensor, axes: tuple[Tensor, Tensor, Tensor], shape: Tensor, gamma: Tensor) -> Tensor:
    """Atoms of planes that are turned by gamma, `(..., 4, 3)` nm; see `PLANE_ATOMS`.

    Arguments:
        start: `(..., 3)` nm, the first alpha carbons.
        axes: as `axes_of` gives them.
        shape: as `plane_shape` gives it.
        gamma: `(...)` rad.
    """
    along, second, third = axes
    beside = torch.cos(gamma)[..., None] * second + torch.sin(gamma)[..., None] * third
    return start[..., None, :] + shape[..., 0:1] * along[..., None, :] + shape[..., 1:2] * beside[..., None, :]


def residue_frames(n: Tensor, ca: Tensor, c: Tensor, on_n: Tensor) -> Tensor:
    """Axes of residues, as the rows of `(..., 3, 3)`, in which their side chains are rigid.

    The first axis halves the angle N-CA-C, the second is in its plane; so both bonds give way alike where the angle is
    not the template's. Where the ring of a proline needs its N in place, the first axis is CA-N.

    Arguments:
        n: `(..., 3)`.
        ca: `(..., 3)`.
        c: `(..., 3)`.
        on_n: `(...)` bool, whether the first axis is CA-N.
    """
    u = torch.nn.functional.normalize(n - ca, dim=-1)
    v = torch.nn.functional.normalize(c - ca, dim=-1)
    first = torch.nn.functional.normalize(torch.where(on_n[..., None], u, u + v), dim=-1)
    third = torch.nn.functional.normalize(torch.linalg.cross(u, v), dim=-1)
    return torch.stack([first, torch.linalg.cross(third, first), third], dim=-2)


def dihedrals(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Torsions `(...)` rad of four points `(..., 3)`."""
    u, v, w = b - a, c - b, d - c
    first, second = torch.linalg.cross(u, v), torch.linalg.cross(v, w)
    return torch.atan2(v.norm(dim=-1) * (u * second).sum(-1), (first * second).sum(-1))
