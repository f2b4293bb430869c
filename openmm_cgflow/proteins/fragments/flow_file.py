"""Flows of side chains and maps of backbone angles of all fragments: one file, beside that of the library."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openmm_cgflow.errors import ModelFileError
from openmm_cgflow.proteins.fragments.flow import FragmentFlow
from openmm_cgflow.proteins.fragments.grid import BINS
from openmm_cgflow.storage import read_as, read_file, reading, write_file

__all__ = ["FragmentFlows", "flows_beside"]

KIND = "fragment flows"


@dataclass(frozen=True)
class _Header:
    flows: dict[str, dict[str, Any]] = field(metadata={"finite": False})
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FragmentFlows:
    """What needs networks to be used, or is too large for the wheel.

    Attributes:
        flows: `q(atoms | backbone)` by variant.
        angles: by class, `(2, 72, 72)` rad: mean and standard deviation of N-CA-C over phi (rows) and psi.
        provenance: what they were made with.

    Example:
        flows = FragmentFlows.load("ff14SB.flows.safetensors")
        x, log_density = flows.flows["LEU"].draw(beads, generator)
    """

    flows: dict[str, FragmentFlow]
    angles: dict[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all, matrices and maps in half precision.

        Raises:
            ModelFileError: where it cannot be written.
        """
        tensors = {f"angle/{name}": t.half() for name, t in self.angles.items()}
        for name, flow in self.flows.items():
            tensors |= {f"flow/{name}/{k}": t for k, t in flow.tensors().items()}
        described = {name: flow.described() for name, flow in self.flows.items()}
        write_file(path, KIND, tensors, {"flows": described, "provenance": self.provenance})

    @classmethod
    def load(cls, path: str | Path) -> "FragmentFlows":
        """The inverse of `save`.

        Raises:
            ModelFileError: if there is no such file, or it is damaged or of another kind.
        """
        tensors, described = read_file(path, KIND)
        with reading(path, KIND):
            header = read_as(_Header, described, "the description")
            parts: dict[str, dict[str, Tensor]] = {name: {} for name in header.flows}
            angles: dict[str, Tensor] = {}
            for name, tensor in tensors.items():
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise ModelFileError(f"the tensor {name[:80]!r} holds NaN or infinite values")
                kind, _, rest = name.partition("/")
                owner, _, parameter = rest.partition("/")
                if kind == "angle" and tuple(tensor.shape) == (2, BINS, BINS):
                    angles[rest] = tensor.float()
                elif kind == "flow" and owner in parts:
                    parts[owner][parameter] = tensor
                else:
                    raise ModelFileError(f"the tensor {name[:80]!r} is unknown, or of a wrong shape")
            flows = {name: FragmentFlow.from_stored(header.flows[name], parts[name]) for name in parts}
            return cls(flows, angles, header.provenance)


def flows_beside(library: str | Path) -> Path:
    """Where the flows of a library are: `NAME.flows.safetensors` beside `NAME.safetensors`."""
    path = Path(library)
    return path.with_name(f"{path.stem}.flows{path.suffix}")
