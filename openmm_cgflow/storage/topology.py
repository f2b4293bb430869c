"""An OpenMM Topology as plain lists and back."""

from dataclasses import dataclass
from typing import Any

from openmm import app

from openmm_cgflow.errors import ModelFileError

__all__ = ["StoredTopology", "topology_from_json", "topology_to_json"]


@dataclass
class StoredTopology:
    """Chains, residues, atoms and bonds; each refers to those before it by their number.

    Attributes:
        chains: identifiers.
        residues: chain, name, identifier and insertion code of each.
        atoms: residue, name, element's symbol (or None) and identifier of each.
        bonds: pairs of atoms.
    """

    chains: list[str | int]
    residues: list[tuple[int, str, str | int, str]]
    atoms: list[tuple[int, str, str | None, str | int]]
    bonds: list[tuple[int, int]]


def topology_to_json(topology: app.Topology) -> dict[str, Any]:
    """Chains, residues, atoms and bonds of an OpenMM topology as plain lists."""
    residues = [[r.chain.index, r.name, str(r.id), r.insertionCode] for r in topology.residues()]
    atoms = [[a.residue.index, a.name, a.element.symbol if a.element else None, str(a.id)] for a in topology.atoms()]
    return {
        "chains": [str(chain.id) for chain in topology.chains()],
        "residues": residues,
        "atoms": atoms,
        "bonds": [[bond[0].index, bond[1].index] for bond in topology.bonds()],
    }


def topology_from_json(data: StoredTopology) -> app.Topology:
    """The OpenMM topology that `topology_to_json` described.

    Raises:
        ModelFileError: for numbers of chains, residues or atoms that there are not, and unknown elements.
    """
    topology = app.Topology()
    chains = [topology.addChain(chain_id) for chain_id in data.chains]
    residues = [
        topology.addResidue(name, _at(chains, c, "chain"), number, code) for c, name, number, code in data.residues
    ]
    atoms = []
    for residue, name, symbol, atom_id in data.atoms:
        atoms.append(topology.addAtom(name, _element(symbol), _at(residues, residue, "residue"), atom_id))
    for first, second in data.bonds:
        if first == second:
            raise ModelFileError(f"the stored topology binds atom {first} to itself")
        topology.addBond(_at(atoms, first, "atom"), _at(atoms, second, "atom"))
    return topology


def _element(symbol: str | None) -> app.Element | None:
    if symbol is None:
        return None
    try:
        return app.Element.getBySymbol(symbol)
    except KeyError:
        raise ModelFileError(f"the stored topology has an atom of the unknown element {symbol[:20]!r}") from None


def _at(things: list[Any], number: int, what: str) -> Any:  # noqa: ANN401
    if not 0 <= number < len(things):
        raise ModelFileError(f"the stored topology names {what} {number} of {len(things)}")
    return things[number]
