"""The flow's beads as a potential of openmm-ml: `MLPotential("cgflow", modelPath="MODEL.cgflow")`.

openmm-ml loads this file whenever it is imported itself, so torch is imported where it is needed only. The classes
have the methods of its `MLPotentialImplFactory` and `MLPotentialImpl` without deriving from them, so that openmm-ml
need not be there.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openmm
from openmm import app

from openmm_cgflow.errors import InvalidInputError

if TYPE_CHECKING:
    from openmm_cgflow.openmm_plugin.forces.force import BeadBackend

__all__ = ["CGFlowPotential", "CGFlowPotentialFactory"]


class CGFlowPotentialFactory:
    """What the entry point `cgflow` of the group `openmmml.potentials` leads to."""

    def createImpl(self, name: str, modelPath: str | Path | None = None, **args: Any) -> "CGFlowPotential":  # noqa: ANN401
        """The potential of a model file.

        Raises:
            InvalidInputError: if `modelPath` is missing.
        """
        if modelPath is None:
            raise InvalidInputError(
                f'MLPotential("{name}") needs a model: MLPotential("{name}", modelPath="MODEL.cgflow")'
            )
        return CGFlowPotential(modelPath)


class CGFlowPotential:
    """`-kT log q(beads)` of the flow in a model file, as `CGFlow.createCGSystem` has it.

    Arguments:
        modelPath: file that `CGFlow.save` wrote.
    """

    def __init__(self, modelPath: str | Path) -> None:
        self.modelPath = modelPath

    def addForces(
        self,
        topology: app.Topology,
        system: openmm.System,
        atoms: Iterable[int] | None,
        forceGroup: int,
        backend: "BeadBackend | None" = None,
        **args: Any,  # noqa: ANN401
    ) -> None:
        """Add the force, and in a System of beads alone the masses of the beads and the constraints among them.

        Arguments:
            topology: of the beads, in the order of the flow; or of a larger System.
            system: to which to add.
            atoms: the beads in it; all if None.
            forceGroup: of the force.
            backend: `"torch"` or `"python"`; by default a TorchForce where it works.
            args: what other potentials may take; not used.

        Raises:
            MismatchError: if the beads are not those of the flow.
            ModelFileError: for a model file that cannot be read.
        """
        from openmm_cgflow.openmm_plugin.forces.force import create_bead_force
        from openmm_cgflow.openmm_plugin.recorded.compiled_forces import Particles
        from openmm_cgflow.trained import TrainedFlow

        flow = TrainedFlow.load(self.modelPath)
        everything = list(topology.atoms())
        beads = list(range(len(everything))) if atoms is None else [int(k) for k in atoms]
        flow.beads.check([everything[k] for k in beads])
        force = create_bead_force(flow, backend, particles=Particles(tuple(beads), len(everything)))
        force.setForceGroup(forceGroup)
        system.addForce(force)
        if atoms is None:
            for bead, mass in enumerate(flow.beads.masses):
                system.setParticleMass(bead, mass)
            for (i, j), distance in flow.beads.constraints.items():
                system.addConstraint(i, j, distance)
