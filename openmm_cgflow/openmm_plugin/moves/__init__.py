"""Moves of a flow between the steps of a simulation, and whether flow and simulation belong together."""
