"""Which protein it is and where its alpha carbons are: residues, sequences, traces, and the geometry of planes."""
