"""What is learned once from capped residues, and read for every protein: free energies, angles, templates.

The file is one of `storage` (safetensors), kind `fragments`:

- `free_energy.CLASS`, float16 `(72, 72)`, kJ/mol: `F(phi, psi)` of the first residue of Ace-X-Nme at 300 K in OBC2,
  its minimum 0, at most `CAP`; rows are phi, columns psi, both at `-pi + k 2 pi / 72`. Classes are `ALA` (which stands
  for every residue that has none of its own), `GLY`, `PRO`, `VAL` (for all that are branched at CB), others by names of
  their variants, and where there are such, `X-PRO` before a proline, `N-X` and `C-X` at charged ends (those of `ALA`
  for residues that have none). The shipped library has the first four. Glycine has no chirality: its maps are made
  symmetric, `F(phi, psi) = F(-phi, -psi)`, when they are read.
- `angle.CLASS`, float32 `(2,)`, rad: mean and standard deviation of N-CA-C of the same samples.
- `template.VARIANT`, float32 `(atoms, 3)`, nm: the side chain (with HA) of minimised Ace-X-Nme, one for each variant of
  amber14 that is not terminal, in the frame of its own N, CA and C (`geometry.residue_frames`).
- the header: names of the templates' atoms, and where all of it came from (`provenance`).

Flows of side chains given the backbone are in a file beside it (`flow_file`): tables are read without networks.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from openmm import unit
from torch import Tensor

from openmm_cgflow.compute import plain_torch
from openmm_cgflow.errors import ModelFileError
from openmm_cgflow.proteins.chain.geometry import residue_frames
from openmm_cgflow.proteins.chain.sequence import ProteinSequence
from openmm_cgflow.proteins.fragments.grid import BINS, CAP
from openmm_cgflow.storage import read_as, read_file, reading, write_file
from openmm_cgflow.units import KB, in_kelvin

__all__ = ["FragmentLibrary", "local_template"]

KIND = "fragments"
_SHIPPED = Path(__file__).resolve().parents[2] / "data" / "fragments.safetensors"
_BACKBONE = ("N", "H", "CA", "C", "O", "OXT", "H1", "H2", "H3")
_BRANCHED = ("VAL", "ILE", "THR")


@dataclass(frozen=True)
class _Header:
    temperature: float
    atoms: dict[str, list[str]]
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FragmentLibrary:
    """Free energies, angles and templates of residues, learned from energies alone.

    Attributes:
        free_energy: by class, `(72, 72)` kJ/mol, see the module.
        angle: by class, `(2,)` rad, mean and standard deviation of N-CA-C.
        templates: by variant, `(atoms, 3)` nm in the residue's frame.
        atoms: by variant, names of the template's atoms.
        temperature: K, of the free energies.
        provenance: what the figures were made with.

    Example:
        >>> library = FragmentLibrary.load()
        >>> tuple(library.free_energy["GLY"].shape)
        (72, 72)
    """

    free_energy: dict[str, Tensor]
    angle: dict[str, Tensor]
    templates: dict[str, Tensor]
    atoms: dict[str, list[str]]
    temperature: float = 300.0
    provenance: dict[str, Any] = field(default_factory=dict)

    def class_of(self, name: str, following: str | None = None, end: str | None = None) -> str:
        """The class of a residue by where it stands: before a proline, then at a charged end, then any.

        Arguments:
            name: of three letters, or of a variant.
            following: the same of the residue after it; None for the last one.
            end: `"N"` for the first residue of a chain, `"C"` for the last one.
        """
        own: tuple[str, ...] = ()
        if following == "PRO":
            own = (f"{name}-PRO", name if name in ("GLY", "PRO") else "ALA-PRO")
        elif end is not None:
            own = (f"{end}-{name}", name if name in ("GLY", "PRO") else f"{end}-ALA")
        known = (*own, name, *(["VAL"] if name in _BRANCHED else []))
        return next((found for found in known if found in self.free_energy), "ALA")

    def classes(self, sequence: ProteinSequence) -> list[str]:
        """The classes of all residues of a protein."""
        return [
            self.class_of(residue.variant, sequence.following(k), sequence.end(k))
            for k, residue in enumerate(sequence.residues)
        ]

    @plain_torch
    def save(self, path: str | Path) -> None:
        """Write the library, whole or not at all; free energies as float16.

        Raises:
            ModelFileError: where it cannot be written.
        """
        tensors = {f"free_energy.{name}": t.half() for name, t in self.free_energy.items()}
        tensors |= {f"angle.{name}": t.float() for name, t in self.angle.items()}
        tensors |= {f"template.{name}": t.float() for name, t in self.templates.items()}
        header = {"temperature": self.temperature, "atoms": self.atoms, "provenance": self.provenance}
        write_file(path, KIND, tensors, header)

    @classmethod
    @plain_torch
    def train(
        cls,
        forcefield: str | Sequence[str],
        solvent: str | None,
        out: str | Path,
        fragments: Iterable[str] | None = None,
        temperature: unit.Quantity | float = 300.0,
        share: float = 1.0,
        progress: bool = True,
    ) -> "FragmentLibrary":
        """Train a library on energies alone: Ace-X-Nme of every residue, protonation variant and charged end.

        Each fragment is kept in the folder `NAME.parts` beside the library as soon as it is done: an interrupted call
        goes on where it was. At the end there are the library (`NAME.safetensors`), flows of side chains
        (`NAME.flows.safetensors`, see `FragmentFlows`) and a page (`NAME.report/report.html`).

        Arguments:
            forcefield: XML files of OpenMM, such as `"amber14-all.xml"`, `"amber19-all.xml"` or `"charmm36.xml"`.
            solvent: that of an implicit solvent, such as `"implicit/obc2.xml"`; None for vacuum.
            out: the library's file.
            fragments: names of fragments, ALA, GLY and PRO among them; all by default.
            temperature: Quantity or K.
            share: of the usual number of energies.
            progress: draw a bar.

        Raises:
            InvalidInputError: for an unknown fragment, or one that the force field lacks; for files that cannot be
                read.
            MismatchError: the folder is of another force field, temperature or number of energies.

        Example:
            library = FragmentLibrary.train("amber14-all.xml", "implicit/obc2.xml", "ff14SB.safetensors")
        """
        from openmm_cgflow.proteins.fragments.flow_file import FragmentFlows, flows_beside
        from openmm_cgflow.proteins.fragments.report import report_fragments
        from openmm_cgflow.proteins.fragments.training import train_fragments

        path, kelvin = Path(out), in_kelvin(temperature)
        parts = path.with_name(f"{path.stem}.parts")
        lessons, provenance = train_fragments(
            forcefield, solvent, parts, fragments, kelvin, share, progress
        )  # fmt: skip
        templates, atoms = {}, {}
        for lesson in lessons:
            name = lesson.fragment.name
            if name == lesson.fragment.variant:
                places = dict(zip(lesson.names, lesson.positions.double().numpy(), strict=True))
                atoms[name], templates[name] = local_template(places, name == "PRO")
        cls(
            {lesson.fragment.name: lesson.free_energy for lesson in lessons},
            {lesson.fragment.name: lesson.mean_angle for lesson in lessons},
            templates,
            atoms,
            kelvin,
            provenance,
        ).save(path)
        # the side chain of a disulfide has another residue to it; charged ends are built as the residue itself
        kept = {x.fragment.name: x.flow for x in lessons if x.fragment.name == x.fragment.variant != "CYX"}
        angles = {lesson.fragment.name: lesson.angle for lesson in lessons}
        FragmentFlows(kept, angles, provenance).save(flows_beside(path))
        report_fragments(lessons, path.with_name(f"{path.stem}.report"), provenance)
        _load.cache_clear()
        return cls.load(path)

    @classmethod
    @plain_torch
    def load(cls, path: str | Path | None = None) -> "FragmentLibrary":
        """The library of a file, or the one that is shipped, a copy of its own.

        Raises:
            ModelFileError: if there is no such file, or it is damaged or of another kind.
        """
        chosen = Path(path).resolve() if path is not None else _SHIPPED
        kept = _load(chosen, chosen.stat().st_mtime_ns if chosen.is_file() else 0)
        return copy.deepcopy(kept)


def local_template(places: dict[str, np.ndarray], on_n: bool) -> tuple[list[str], Tensor]:
    """A template of a side chain from one residue of a structure.

    Arguments:
        places: of the residue's atoms by name, `(3,)` nm each.
        on_n: whether the frame is that of prolines, see `residue_frames`.

    Returns:
        names of the atoms that are not of the backbone, HA among them, and their places `(atoms, 3)` in the frame.
    """
    n, ca, c = (torch.as_tensor(np.asarray(places[name], dtype=np.float64)) for name in ("N", "CA", "C"))
    axes = residue_frames(n, ca, c, torch.tensor(on_n))
    names = [name for name in places if name not in _BACKBONE]
    x = torch.stack([torch.as_tensor(np.asarray(places[name], dtype=np.float64)) for name in names])
    return names, (x - ca) @ axes.T


@lru_cache(maxsize=4)  # by the time of its last change as well
def _load(path: Path, changed: int) -> FragmentLibrary:
    tensors, described = read_file(path, KIND)
    with reading(path, KIND):
        header = read_as(_Header, described, "the description")
        parts: dict[str, dict[str, Tensor]] = {"free_energy": {}, "angle": {}, "template": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind not in parts:
                raise ModelFileError(f"the tensor {name[:60]!r} is unknown")
            if not bool(torch.isfinite(tensor).all()):
                raise ModelFileError(f"the tensor {name[:60]!r} holds NaN or infinite values")
            parts[kind][rest] = tensor.float()
        _check(parts, header)
        for name in {"GLY", "N-GLY", "C-GLY"} & set(parts["free_energy"]):
            energy = parts["free_energy"][name]
            parts["free_energy"][name] = _symmetric(energy, KB * header.temperature)
        return FragmentLibrary(
            parts["free_energy"],
            parts["angle"],
            parts["template"],
            header.atoms,
            header.temperature,
            header.provenance,
        )


def _symmetric(energy: Tensor, kT: float) -> Tensor:
    """The free energy of the mean of a density over phi and psi and its mirror image; the minimum stays 0."""
    mirrored = energy.flip(0, 1).roll((1, 1), (0, 1))  # the grid begins at -pi, which is its own mirror image
    made = -kT * torch.logaddexp(-energy / kT, -mirrored / kT)
    return (made - made.min()).clamp(max=CAP)


def _check(parts: dict[str, dict[str, Tensor]], header: _Header) -> None:
    for name in ("ALA", "GLY", "PRO"):
        if name not in parts["free_energy"]:
            raise ModelFileError(f"it lacks the free energy of {name}")
    for kind, shape in (("free_energy", (BINS, BINS)), ("angle", (2,))):
        for name, tensor in parts[kind].items():
            if tuple(tensor.shape) != shape:
                raise ModelFileError(f"{kind}.{name} has the shape {tuple(tensor.shape)}, not {shape}")
    if set(parts["angle"]) != set(parts["free_energy"]):
        raise ModelFileError("its angles are not of the classes of its free energies")
    for name, tensor in parts["template"].items():
        if tuple(tensor.shape) != (len(header.atoms.get(name, [])), 3):
            raise ModelFileError(f"the template of {name} does not have the atoms that are named for it")
    if set(header.atoms) != set(parts["template"]):
        raise ModelFileError("names of atoms are not those of its templates")
