"""Settings that cannot be are refused by name, before anything is trained."""

import dataclasses
import json
import math

import numpy as np
import pytest

import openmm_cgflow as cgf
from openmm_cgflow.flows import FlowSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", 0),
        ("buffer", -5),
        ("kept", 2.5),
        ("points", "many"),
        ("buffer_steps", 0),
        ("sweeps", True),
        ("average", 1.5),
        ("least_ess", -0.1),
        ("flattening", math.nan),
        ("blur", math.inf),
        ("learning_rates", (1e-3, 1e-3)),
        ("learning_rates", (1e-3, 1e-3, -1.0)),
        ("shares", (0.3, 2.0)),
        ("shares", 0.3),
        ("flattening", 0.0),
        ("average", 1.0),
        ("defended", 1),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(name, value):
    with pytest.raises(cgf.InvalidInputError, match=f"TrainSettings: {name} is "):
        cgf.TrainSettings(**{name: value})
    with pytest.raises(ValueError, match=f"TrainSettings: {name} is "):  # as a damaged file has it
        cgf.TrainSettings.from_dict({**cgf.TrainSettings().as_dict(), name: value})


def test_settings_survive_being_stored():
    for settings in (
        cgf.TrainSettings(),
        cgf.TrainSettings(batch=np.int64(7), blur=np.float32(0.5), shares=(np.float32(0.25), 1)),
        cgf.TrainSettings(tempering=cgf.training.GeometricTempering(0.1, levels=np.int64(3))),
        cgf.TrainSettings(tempering=cgf.training.AdaptiveTempering(np.float32(0.5), steps=np.int64(3))),
    ):
        assert cgf.TrainSettings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings
        assert dataclasses.replace(settings, points=9).points == 9


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (cgf.AdaptiveTempering, {"steps": 2.5}, "AdaptiveTempering: steps is 2.5"),
        (cgf.AdaptiveTempering, {"beta": 1.5}, "AdaptiveTempering: beta is 1.5; give a number above 0 and at most 1"),
        (cgf.AdaptiveTempering, {"delta": 0}, "AdaptiveTempering: delta is 0"),
        (cgf.GeometricTempering, {"levels": 0}, "GeometricTempering: levels is 0"),
        (cgf.GeometricTempering, {"beta": "low"}, "GeometricTempering: beta is 'low'"),
        (cgf.TrainSettings, {"tempering": "adaptive"}, "tempering is 'adaptive'; give a schedule"),
        (cgf.TrainSettings, {"tempering": cgf.AdaptiveTempering}, "give a schedule"),
        (FlowSettings, {"hidden": 1}, "FlowSettings: hidden is 1"),
        (FlowSettings, {"components": 2.5}, "FlowSettings: components is 2.5"),
    ],
)
def test_numbers_of_schedules_and_networks_that_cannot_be_are_refused(kind, values, message):
    with pytest.raises(cgf.InvalidInputError, match=message):
        kind(**values)


def test_settings_of_networks_may_be_numpys():
    assert json.dumps(FlowSettings(components=np.int64(8)).as_dict()) == json.dumps(FlowSettings(8).as_dict())
