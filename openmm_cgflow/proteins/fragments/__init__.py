"""What is learned once from capped residues, on energies alone: training, flows, and the library that keeps it."""
