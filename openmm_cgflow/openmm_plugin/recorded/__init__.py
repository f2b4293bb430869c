"""Recorded graphs of operations: compiled, or replayed by numpy, which is quicker for one structure."""
