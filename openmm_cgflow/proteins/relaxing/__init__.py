"""Descent of placed atoms, in turns of planes and side chains or by the force field, and repair of clashes."""
