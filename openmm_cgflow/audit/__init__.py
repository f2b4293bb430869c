"""Whether a flow reaches every form of its molecule: hot dynamics, quenched, and what was found compared with it."""

from openmm_cgflow.audit.run import LEAST, audit
from openmm_cgflow.coverage import Coverage, Form

__all__ = ["LEAST", "Coverage", "Form", "audit"]
