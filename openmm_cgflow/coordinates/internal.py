"""The bijection between Cartesian positions and internal coordinates."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import openmm
import torch
from torch import Tensor

from openmm_cgflow.chemistry.axes import Axis
from openmm_cgflow.chemistry.driven import torsion_angles
from openmm_cgflow.chemistry.molecule import bond_key
from openmm_cgflow.chemistry.perception import Perceived, perceive
from openmm_cgflow.chemistry.puckers import flipping_bonds
from openmm_cgflow.coordinates.bead_layout import bead_layout
from openmm_cgflow.coordinates.beads import SlowTorsion, plan_beads
from openmm_cgflow.coordinates.constraints import fixed_bonds
from openmm_cgflow.coordinates.layout import ATOM, BEAD, ROTOR, SLOW, TWO_PI, Layout, build_layout
from openmm_cgflow.coordinates.layout_check import check_layout
from openmm_cgflow.coordinates.rotors import Relabelling
from openmm_cgflow.coordinates.zmatrix import build_zmatrix
from openmm_cgflow.coordinates.zmatrix_geometry import ZMatrixGeometry
from openmm_cgflow.errors import InvalidInputError, ModelFileError
from openmm_cgflow.units import PositionsLike

__all__ = ["InternalCoordinates"]

_VERSION = 2  # of `state`
_PROBED = 0.3  # rad, by which circular coordinates are turned to see what turns with them


class InternalCoordinates(torch.nn.Module):
    """Bonds, angles and torsions of a Z-matrix, with exact log-determinants.

    q is laid out in four blocks: slow torsions | other bead coordinates | rotors | all others (see `sizes`). The
    gauge: the first placed atom at the origin, the second on the x axis, the third in the xy plane. Linear angles are
    described by two planar coordinates `(pi - angle) (cos torsion, sin torsion)`. A symmetric rotor (CH3) is described
    by the mean angle of its three leaves, `t1 + (d2 + d3) / 3` with `d2, d3` their torsions relative to the first (unit
    Jacobian).

    Constrained bonds are constants: the density is one on the constraint surface, in the measure of the remaining
    coordinates (their `2 log r` is kept; no Fixman term).

    Attributes:
        reference: `(dof,)` q of the input positions.
        period: `(dof,)` 2 pi for circular coordinates, 2 pi / 3 for symmetric rotors, 0 for others.
        scale: `(dof,)` rough thermal widths.
        low, high: `(dof,)` the domain, see `in_domain`.
    """

    reference: Tensor
    period: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    _window: Tensor
    _inverse_window: Tensor
    _middle: Tensor
    _constants: Tensor
    _slots: Tensor
    _planar: Tensor
    _primary_slots: Tensor
    _mean_slots: Tensor
    _siblings: Tensor
    _is_sibling: Tensor
    _sources: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        entries = layout.coordinates
        for name in ("reference", "period", "scale", "low", "high"):
            self._keep(name, [getattr(c, name) for c in entries], torch.float64)
        # what is subtracted to wrap: the width of the window, and where its middle is
        window = [(c.period or TWO_PI) if c.torsion else 0.0 for c in entries]
        self._keep("_window", window, torch.float64)
        self._keep("_inverse_window", [1 / w if w else 0.0 for w in window], torch.float64)
        self._keep("_middle", [c.middle for c in entries], torch.float64)
        self._keep("_constants", [*layout.constants, 0.0], torch.float64)
        self._build_indices()
        self._geometry = ZMatrixGeometry(layout)
        self._relabelling = Relabelling(layout) if layout.triples else None

    def _keep(self, name: str, values: Sequence, dtype: torch.dtype = torch.int64) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)

    def _build_indices(self) -> None:
        layout = self.layout
        self._keep("_slots", [*layout.bond_slots, *layout.angle_slots, *layout.torsion_slots])
        self._keep("_primary_slots", layout.primary_slots)
        self._keep("_mean_slots", [slot for pair in zip(*layout.mean_slots, strict=True) for slot in pair])
        self._keep("_siblings", [row - 3 for row in layout.siblings])
        self._keep("_is_sibling", [[float(row != k + 3)] for k, row in enumerate(layout.siblings)], torch.float64)
        planar = [[slots[row - 3] for row in layout.linear] for slots in (layout.angle_slots[1:], layout.torsion_slots)]
        self._keep("_planar", planar[0] + planar[1])
        self._keep("_sources", self._find_sources())

    def _find_sources(self) -> list[int]:
        """Where each entry of q is found among the measured bonds, angles and torsions, one after the other."""
        slots = [*self.layout.bond_slots, *self.layout.angle_slots, *self.layout.torsion_slots]
        where = {slot: k for k, slot in enumerate(slots)}
        return [where[slot] for slot in range(self.dof)]

    # ---- construction

    @classmethod
    def fromTopology(
        cls,
        topology: Any,  # noqa: ANN401
        system: openmm.System,
        positions: PositionsLike,
        beads: Sequence[int] | None = None,
        slow: Sequence[SlowTorsion] | None = None,
    ) -> "InternalCoordinates":
        """Internal coordinates of one molecule.

        Arguments:
            topology: OpenMM or mdtraj Topology, with bonds.
            system: its System; decides which bonds turn (barrier of at most 40 kJ/mol, see `perceive`), what is
                constrained, and which leaves are equivalent.
            positions: one structure (Quantity, or nm): isomers and chirality are those of this structure.
            beads: indices of the CG atoms. Atoms that are not bonded to one another are joined by pseudo-bonds.
            slow: slow torsions, as names (`"phi"`, `"ALA2:psi"`, `"chi1"`, ...) or tuples of four atom
                indices. The beads are then
                the atoms that define them and those on the bonds between; other soft torsions among these are slow too.
                Default of both: every soft torsion, symmetric rotors such as CH3 apart.

        Raises:
            InvalidInputError: for what cannot be described, see `check_inputs`, `plan_beads` and `fixed_bonds`.
        """
        return cls.of(perceive(topology, system, positions), system, beads, slow)

    @classmethod
    def of(
        cls,
        perceived: Perceived,
        system: openmm.System,
        beads: Sequence[int] | None = None,
        slow: Sequence[SlowTorsion] | None = None,
    ) -> "InternalCoordinates":
        """The same as `fromTopology` of a molecule that was perceived already."""
        molecule, centres = perceived.molecule, perceived.centres
        plan = plan_beads(perceived, beads, slow)
        plan.soft.update(flipping_bonds(perceived.flips, plan.beads))
        rows = build_zmatrix(molecule, plan, centres)
        fixed = fixed_bonds(molecule, system, rows)
        return cls(build_layout(molecule, plan, rows, centres, fixed, perceived.relaxed))

    def state(self) -> dict[str, Any]:
        """Plain numbers, strings and lists that `from_state` rebuilds this from; fit for JSON."""
        return {"version": _VERSION, **self.layout.to_dict()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "InternalCoordinates":
        """The inverse of `state`.

        Raises:
            InvalidInputError: the state is of a newer version, incomplete, or contradicts itself.
        """
        values = dict(state)
        version = values.pop("version", None)
        if version not in (1, _VERSION):
            raise InvalidInputError(
                f"internal coordinates of version {version!r}; this release reads versions 1 to {_VERSION}: update it"
            )
        try:
            layout = Layout.from_dict(values)
            check_layout(layout)
        except ModelFileError as error:
            raise InvalidInputError(
                f"the state of the internal coordinates is incomplete or damaged ({error}); save it again"
            ) from error
        return cls(_of_first_version(layout) if version == 1 else layout)

    # ---- description

    @property
    def dof(self) -> int:
        """Length of q: 3 atoms - 6 - constraints."""
        return len(self.layout.coordinates)

    @cached_property
    def placing_pairs(self) -> frozenset[tuple[int, int]]:
        """Pairs of atoms, in ascending order, of which one is placed at a distance from the other."""
        order, refs = self.layout.order, [[0], [0], *self.layout.refs]
        pairs = [sorted((order[row], order[ref[0]])) for row, ref in enumerate(refs, 1)]
        return frozenset((i, j) for i, j in pairs)

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.layout.order)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Lengths of the blocks: slow, bead, rotor, atom."""
        blocks = [c.block for c in self.layout.coordinates]
        return blocks.count(SLOW), blocks.count(BEAD), blocks.count(ROTOR), blocks.count(ATOM)

    @property
    def names(self) -> list[str]:
        """A name for each entry of q."""
        return [c.name for c in self.layout.coordinates]

    @property
    def bead_atoms(self) -> list[int]:
        """Atom indices of the beads."""
        return list(self.layout.beads)

    @property
    def bead_of_atom(self) -> list[int]:
        """For each atom the bead, as an atom index, that it is placed on by way of others; a bead's own is itself."""
        beads = set(self.layout.beads)
        owner: dict[int, int] = {}
        for atom, placed_on in self._parents():
            owner[atom] = atom if atom in beads else owner[placed_on]
        return [owner[atom] for atom in range(self.n_atoms)]

    @property
    def bead_bonds(self) -> list[tuple[int, int]]:
        """Pairs of beads, as atom indices, by which they are placed: bonds, or pseudo-bonds where there are none."""
        beads = set(self.layout.beads)
        return [(i, j) for i, j in self._parents() if i in beads and i != j]

    def _parents(self) -> list[tuple[int, int]]:
        """Each atom in its order of placing, and the atom that its bond leads to (the first atom: itself)."""
        order = self.layout.order
        placed_on = [0, 0, 0, *(refs[0] for refs in self.layout.refs)]
        return [(order[row], order[placed_on[row]]) for row in range(self.n_atoms)]

    @property
    def slow_torsions(self) -> list[tuple[int, int, int, int]]:
        """The four atoms of each slow torsion, in the order of q."""
        return [(t[0], t[1], t[2], t[3]) for t in self.layout.slow_torsions]

    @property
    def span(self) -> Tensor:
        """`(dof,)` how far each soft coordinate reaches: its period."""
        return self.period

    @property
    def centre(self) -> Tensor:
        """`(dof,)` the middle of the window of circular coordinates, `reference` of all others.

        A density over q must have its own windows there. A symmetric rotor's is no convention: where it ends, the
        leaves change places, so that a density with another window is not that of the positions it is sampled for.
        """
        return torch.where(self.period > 0, self._middle, self.reference)

    def bead_coordinates(self) -> "InternalCoordinates":
        """The coordinates of the beads alone: q is the first two blocks; positions are in the order of `bead_atoms`.

        Raises:
            InvalidInputError: there are fewer than 4 beads.
        """
        return InternalCoordinates(bead_layout(self.layout))

    def turning(self, axes: Sequence[Axis]) -> set[tuple[int, int]]:
        """The bonds (`bond_key`) or pseudo-bonds about which the circular coordinates turn.

        With the ends of those axes whose torsions they change: in a C-alpha trace the rotors of peptide planes turn
        about N-CA and CA-C, though these are no axes of theirs.

        Arguments:
            axes: of the molecule.
        """
        turned = np.flatnonzero(self.turned_torsions([axis.atoms for axis in axes]).any(0))
        ends = {bond_key(*end) for k in turned.tolist() for end in axes[k].ends}
        return self.layout.turning_bonds | ends

    def turned_torsions(self, torsions: Sequence[Sequence[int]]) -> np.ndarray:
        """Which torsions of four atoms each circular coordinate changes, `(circular, torsions)` bool."""
        circular = torch.nonzero(self.period > 0).flatten()
        q = self.reference.repeat(1 + len(circular), 1)
        q[1 + torch.arange(len(circular)), circular] += _PROBED
        angles = torsion_angles(self.to_cartesian(q)[0].cpu().numpy(), torsions)
        changed: np.ndarray = np.abs((angles[1:] - angles[:1] + math.pi) % TWO_PI - math.pi) > _PROBED / 3
        return changed

    @property
    def log_symmetry(self) -> float:
        """Log of the number of equivalent copies that the domains of symmetric rotors leave out: log 3 each."""
        return len(self.layout.triples) * math.log(3.0)

    def in_domain(self, q: Tensor) -> Tensor:
        """Whether q is the input's isomer: bonds > 0, angles in (0, pi), impropers on their side. `(batch,)` bool.

        Clearly pyramidal centres of three neighbours (amine nitrogens) stay on the input's side as stereocentres do:
        the inverted form, where it is thermally accessible, is left out.
        """
        inside = ((q > self.low.to(q.dtype)) & (q < self.high.to(q.dtype))).all(-1)
        if self.layout.linear:
            a, b = q.index_select(1, self._planar).chunk(2, 1)
            inside = inside & ((a * a + b * b) < math.pi**2).all(-1)
        return inside

    # ---- q -> x

    def to_cartesian(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in the gauge, and `log |det dx/dq|` (rigid motion removed).

        The measure is `prod r^2 sin(angle)` over the Z-matrix. Values outside the domain give finite nonsense: check
        `in_domain`.

        Arguments:
            q: `(batch, dof)`, nm and rad.

        Returns:
            positions `(batch, atoms, 3)`, nm (a transposed view: the batch is last in memory), and `(batch,)`.
        """
        rows = self._rows(q)
        return self._geometry.place(*rows), self._geometry.log_measure(*rows)

    def log_measure(self, q: Tensor) -> Tensor:
        """`log |det dx/dq|` `(batch,)` of q, as `to_cartesian` gives it."""
        return self._geometry.log_measure(*self._rows(q))

    def _rows(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bonds, angles and torsions by row, `(rows, batch)`."""
        n = self.n_atoms
        values = torch.cat([q.t(), self._constants.to(q.dtype)[:, None].expand(-1, q.shape[0])])
        bonds, angles, torsions = values.index_select(0, self._slots).split([n - 1, n - 2, n - 3])
        torsions = torsions + values.index_select(0, self._primary_slots)
        if self.layout.triples:
            both = values.index_select(0, self._mean_slots)
            torsions = torsions - (both[: n - 3] + both[n - 3 :]) / 3
        return bonds, angles, torsions

    # ---- x -> q

    def to_internal(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Internal coordinates of positions in any orientation, and `log |det dx/dq|` (as in `to_cartesian`).

        Leaves of symmetric rotors are relabelled so that the rotor lies in its domain; all else is as given.

        Arguments:
            x: `(batch, atoms, 3)`, nm.

        Returns:
            q `(batch, dof)` and `(batch,)`.
        """
        bonds, angles, torsions, log_measure = self._geometry.measure(x)
        if self._relabelling is not None:
            sources = self._relabelling.sources(torsions)
            torsions = self._relabelling.rows(torsions, sources)
            angles = torch.cat([angles[:1], self._relabelling.rows(angles[1:], sources)])
            bonds = torch.cat([bonds[:2], self._relabelling.rows(bonds[2:], sources)])
        torsions = torsions - torsions.index_select(0, self._siblings) * self._is_sibling.to(x.dtype)
        q = self._wrap(torch.cat([bonds, angles, torsions]).index_select(0, self._sources))
        if self._relabelling is not None:
            q = self._wrap(self._relabelling.add_means(q))
        return q.t(), log_measure

    def canonical(self, x: Tensor) -> Tensor:
        """Positions `(batch, atoms, 3)`, nm, with the leaves of symmetric rotors relabelled as in `to_internal`."""
        if self._relabelling is None:
            return x
        return self._relabelling.atoms(x, self._relabelling.sources(self._geometry.measure(x)[2]))

    def relabelled(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Positions `(batch, atoms, 3)` with the leaves of each symmetric rotor in a random one of their labellings."""
        if self._relabelling is None:
            return x
        return self._relabelling.atoms(x, self._relabelling.random_sources(x.shape[0], generator))

    def _wrap(self, q: Tensor) -> Tensor:
        """Torsions moved to the window around their middle; the rest as it is."""
        window, inverse, middle = (t.to(q.dtype)[:, None] for t in (self._window, self._inverse_window, self._middle))
        return q - window * torch.floor((q - middle) * inverse + 0.5)


def _of_first_version(layout: Layout) -> Layout:
    """A layout of version 1, beside which flows had the windows of symmetric rotors around the input's angle."""
    for coordinate in layout.coordinates:
        if coordinate.block == ROTOR and coordinate.period < TWO_PI:
            coordinate.middle = coordinate.reference
    return layout
