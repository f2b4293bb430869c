"""The command line: commands for flows, beads and proteins, on one application. Heavy libraries load inside them."""

from openmm_cgflow.cli import beads, flows, proteins  # noqa: F401  (which put their commands on it)
from openmm_cgflow.cli.app import app, main

__all__ = ["app", "main"]
