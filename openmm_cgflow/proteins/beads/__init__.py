"""Beads that are no alpha carbons, such as those of Martini: what they stand for, and what they say of atoms."""
