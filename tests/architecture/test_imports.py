"""Which room may know of which: read from the sources, without importing anything."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

import openmm_cgflow

ROOT = Path(openmm_cgflow.__file__).parent
FLOORS = [
    {"errors", "version"},
    {"counts", "text_files"},
    {"compute", "trajectory_files", "units"},
    {"potentials"},
    {"chemistry", "storage"},
    {"coordinates"},
    {"atom_matching", "copies", "coverage", "flows", "sampling"},
    {"structures", "training"},
    {"beads", "door", "inputs", "structure_checks"},
    {"slow_scan", "trained"},
    {"analysis", "audit", "forcematching", "openmm_plugin", "trainable"},
    {"backmapping", "force_field", "vector_flow"},
    {"model"},
    {"proteins"},
    {"ml_potential", "__init__"},
    {"cli"},
    {"__main__"},
]
"""The rooms (folders and modules of the package) from the ground up: none imports from above, nor from its own floor.

This is the one place where their order is written.
"""
FACADE = {"model", "cli", "__init__", "__main__"}
HEIGHT = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """`potentials` of `openmm_cgflow.potentials.base`; `__init__` of the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["openmm_cgflow", *path.relative_to(ROOT).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def imports(tree: ast.AST, known: set[str]) -> Iterator[tuple[str, int]]:
    """Modules of the package that are imported, at the top or inside a function, for types as well; with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if room(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"line {node.lineno}: a relative import")
        elif isinstance(node, ast.ImportFrom) and node.module and room(node.module):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module, node.lineno


def room(name: str) -> bool:
    """Whether this is the package or a module of it."""
    return name == "openmm_cgflow" or name.startswith("openmm_cgflow.")


MODULES = modules()
EDGES = [(name, imported, line) for name, tree in MODULES.items() for imported, line in imports(tree, set(MODULES))]


def test_imports_are_found():
    assert len(MODULES) > 100
    assert ("openmm_cgflow.cli.app", "openmm_cgflow.errors") in {(a, b) for a, b, _ in EDGES}
    tree = ast.parse("def f():\n    from openmm_cgflow import model\n    import openmm_cgflow.cli\nimport openmm")
    assert {name for name, _ in imports(tree, set(MODULES))} == {"openmm_cgflow.model", "openmm_cgflow.cli"}


def test_imports_every_room_has_its_floor():
    assert {room_of(name) for name in MODULES} == set(HEIGHT)
    assert sum(len(rooms) for rooms in FLOORS) == len(HEIGHT)


@pytest.mark.parametrize("floor", range(len(FLOORS)), ids=[" ".join(sorted(rooms)) for rooms in FLOORS])
def test_imports_go_down_only(floor):
    wrong = [
        f"{name}:{line} imports {imported}"
        for name, imported, line in EDGES
        if HEIGHT[room_of(name)] == floor and room_of(name) != room_of(imported)
        if HEIGHT[room_of(imported)] >= floor and room_of(name) != "__init__"
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_make_no_circle_between_rooms_or_modules():
    rooms = networkx.DiGraph((room_of(a), room_of(b)) for a, b, _ in EDGES if room_of(a) != room_of(b))
    rooms.remove_nodes_from(["__init__", "__main__", "cli"])  # which know all others, and nobody knows
    assert list(networkx.simple_cycles(rooms)) == []
    # a package's own __init__ gathers what its modules have, and these do not ask it
    modules = networkx.DiGraph((a, b) for a, b, _ in EDGES if a != "openmm_cgflow")
    assert list(networkx.simple_cycles(modules)) == []


def test_imports_make_no_circle_between_the_folders_of_a_room():
    folders = {name.rpartition(".")[0] for name in MODULES if name.count(".") > 2}
    edges = {tuple(next((f for f in folders if n.startswith(f"{f}.")), None) for n in (a, b)) for a, b, _ in EDGES}
    inner = networkx.DiGraph((a, b) for a, b in edges if a and b and a != b)
    assert {"openmm_cgflow.proteins.placing", "openmm_cgflow.forcematching.students"} <= set(inner)
    assert list(networkx.simple_cycles(inner)) == []


def test_imports_nobody_below_knows_the_facade():
    wrong = [
        f"{name}:{line} imports {imported}"
        for name, imported, line in EDGES
        if room_of(imported) in FACADE and room_of(name) not in FACADE
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_of_what_few_programs_need_wait_until_they_are_needed():
    code = "import sys, openmm_cgflow as cgf; cgf.CGFlow; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "openmm_cgflow.openmm_plugin.recorded.compiled_forces" in loaded
    assert not {"torch._dynamo", "torch._inductor", "sympy", "matplotlib", "parmed", "openmmtools"} & set(loaded)
