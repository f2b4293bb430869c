"""What every stage of training keeps to: it says what it trains and what follows, and its state can be put back."""

import json

import pytest
import torch
from torch import Tensor

from openmm_cgflow.coordinates import LinearCoordinates
from openmm_cgflow.flows import FlowSettings, JointFlow
from openmm_cgflow.potentials import DoubleWell
from openmm_cgflow.sampling import BoltzmannTarget
from openmm_cgflow.training import Budget, GeometricTempering, Parallel, Reporter, Trainer, TrainSettings

STAGES = ["laplace", "soft", "refine", "tempering"]
QUICK = {"points": 6, "sweeps": 1, "fit_steps": 2, "buffer": 64, "buffer_steps": 1, "soft_buffers": 1, "batch": 64}


def trainer(stage: str) -> Trainer:
    tempering = GeometricTempering(0.5, levels=1, steps=2) if stage == "tempering" else None
    coordinates = LinearCoordinates(2, [0], width=2.0)
    c = coordinates
    flow = JointFlow.build(c.sizes, c.centre, c.scale, c.period, FlowSettings(hidden=8, slow_hidden=8, components=4))
    target = BoltzmannTarget(DoubleWell(), coordinates, 1.0)
    made = Trainer(flow, target, TrainSettings(**QUICK, tempering=tempering), seed=1)
    made.loop.enter(stage)
    return made


def leaves(state) -> list:
    if isinstance(state, dict):
        return [leaf for value in state.values() for leaf in leaves(value)]
    return [leaf for value in state for leaf in leaves(value)] if isinstance(state, list | tuple) else [state]


@pytest.fixture(params=STAGES)
def made(request) -> Trainer:
    return trainer(request.param)


def test_stage_is_one_of_the_loop_and_names_what_follows(made):
    assert set(made.loop.stages) == set(STAGES)
    stage = made.loop.stages[made.loop.stage]
    assert stage.following is None or stage.following in STAGES
    assert stage.following != made.loop.stage


def test_stage_trains_parameters_of_the_flow_or_its_coordinates_each_once(made):
    groups = made.loop.stages[made.loop.stage].groups()
    known = {id(p) for module in (made.task.flow, made.target.coordinates) for p in module.parameters()}
    found = [id(p) for group in groups for p in group["params"]]
    assert found
    assert len(set(found)) == len(found)
    assert set(found) <= known
    assert all(group["factor"] > 0 for group in groups)


def test_stage_works_within_its_budget_and_its_state_can_be_put_back(made):
    name = made.loop.stage
    with Parallel(1) as parallel, Reporter(False) as reporter:
        made.run(Budget(evaluations=3000), parallel, reporter, lambda force=False: None)
    assert made.target.potential.evaluations <= 3000
    state = made.loop.stages[name].state_dict()
    plain = [leaf for leaf in leaves(state) if not isinstance(leaf, Tensor)]
    assert json.loads(json.dumps(plain)) == plain
    other = trainer(name)
    other.loop.stages[name].load_state_dict(state)
    again = other.loop.stages[name].state_dict()
    assert again.keys() == state.keys()
    for mine, its in zip(leaves(again), leaves(state), strict=True):
        assert torch.equal(mine, its) if isinstance(mine, Tensor) else mine == its
