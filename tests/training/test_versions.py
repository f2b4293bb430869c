"""What is made of a flow is made anew once the flow has changed, also by steps that end in a first stage."""

from molecules import load

import openmm_cgflow as cgf
from openmm_cgflow.openmm_plugin.moves.structure_density import StructureDensity
from openmm_cgflow.trained import KnownRegion


def test_what_was_made_of_a_flow_is_made_anew_after_steps_of_the_optimizer():
    flow = cgf.CGFlow(*load("butane"), seed=0)
    known, density = KnownRegion.of(flow), StructureDensity.of(flow)
    assert KnownRegion.of(flow) is known
    assert StructureDensity.of(flow) is density
    tempering = cgf.training.GeometricTempering(beta=0.1, levels=100, steps=2)
    settings = cgf.TrainSettings(batch=64, tempering=tempering, joint=True)
    flow.train(evaluations=400, settings=settings, progress=False)
    assert {row["stage"] for row in flow.history} == {"tempering"}
    assert KnownRegion.of(flow) is not known
    assert StructureDensity.of(flow) is not density
    moved = known.bead_flow.stiff.log_diagonal - KnownRegion.of(flow).bead_flow.stiff.log_diagonal
    assert moved.abs().max() > 0
