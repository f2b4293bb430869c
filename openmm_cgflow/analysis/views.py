"""Structures that can be turned on a page: 3Dmol.js, which lies in the package, and the atoms, all inside the page."""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from openmm import app

__all__ = ["View", "views_section"]

_STYLE = """
.views{display:flex;flex-wrap:wrap;gap:1.2rem}
.view{flex:1 1 240px;max-width:330px;margin:0}
.view div{position:relative;height:230px}
"""
_START = """
document.querySelectorAll(".view div").forEach(function (box) {
  try {
    const viewer = $3Dmol.createViewer(box, {backgroundColor: "white", disableFog: true});
    if (!viewer) { throw new Error("no WebGL"); }
    const atoms = JSON.parse(document.getElementById(box.dataset.atoms).textContent);
    viewer.addModel().addAtoms(atoms);
    viewer.setStyle({}, {stick: {radius: 0.11}, sphere: {scale: 0.2}});
    viewer.zoomTo();
    viewer.render();
  } catch (error) {
    box.textContent = "This view needs WebGL.";
  }
});
"""


class View(NamedTuple):
    """One structure.

    Attributes:
        positions: `(atoms, 3)`, nm.
        caption: what it is.
    """

    positions: np.ndarray
    caption: str


def views_section(heading: str, topology: app.Topology, views: Sequence[View]) -> str:
    """HTML of structures that the mouse turns, side by side; nothing for none.

    Arguments:
        heading: of the section.
        topology: of all of them, with bonds.
        views: the structures, which are laid upon the first one.

    Source: 3Dmol.js, Rego and Koes, Bioinformatics 31, 1322 (2015).
    """
    if not views:
        return ""
    neighbours: list[list[int]] = [[] for _ in range(topology.getNumAtoms())]
    for bond in topology.bonds():
        neighbours[bond[0].index].append(bond[1].index)
        neighbours[bond[1].index].append(bond[0].index)
    elements = [atom.element.symbol if atom.element is not None else "X" for atom in topology.atoms()]
    heavy = np.array([symbol != "H" for symbol in elements])
    figures, data = [], []
    for k, view in enumerate(views):
        placed = _laid_upon(np.asarray(view.positions, dtype=float), np.asarray(views[0].positions, dtype=float), heavy)
        atoms: list[dict[str, Any]] = [
            {"elem": elem, "x": x, "y": y, "z": z, "bonds": bonds, "bondOrder": [1] * len(bonds)}
            for elem, (x, y, z), bonds in zip(elements, (10 * placed).round(3).tolist(), neighbours, strict=True)
        ]
        data.append(f'<script type="application/json" id="atoms{k}">{json.dumps(atoms)}</script>')
        figures.append(
            f'<figure class="view"><div data-atoms="atoms{k}"></div>'
            f"<figcaption>{escape(view.caption)}</figcaption></figure>"
        )
    library = (files("openmm_cgflow") / "data" / "3Dmol-min.js").read_text(encoding="utf-8")
    return (
        f"<style>{_STYLE}</style><h2>{escape(heading)}</h2><p>Drag to turn, scroll to zoom.</p>"
        f'<div class="views">{"".join(figures)}</div>'
        f"{''.join(data)}<script>{library}</script><script>{_START}</script>"
    )


def _laid_upon(x: np.ndarray, target: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Turned and moved so that the chosen atoms lie upon the target's as well as they can (Kabsch)."""
    chosen = chosen if chosen.any() else np.ones(len(x), dtype=bool)
    own, other = x[chosen].mean(0), target[chosen].mean(0)
    u, _, vt = np.linalg.svd((x[chosen] - own).T @ (target[chosen] - other))
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    return (x - own) @ u @ flip @ vt
