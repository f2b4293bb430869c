"""The errors that users meet: each names the thing, its value and the fix."""

__all__ = [
    "CGFlowError",
    "InvalidInputError",
    "MismatchError",
    "ModelFileError",
    "TrainingError",
    "UnsupportedForceError",
]


class CGFlowError(Exception):
    """Base class of every error that this package raises on purpose."""


class InvalidInputError(CGFlowError, ValueError):
    """A System, Topology, set of positions or argument that cannot be used."""


class MismatchError(CGFlowError, ValueError):
    """Two things that do not belong together, such as a model and another molecule."""


class ModelFileError(CGFlowError, ValueError):
    """A model file that is truncated, foreign, newer than this package, or cannot be written."""


class TrainingError(CGFlowError, RuntimeError):
    """Training cannot go on, for instance because every energy is NaN."""


class UnsupportedForceError(CGFlowError, NotImplementedError):
    """A force (named in the message) that the torch translation cannot reproduce."""
