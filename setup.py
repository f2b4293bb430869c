"""Package metadata of openmm_cgflow."""

from pathlib import Path

from setuptools import find_packages, setup

# The one combination in which TorchForce evaluates, serialises and deep-copies on every platform.
TORCHFORCE = ["torch==2.9.1", "openmm>=8.5,<8.6", "openmmtorch==1.5"]

setup(
    name="openmm_cgflow",
    version="0.1.0",
    description="Data-free Boltzmann samplers and coarse-grained models for OpenMM, by normalizing flows",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["openmm_cgflow", "openmm_cgflow.*"]),
    package_data={"openmm_cgflow": ["py.typed", "data/*"]},
    install_requires=[
        "torch>=2.9,<2.14",
        "openmm>=8.5,<8.7",
        "openmmtools>=0.26,<0.28",
        "mdtraj>=1.11,<1.12",
        "parmed>=4.3,<4.4",
        "numpy>=1.26,<3",
        "scipy>=1.11,<2",
        "safetensors>=0.5,<1",
        "matplotlib>=3.9,<4",
        "rich>=13,<16",
        "typer>=0.15,<1",
        "networkx>=3.3,<4",
    ],
    extras_require={
        "torchforce": TORCHFORCE,
        "ml": ["openmmml>=1.7,<1.9"],
        "test": [
            *TORCHFORCE,
            "openmmml>=1.7,<1.8",
            "hypothesis>=6.100,<7",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.14,<1",
            "mypy>=1.18,<3",
        ],
    },
    entry_points={
        "console_scripts": ["openmm-cgflow=openmm_cgflow.cli:main"],
        "openmmml.potentials": ["cgflow=openmm_cgflow.ml_potential:CGFlowPotentialFactory"],
    },
)
