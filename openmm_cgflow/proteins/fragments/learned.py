"""What one fragment teaches: a flow of Ace-X-Nme with its backbone as beads, and what of it a library keeps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openmm_cgflow.chemistry import perceive
from openmm_cgflow.coordinates import InternalCoordinates
from openmm_cgflow.errors import ModelFileError
from openmm_cgflow.flows import FlowSettings
from openmm_cgflow.proteins.chain.geometry import dihedrals
from openmm_cgflow.proteins.fragments.capped import Capped, Fragment, fragment_named
from openmm_cgflow.proteins.fragments.flow import FragmentFlow
from openmm_cgflow.proteins.fragments.grid import BINS, CAP
from openmm_cgflow.sampling import Samples
from openmm_cgflow.storage import read_as, read_file, reading, system_to_xml, write_file
from openmm_cgflow.trainable import Trainable
from openmm_cgflow.trained import TrainedFlow
from openmm_cgflow.trained.stored import Molecule
from openmm_cgflow.training import TrainSettings
from openmm_cgflow.units import KB

__all__ = [
    "BUDGETS",
    "RECIPE",
    "SETTINGS",
    "Lesson",
    "TrainedFragment",
    "backbone_of",
    "budget_of",
    "learn",
    "load_lesson",
    "save_lesson",
]

KIND = "fragment"

SETTINGS = FlowSettings(atom_couplings=4, hidden=56, slow_hidden=48, rank=8)
"""Of a flow that a library keeps: a third of the usual size."""

RECIPE = TrainSettings(batch=256, buffer=5_000)
"""Small batches: at this size it is the number of steps that decides, not that of energies."""

BUDGETS = {"GLY": 300_000, "PRO": 800_000, "CYX": 800_000, "ALA-PRO": 600_000, "GLY-PRO": 500_000}
"""Energies for a fragment; charged ends have `_END`, all others `_BASE`, and `_TURN` more for each torsion of the side
chain beyond two."""

_END, _BASE, _TURN = 250_000, 400_000, 100_000
_TURNS = {"MET": 3, "GLU": 3, "GLH": 3, "GLN": 3, "LYS": 4, "LYN": 4, "ARG": 4, "TYR": 3}
_SAMPLES = 20_000
_HARMONICS = 2  # of the mean and the width of N-CA-C over phi and psi
_RIDGE = 20.0  # samples' worth of belief that these do not depend on phi and psi
_BLUR = math.radians(6.0)  # of free energies that are taken from samples

Atom = tuple[int, str]


class TrainedFragment(TrainedFlow, Trainable[InternalCoordinates]):
    """The flow of one fragment: a `CGFlow` of another size, without an audit.

    Arguments:
        capped: the fragment.
        beads: its beads.
        kelvin: temperature, K.
        settings: sizes of the networks.
    """

    def __init__(self, capped: Capped, beads: Sequence[int], kelvin: float, settings: FlowSettings) -> None:
        perceived = perceive(capped.topology, capped.system, capped.positions)
        coordinates = InternalCoordinates.of(perceived, capped.system, beads)
        molecule = Molecule(capped.topology, capped.system, capped.positions, coordinates)
        super().__init__(molecule, kelvin, settings)

    def _described(self) -> list[Any]:
        return [system_to_xml(self._system), self.coordinates.state()]


@dataclass(frozen=True)
class Lesson:
    """What was learned of one fragment.

    Attributes:
        fragment: which.
        free_energy: `(72, 72)` kJ/mol over phi (rows) and psi, both at `-pi + k 2 pi / 72`; its minimum 0, at most 60.
        angle: `(2, 72, 72)` rad: mean and standard deviation of N-CA-C over the same.
        mean_angle: `(2,)` rad: the same of all samples.
        flow: the atoms given the backbone.
        names: of the atoms of the residue, and `positions` of these, `(atoms, 3)` nm, of the minimised structure.
        positions: see `names`.
        figures: `ess` (of everything), `conditional` (median over 200 frames of the beads), `evaluations`, `seconds`.
    """

    fragment: Fragment
    free_energy: Tensor
    angle: Tensor
    mean_angle: Tensor
    flow: FragmentFlow
    names: list[str]
    positions: Tensor
    figures: dict[str, float]


def budget_of(fragment: Fragment) -> int:
    """Energies that a fragment's training takes by default."""
    if fragment.before is None or fragment.after is None:
        return _END
    return BUDGETS.get(fragment.name, _BASE + _TURN * max(0, _TURNS.get(fragment.variant, 2) - 2))


