"""The facade `CGForceField`: a student with all that a System of beads needs, and the file that holds it.

`stored.py` says what the file has, and checks it; `force_field.py` makes force fields, and Systems of them; `report.py`
is the page about one.
"""

from openmm_cgflow.force_field.force_field import CGForceField, student_of
from openmm_cgflow.force_field.stored import Fitted

__all__ = ["CGForceField", "Fitted", "student_of"]
