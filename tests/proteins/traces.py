"""Traces of alpha carbons for the tests."""

import numpy as np

SEQUENCE = "GAVLSTCPFYWHKRDENQMI"


def helix(n: int) -> np.ndarray:
    """Alpha carbons of an alpha helix, `(n, 3)` nm: 100 degrees and 0.15 nm a residue."""
    turn = np.radians(100) * np.arange(n)
    return np.stack([0.23 * np.cos(turn), 0.23 * np.sin(turn), 0.15 * np.arange(n)], 1)


def strand(n: int) -> np.ndarray:
    """Alpha carbons of a strand, a little twisted, `(n, 3)` nm."""
    turn = np.radians(195) * np.arange(n)
    return np.stack([0.09 * np.cos(turn), 0.09 * np.sin(turn), 0.335 * np.arange(n)], 1)


def noisy(trace: np.ndarray, frames: int, sigma: float, seed: int = 0) -> np.ndarray:
    """Copies with Gaussian noise of `sigma` nm."""
    return trace + sigma * np.random.default_rng(seed).normal(size=(frames, *trace.shape))