def backbone_of(fragment: Fragment, capped: Capped) -> dict[Atom, int]:
    """The beads of a fragment: all that a backbone without side chains has, by shift and name."""
    ends = {"H"} if fragment.before is None else {"O"} if fragment.after is None else set()  # of which there are two
    own = [(0, name) for name in ("N", "H", "CA", "C", "O") if name not in ends]
    wanted = [(-1, "CH3"), (-1, "C"), (-1, "O"), *own]
    after = "CA" if capped.atom("CA", 1) is not None else "C"
    wanted += [(1, "N"), (1, "H"), (1, after)]
    merged = {(-1, name): (0, "Y" + name) for name in ("CH3", "C", "O")}
    merged |= {(1, name): (0, "T" + name) for name in ("N", "H", "C")}
    found: dict[Atom, int] = {}
    for atom in wanted:
        index = capped.atom(atom[1], atom[0]) if capped.middle + atom[0] >= 0 else None
        if index is None and atom in merged:  # CHARMM's caps are of the residue itself
            index = capped.atom(merged[atom][1])
        if index is not None:
            found[atom] = index
    return found


def names_of(capped: Capped, beads: dict[Atom, int]) -> list[Atom]:
    """Each atom by the shift of its residue and its name; beads by what they stand for in a chain."""
    known = {index: atom for atom, index in beads.items()}
    renamed = {(-1, "CH3"): (-1, "CA"), (1, "C"): (1, "CA")}
    found = []
    for atom in capped.topology.atoms():
        own = known.get(atom.index, (atom.residue.index - capped.middle, atom.name))
        found.append(renamed.get(own, own) if atom.index in known else own)
    return found


def learn(
    fragment: Fragment,
    capped: Capped,
    kelvin: float = 300.0,
    evaluations: int | None = None,
    checkpoint: Path | None = None,
    progress: bool = True,
    settings: FlowSettings = SETTINGS,
) -> Lesson:
    """Train one fragment, and take from its flow what a library keeps.

    Arguments:
        fragment: which.
        capped: the same, as it was built.
        kelvin: temperature, K.
        evaluations: energies that it may cost; `budget_of` by default.
        checkpoint: file from which an interrupted training goes on.
        progress: draw a bar.
        settings: sizes of the networks.

    Raises:
        TrainingError: see `CGFlow.train`.
    """
    beads = backbone_of(fragment, capped)
    flow = TrainedFragment(capped, list(beads.values()), kelvin, settings)
    flow.train(
        evaluations=evaluations or budget_of(fragment), checkpoint=checkpoint, progress=progress, settings=RECIPE
    )
    samples = flow.sample(_SAMPLES, seed=1)
    weights = _weights(samples)
    x = torch.as_tensor(np.asarray(samples.trajectory.xyz))
    phi, psi, angle = _measured(capped, beads, x)
    centre = (weights * angle).sum()
    kept = FragmentFlow.of(names_of(capped, beads), flow.coordinates, flow.flow, settings)
    residue = [a for a in capped.topology.atoms() if a.residue.index == capped.middle and a.name[:1] not in ("Y", "T")]
    figures = {
        "ess": float(samples.ess),
        "conditional": _conditional_ess(kept, flow, x, weights),
        "evaluations": float(flow.provenance["evaluations"]),
        "seconds": float(flow.provenance["seconds"]),
    }
    return Lesson(
        fragment,
        _free_energy(flow, phi, psi, weights, KB * kelvin),
        angle_map(phi, psi, angle, weights),
        torch.stack([centre, ((weights * (angle - centre) ** 2).sum()).sqrt()]).float(),
        kept,
        [a.name for a in residue],
        torch.as_tensor(capped.positions[[a.index for a in residue]]).float(),
        figures,
    )


