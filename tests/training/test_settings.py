"""Settings that cannot be are refused by name, before anything is trained."""

import dataclasses
import math

import numpy as np
import pytest

import openmm_cgflow as cgf


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
        cgf.TrainSettings(batch=np.int64(7), blur=np.float32(0.5)),
        cgf.TrainSettings(tempering=cgf.training.GeometricTempering(0.1, levels=3)),
    ):
        assert cgf.TrainSettings.from_dict(settings.as_dict()) == settings
        assert dataclasses.replace(settings, points=9).points == 9
