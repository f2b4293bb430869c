"""Atoms around a trace: the chain of planes, candidates of side chains, and which of them go together."""
