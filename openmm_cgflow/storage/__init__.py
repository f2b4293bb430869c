"""Files that hold models and checkpoints: tensors and text in one container. Reading them never runs code."""

from openmm_cgflow.storage.container import pack, read_file, unpack, write_file
from openmm_cgflow.storage.files import locked, reading, write_whole
from openmm_cgflow.storage.modules import Allowance, check_fit, fill
from openmm_cgflow.storage.system_xml import check_storable, digest_of, system_from_xml, system_to_xml
from openmm_cgflow.storage.topology import StoredTopology, topology_from_json, topology_to_json
from openmm_cgflow.storage.typed import read_as

__all__ = [
    "Allowance",
    "StoredTopology",
    "check_fit",
    "check_storable",
    "digest_of",
    "fill",
    "locked",
    "pack",
    "read_as",
    "read_file",
    "reading",
    "system_from_xml",
    "system_to_xml",
    "topology_from_json",
    "topology_to_json",
    "unpack",
    "write_file",
    "write_whole",
]
