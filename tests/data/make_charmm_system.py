"""Writes ALA_PRO_charmm36.xml, the serialized System of ALA_PRO.pdb: OpenMM takes seconds to build it.

python tests/data/make_charmm_system.py
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from molecules import CHARMM, caps_merged  # noqa: E402
from openmm import XmlSerializer, app  # noqa: E402

for name in CHARMM:
    topology = caps_merged(app.PDBFile(str(HERE / f"{name}.pdb")).topology)
    system = app.ForceField("charmm36.xml").createSystem(topology)
    (HERE / f"{name}_charmm36.xml").write_text(XmlSerializer.serialize(system))
