"""Free energies of a flow as forces of OpenMM, and the System of beads that has one."""
