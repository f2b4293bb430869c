"""One file for tensors and text: safetensors with JSON in its header. Reading it never runs code."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import openmm
import safetensors
import safetensors.torch
from openmm import app
from torch import Tensor

from openmm_cgflow.errors import ModelFileError

__all__ = ["read_file", "system_from_xml", "system_to_xml", "topology_from_json", "topology_to_json", "write_file"]

FORMAT = "openmm_cgflow"
VERSION = 1


def write_file(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write a file whole or not at all: to a temporary file beside it, which is then renamed.

    Arguments:
        path: where to; an existing file is replaced only once the new one is complete.
        kind: what it is, `model` or `checkpoint`.
        tensors: by name.
        header: anything that JSON can hold.

    Raises:
        ModelFileError: if it cannot be written (no such folder, no permission, a full disk); an older file stays.
    """
    path = Path(path)
    metadata = {"format": FORMAT, "version": str(VERSION), "kind": kind, "header": json.dumps(header)}
    data = safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata)
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.chmod(temporary, 0o666 & ~_umask())
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise ModelFileError(
            f"{path} could not be written ({error.strerror or error}); free some space or choose another place. "
            "Nothing was lost: an older file there is untouched, and what is in memory can be saved again."
        ) from error


def _umask() -> int:
    """The process's mask for new files, which `mkstemp` does not follow."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_file(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file that `write_file` wrote.

    Raises:
        ModelFileError: if there is no such file, it is truncated or foreign, of another kind, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path}: there is no such file.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} ({path.stat().st_size} bytes) is truncated or not an openmm_cgflow {kind}: {error}. "
            "Copy it again from where it was made, or train the model again."
        ) from error
    if metadata.get("format") != FORMAT:
        raise ModelFileError(f"{path} is a safetensors file, but not one of openmm_cgflow.")
    if int(metadata["version"]) > VERSION:
        raise ModelFileError(
            f"{path} has file version {metadata['version']}; this openmm_cgflow reads up to {VERSION}. "
            "Update openmm_cgflow."
        )
    if metadata["kind"] != kind:
        raise ModelFileError(f"{path} is a {metadata['kind']}, not a {kind}.")
    return tensors, json.loads(metadata["header"])


def topology_to_json(topology: app.Topology) -> dict[str, Any]:
    """Chains, residues, atoms and bonds of an OpenMM topology as plain lists."""
    residues = [[r.chain.index, r.name, r.id, r.insertionCode] for r in topology.residues()]
    atoms = [[a.residue.index, a.name, a.element.symbol if a.element else None, a.id] for a in topology.atoms()]
    return {
        "chains": [chain.id for chain in topology.chains()],
        "residues": residues,
        "atoms": atoms,
        "bonds": [[bond[0].index, bond[1].index] for bond in topology.bonds()],
    }


def topology_from_json(data: dict[str, Any]) -> app.Topology:
    """The OpenMM topology that `topology_to_json` described."""
    topology = app.Topology()
    chains = [topology.addChain(chain_id) for chain_id in data["chains"]]
    residues = [topology.addResidue(name, chains[c], i, code) for c, name, i, code in data["residues"]]
    atoms = []
    for residue, name, symbol, atom_id in data["atoms"]:
        element = app.Element.getBySymbol(symbol) if symbol else None
        atoms.append(topology.addAtom(name, element, residues[residue], atom_id))
    for first, second in data["bonds"]:
        topology.addBond(atoms[first], atoms[second])
    return topology


def system_to_xml(system: openmm.System) -> str:
    """The System as OpenMM XML."""
    return openmm.XmlSerializer.serialize(system)


def system_from_xml(xml: str) -> openmm.System:
    """The System of an OpenMM XML.

    Raises:
        ModelFileError: if it holds a PythonForce, whose XML runs code when read.
        ParseError: if it is no XML.
    """
    if any(element.get("type") == "PythonForce" for element in ElementTree.fromstring(xml).iter()):
        raise ModelFileError(
            "the stored System holds a PythonForce; reading its XML would run code, so it is refused. "
            "Build the System in your script and give it to CGFlow."
        )
    return openmm.XmlSerializer.deserialize(xml)
