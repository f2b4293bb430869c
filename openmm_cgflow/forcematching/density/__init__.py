"""Teachers: densities of the internal coordinates of beads, and how they are fitted to frames."""
