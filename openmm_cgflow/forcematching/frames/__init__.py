"""What is known of beads from outside: their model and mapping, frames of trajectories, forces of atoms on beads."""
