"""Each check finds what it is for, and nothing in a structure that is right."""

import numpy as np
import pytest
from molecules import load
from openmm import app, unit

from openmm_cgflow.structure_checks import check_structures


def turned(x: np.ndarray, i: int, j: int, moved: list[int], angle: float) -> np.ndarray:
    """`x` with the atoms `moved` turned about the axis i-j."""
    axis = (x[j] - x[i]) / np.linalg.norm(x[j] - x[i])
    y = x.copy()
    arms = x[moved] - x[j]
    cosine, sine = np.cos(angle), np.sin(angle)
    y[moved] = x[j] + arms * cosine + np.cross(axis, arms) * sine + np.outer(arms @ axis, axis) * (1 - cosine)
    return y


@pytest.mark.parametrize("name", ["aldp_vacuum", "TRP", "PRO", "ILE", "camphor", "lidocaine"])
def test_nothing_is_wrong_with_a_right_structure(name):
    topology, _, x = load(name)
    checks = check_structures(topology, x, np.stack([x, x + 1.0]))
    assert checks.fine.all()
    assert not any(values.any() for values in (checks.clashes, checks.pierced_rings, checks.worst_bond > 1e-6))


def test_mirrored_stereocentres_are_counted():
    for name, centres in (("ALA", 1), ("ILE", 2), ("GLY", 0), ("camphor", 2)):
        topology, _, x = load(name)
        checks = check_structures(topology, x, np.stack([x, x * [1, 1, -1]]))
        np.testing.assert_array_equal(checks.wrong_chirality, [0, centres])


def test_cis_peptide_bonds_are_found():
    topology, _, x = load("aldp_vacuum")
    names = {(a.residue.name, a.name): a.index for a in topology.atoms()}
    c, n = names["ACE", "C"], names["ALA", "N"]
    moved = [a.index for a in topology.atoms() if a.residue.name in ("ALA", "NME") and a.index != n]
    checks = check_structures(topology, x, np.stack([turned(x, c, n, moved, a) for a in (0.0, 0.5, np.pi)]))
    np.testing.assert_array_equal(checks.wrong_peptides, [0, 0, 1])
    back = check_structures(topology, turned(x, c, n, moved, np.pi), x[None])
    np.testing.assert_array_equal(back.wrong_peptides, [1])


def test_clashes_and_stretched_bonds_are_found():
    topology, _, x = load("aldp_vacuum")
    names = {(a.residue.name, a.name): a.index for a in topology.atoms()}
    y = x.copy()
    y[names["NME", "CH3" if ("NME", "CH3") in names else "C"]] = x[names["ACE", "CH3"]] + [0.1, 0, 0]
    checks = check_structures(topology, x, y[None])
    assert checks.clashes[0] >= 1
    assert checks.worst_bond[0] > 0.2
    assert not checks.fine[0]


def test_a_bond_through_a_ring_is_found():
    topology, _, x = load("biphenyl")
    carbons = [a.index for a in topology.atoms() if a.element.symbol == "C"]
    bonds = [(b[0].index, b[1].index) for b in topology.bonds()]
    ring = _ring_of(carbons[0], bonds, carbons)
    outside = next(b for b in bonds if not set(b) & set(ring) and all(k in carbons for k in b))
    middle = x[ring].mean(0)
    u, v = x[ring[0]] - middle, x[ring[1]] - middle
    normal = np.cross(u, v) / np.linalg.norm(np.cross(u, v))
    through, beside = x.copy(), x.copy()
    through[list(outside)] = middle + np.outer([0.07, -0.07], normal) + 0.01
    beside[list(outside)] = middle + np.outer([0.07, -0.07], normal) + 2 * u
    pierced = check_structures(topology, x, np.stack([x, through, beside])).pierced_rings
    np.testing.assert_array_equal(pierced > 0, [False, True, False])  # the stretched ring may be pierced in its turn


def _ring_of(start: int, bonds: list[tuple[int, int]], carbons: list[int]) -> list[int]:
    """The six-ring of an atom, by walking."""
    near = {i: [j for b in bonds for j in b if i in b and j != i and j in carbons] for i in carbons}

    def walk(path: list[int]) -> list[int] | None:
        if len(path) == 6:
            return path if start in near[path[-1]] else None
        for j in near[path[-1]]:
            if j not in path and (found := walk([*path, j])):
                return found
        return None

    found = walk([start])
    assert found is not None
    return found


def test_no_structures():
    topology, _, x = load("butane")
    assert check_structures(topology, x, np.zeros((0, 14, 3))).fine.shape == (0,)


def test_the_box_of_amber_and_gromacs_files_is_read(tmp_path):
    """The message to those with a split molecule names such files; their boxes were not looked at."""
    import parmed

    from openmm_cgflow.structures import given_structures

    molecule = load("butane")
    made = parmed.openmm.load_topology(molecule.topology, molecule.system, molecule.positions * unit.nanometer)
    made.box = [30.0, 31.0, 32.0, 90.0, 90.0, 90.0]
    for name, read in (("a.gro", app.GromacsGroFile), ("a.rst7", app.AmberInpcrdFile)):
        made.save(str(tmp_path / name))
        given = given_structures(read(str(tmp_path / name)))
        np.testing.assert_allclose(np.diag(given.box), [3.0, 3.1, 3.2], atol=1e-5)
        np.testing.assert_allclose(given.x, molecule.positions, atol=1e-3)
