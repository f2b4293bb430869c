"""Students: networks of the energy of beads, and how they learn from a teacher."""
