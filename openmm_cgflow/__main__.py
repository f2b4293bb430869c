"""The command line as `python -m openmm_cgflow`."""

from openmm_cgflow.cli import main

if __name__ == "__main__":
    main()
