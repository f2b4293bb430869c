"""Atoms of any protein around its alpha carbons or other beads, from energies alone.

`ProteinBackmapper` reads a sequence or a Topology, and puts atoms around traces of alpha carbons, or around beads such
as Martini's: a chain of peptide planes, then side chains. What it knows of residues is in a `FragmentLibrary`, made
from energies of capped residues; `FragmentFlows`, beside it, are densities of side chains given the backbone.
`BackmappedProtein` is what it gives; `backmap_protein_file` does so for files of any length.
"""

from openmm_cgflow.proteins.files import BackmappedProteinFile, backmap_protein_file
from openmm_cgflow.proteins.fragments.flow import FragmentFlow
from openmm_cgflow.proteins.fragments.flow_file import FragmentFlows
from openmm_cgflow.proteins.fragments.library import FragmentLibrary, local_template
from openmm_cgflow.proteins.mapper import ProteinBackmapper
from openmm_cgflow.proteins.result import BackmappedProtein

__all__ = [
    "BackmappedProtein",
    "BackmappedProteinFile",
    "FragmentFlow",
    "FragmentFlows",
    "FragmentLibrary",
    "ProteinBackmapper",
    "backmap_protein_file",
    "local_template",
]
