"""Energies by Contexts of OpenMM, in this process and in others; and the checks that have these as their judge."""