def _weights(samples: Samples) -> Tensor:
    """Normalised weights `(n,)`, the largest half percent of them levelled."""
    log = torch.as_tensor(np.asarray(samples.log_weights)).double()
    log = torch.where(torch.isfinite(log), log, -torch.inf)
    weights = torch.exp(log - log.max())
    weights = weights.clamp(max=float(weights.quantile(0.995)))
    return weights / weights.sum()


def _measured(capped: Capped, beads: dict[Atom, int], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """phi, psi (0 where a charged end has none) and N-CA-C, `(n,)` rad each."""
    n, ca, c = (x[:, beads[0, name]] for name in ("N", "CA", "C"))
    nothing = x.new_zeros(len(x))
    phi = dihedrals(x[:, beads[-1, "C"]], n, ca, c) if (-1, "C") in beads else nothing
    psi = dihedrals(n, ca, c, x[:, beads[1, "N"]]) if (1, "N") in beads else nothing
    u, v = n - ca, c - ca
    return phi, psi, torch.atan2(torch.linalg.cross(u, v).norm(dim=1), (u * v).sum(1))


def grid() -> Tensor:
    """The 72 angles, rad."""
    return -math.pi + torch.arange(BINS) * (2 * math.pi / BINS)


@torch.no_grad()
def _free_energy(flow: TrainedFragment, phi: Tensor, psi: Tensor, weights: Tensor, kT: float) -> Tensor:
    """From the flow's density where phi and psi are its slow variables, else from weighted samples, blurred."""
    names = [name.rpartition(":")[2] for name in flow.slow_names]
    if sorted(names) == ["phi", "psi"]:
        first, second = torch.meshgrid(grid(), grid(), indexing="ij")
        pairs = {"phi": first.flatten(), "psi": second.flatten()}
        q = torch.stack([pairs[name] for name in names], 1)
        log = flow.flow.bead_flow.slow.log_prob(q).double().reshape(BINS, BINS)
    else:
        log = _kernel(phi, _BLUR) @ (weights[:, None] * _kernel(psi, _BLUR).T).to(torch.float64)
        log = torch.log(log.clamp_min(1e-300))
    return (kT * (log.max() - log)).clamp(max=CAP).float()


def _kernel(angle: Tensor, width: float) -> Tensor:
    """Von Mises weights `(72, n)` of samples at each angle of the grid; rows of a constant angle are all the same."""
    if float(angle.abs().max()) == 0:
        return torch.ones(BINS, len(angle), dtype=torch.float64)
    return torch.exp((torch.cos(grid()[:, None].double() - angle[None].double()) - 1) / width**2)


def angle_map(phi: Tensor, psi: Tensor, angle: Tensor, weights: Tensor) -> Tensor:
    """Mean and standard deviation of an angle over phi and psi, `(2, 72, 72)` rad: Fourier series, by least squares.

    Arguments:
        phi: `(n,)` rad.
        psi: `(n,)` rad.
        angle: `(n,)` rad.
        weights: `(n,)`, their sum 1.
    """
    effective = 1 / float((weights**2).sum())
    seen, shown = _series(phi, psi), _series(*(t.flatten() for t in torch.meshgrid(grid(), grid(), indexing="ij")))
    centre = (weights * angle).sum()
    mean = centre + _regressed(seen, angle - centre, weights, effective, shown)
    residual = angle.double() - centre - _regressed(seen, angle - centre, weights, effective, seen)
    spread = (weights * residual**2).sum()
    log = torch.log(residual**2 / spread + 1e-6)
    usual = (weights * log).sum()  # of squares of normal numbers: -1.27
    change, own = (_regressed(seen, log - usual, weights, effective, at).clamp(-1.2, 1.2) for at in (shown, seen))
    variance = spread * torch.exp(change) / (weights * torch.exp(own)).sum()
    return torch.stack([mean, torch.sqrt(variance)]).reshape(2, BINS, BINS).float()


def _series(phi: Tensor, psi: Tensor) -> Tensor:
    """Products of Fourier series of two angles, `(n, features)`, the constant first."""
    one = [torch.ones_like(phi)], [torch.ones_like(psi)]
    for k in range(1, _HARMONICS + 1):
        for functions, angle in zip(one, (phi, psi), strict=True):
            functions += [torch.cos(k * angle), torch.sin(k * angle)]
    return torch.stack([a * b for a in one[0] for b in one[1]], 1).double()


def _regressed(seen: Tensor, values: Tensor, weights: Tensor, effective: float, shown: Tensor) -> Tensor:
    """Ridge regression of values `(n,)` on features, evaluated at those that are shown."""
    penalty = torch.full((seen.shape[1],), _RIDGE / effective, dtype=torch.float64)
    penalty[0] = 0.0
    normal = seen.T @ (weights[:, None] * seen) + torch.diag(penalty + 1e-9)
    return shown @ torch.linalg.solve(normal, seen.T @ (weights * values.double()))


def _conditional_ess(kept: FragmentFlow, flow: TrainedFragment, x: Tensor, weights: Tensor) -> float:
    """Median over 200 frames of beads, drawn by weight, of the ESS of 64 structures around each, as they are kept."""
    generator = torch.Generator().manual_seed(2)
    frames = x[torch.multinomial(weights, 200, replacement=True, generator=generator)]
    again = FragmentFlow.from_stored(kept.described(), kept.tensors())
    beads = frames[:, flow.coordinates.bead_atoms].repeat_interleave(64, 0)
    others, log_density = again.draw(beads, generator)
    whole = frames.repeat_interleave(64, 0).clone()
    index = [k for k in range(whole.shape[1]) if k not in set(flow.coordinates.bead_atoms)]
    whole[:, index] = others
    with torch.no_grad():
        u = flow.potential.energy(whole).double() / flow.target.kT
        inside = flow.coordinates.in_domain(flow.coordinates.to_internal(whole)[0])
    log = torch.where(inside & torch.isfinite(u), -u - log_density, -torch.inf).reshape(200, 64)
    shares = torch.softmax(log, 1)
    return float((1 / (shares**2).sum(1) / 64).nan_to_num(0.0).median())


@dataclass(frozen=True)
class _Header:
    name: str
    identity: str
    names: list[str]
    figures: dict[str, float]
    flow: dict[str, Any] = field(metadata={"finite": False})


def save_lesson(lesson: Lesson, path: Path, identity: str) -> None:
    """Write one fragment's lesson, with a digest of what it was made with.

    Raises:
        ModelFileError: where it cannot be written.
    """
    tensors = {f"flow.{k}": t for k, t in lesson.flow.tensors().items()}
    tensors |= {name: getattr(lesson, name) for name in _TENSORS}
    header = {"name": lesson.fragment.name, "identity": identity, "names": lesson.names, "figures": lesson.figures}
    write_file(path, KIND, tensors, header | {"flow": lesson.flow.described()})


def load_lesson(path: Path) -> tuple[Lesson, str]:
    """What `save_lesson` wrote.

    Raises:
        ModelFileError: if it is damaged.
    """
    tensors, described = read_file(path, KIND)
    with reading(path, KIND):
        header = read_as(_Header, described, "the description")
        for name, shape in _TENSORS.items():
            wanted = (len(header.names), 3) if name == "positions" else shape
            if name not in tensors or tuple(tensors[name].shape) != wanted:
                raise ModelFileError(f"the tensor {name} is missing, or of another shape")
        own = {k.removeprefix("flow."): t for k, t in tensors.items() if k.startswith("flow.")}
        flow = FragmentFlow.from_stored(header.flow, own)
        lesson = Lesson(
            fragment_named(header.name),
            tensors["free_energy"],
            tensors["angle"],
            tensors["mean_angle"],
            flow,
            header.names,
            tensors["positions"],
            header.figures,
        )
        return lesson, header.identity


_TENSORS = {"free_energy": (BINS, BINS), "angle": (2, BINS, BINS), "mean_angle": (2,), "positions": ()}
