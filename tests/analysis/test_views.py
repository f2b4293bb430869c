"""Structures on a page that can be turned: what is in the HTML, and that a browser draws them."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from molecules import load
from openmm import app

from openmm_cgflow.analysis.html import page
from openmm_cgflow.analysis.views import View, views_section

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def section() -> tuple[str, app.Topology, np.ndarray]:
    molecule = load("butane")
    x = np.asarray(molecule.positions)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turn *= np.linalg.det(turn)
    views = [View(x, "as it <is>"), View(x @ turn.T + 3.0, "turned & moved")]
    return views_section("Structures", molecule.topology, views), molecule.topology, x


def test_views_hold_the_atoms_and_bonds_laid_upon_one_another(section):
    html, topology, x = section
    first, second = (
        json.loads(found) for found in re.findall(r'<script type="application/json" id="atoms\d">(.*?)</script>', html)
    )
    assert [atom["elem"] for atom in first] == [atom.element.symbol for atom in topology.atoms()]
    place = [np.array([[atom[axis] for axis in "xyz"] for atom in atoms]) for atoms in (first, second)]
    assert np.allclose(place[0], place[1], atol=5e-3)
    apart = [np.linalg.norm(a[:, None] - a[None], axis=2) for a in (place[0], 10 * x)]
    assert np.allclose(apart[0], apart[1], atol=5e-3)
    bonds = {frozenset((i, j)) for i, atom in enumerate(first) for j in atom["bonds"]}
    assert bonds == {frozenset((bond[0].index, bond[1].index)) for bond in topology.bonds()}
    assert "as it &lt;is&gt;" in html
    assert "turned &amp; moved" in html


def test_no_views_are_no_section(section):
    assert views_section("Structures", section[1], []) == ""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_browser_draws_them(section, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page("t", "v", True, [], [], [], section[0]), encoding="utf-8")
    flags = ["headless", "no-sandbox", "disable-gpu", "enable-unsafe-swiftshader", "disable-background-networking"]
    command = [
        CHROMIUM,
        *(f"--{flag}" for flag in flags),
        f"--user-data-dir={tmp_path / 'user'}",
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.count("<canvas") == 2
    assert "needs WebGL" not in done.stdout.partition("<script")[0]
    assert "Uncaught" not in done.stderr
