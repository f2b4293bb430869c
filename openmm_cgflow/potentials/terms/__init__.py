"""The terms of a force field in torch: what stands for each force of OpenMM, and what they are made of."""
