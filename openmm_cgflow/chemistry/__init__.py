"""What can be known of a molecule from its Topology, its System and one structure.

`perceive` looks once, and everybody is handed what it found: the graph (`Molecule`), rings, symmetric centres, and the
axes of rotation with their torsion energies and other forms. numpy and OpenMM alone; the coordinates are made of it.
"""

from openmm_cgflow.chemistry.kept_back import KeptBack, find_kept_back, kept_isomers
from openmm_cgflow.chemistry.molecule import Molecule
from openmm_cgflow.chemistry.perception import Perceived, perceive

__all__ = ["KeptBack", "Molecule", "Perceived", "find_kept_back", "kept_isomers", "perceive"]
