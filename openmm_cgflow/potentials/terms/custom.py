"""Custom forces on bonds, angles, torsions, single atoms and groups of atoms, from their expressions."""

from collections.abc import Callable, Mapping
from itertools import permutations

import numpy as np
import openmm
import torch
from torch import Tensor

from openmm_cgflow.errors import UnsupportedForceError
from openmm_cgflow.potentials.terms.bonded import angle, torsion
from openmm_cgflow.potentials.terms.frame import DifferenceTable, Frame, Term, norm
from openmm_cgflow.potentials.terms.lepton import Expression, Value
from openmm_cgflow.potentials.terms.ops import RowIndex, gather, local_energy
from openmm_cgflow.potentials.terms.tabulated import tabulated_functions

__all__ = ["CustomSitesTerm", "CustomVariableTerm", "custom_term", "global_parameters"]

_POINT_SIZES = {"pointdistance": 2, "pointangle": 3, "pointdihedral": 4}
_SITE_SIZES = {"distance": 2, "angle": 3, "dihedral": 4}


def global_parameters(force: openmm.Force) -> dict[str, Value]:
    """Global parameters of a custom force at their default values."""
    return {
        force.getGlobalParameterName(i): force.getGlobalParameterDefaultValue(i)
        for i in range(force.getNumGlobalParameters())
    }


def _as_rows(out: Value, like: Tensor) -> Tensor:
    return out.expand_as(like) if isinstance(out, Tensor) else torch.full_like(like, out)


class _ExpressionTerm(Term):
    """Rows with parameters, and an expression evaluated on each."""

    def __init__(self, expression: Expression, names: list[str], rows: np.ndarray, constants: Mapping[str, Value],
                 variables: set[str], dtype: torch.dtype) -> None:  # fmt: skip
        super().__init__()
        self.expression = expression
        self.constants = dict(constants)
        self.names = names
        for k, name in enumerate(names):
            self.column(f"row_{name}", rows[:, k], dtype)
        if unknown := expression.names - variables - set(names) - set(constants):
            raise UnsupportedForceError(f"the expression {expression.text!r} uses {sorted(unknown)}")

    def evaluate(self, variables: Mapping[str, Value], like: Tensor) -> Tensor:
        """The expression on every row: (rows, batch)."""
        parameters = {name: getattr(self, f"row_{name}") for name in self.names}
        return _as_rows(self.expression({**self.constants, **parameters, **variables}), like)


class CustomVariableTerm(_ExpressionTerm):
    """CustomBondForce (r), CustomAngleForce (theta) and CustomTorsionForce (theta)."""

    def __init__(self, table: DifferenceTable, atoms: np.ndarray, expression: Expression, names: list[str],
                 rows: np.ndarray, constants: Mapping[str, Value], dtype: torch.dtype) -> None:  # fmt: skip
        width = atoms.shape[1]
        self_variable = "r" if width == 2 else "theta"
        super().__init__(expression, names, rows, constants, {self_variable}, dtype)
        self.variable = self_variable
        ends = {2: [(0, 1)], 3: [(0, 1), (2, 1)], 4: [(1, 0), (2, 1), (3, 2)]}[width]
        measures: dict[int, Callable[..., Tensor]] = {2: norm, 3: angle, 4: torsion}
        self.measure = measures[width]
        self.slots = [table.add(atoms[:, a], atoms[:, b]) for a, b in ends]

    def forward(self, frame: Frame) -> Tensor:
        """Energies (batch,)."""

        def energy(*vectors: Tensor) -> Tensor:
            value = self.measure(*vectors)
            return self.evaluate({self.variable: value}, value)

        return local_energy(energy, *(frame.vectors(slot) for slot in self.slots)).sum(0)


class CustomSitesTerm(_ExpressionTerm):
    """CustomExternalForce, CustomCompoundBondForce and CustomCentroidBondForce: expressions of sites.

    Arguments:
        n_atoms: Of the System.
        sites: For each row, the numbers of its sites (rows, k).
        expression: Of x1, y1, z1, ... and `distance`, `angle`, `dihedral` of sites; or of x, y, z.
        names: Of the row parameters.
        rows: The row parameters.
        constants: Global parameters.
        prefix: "p" or "g" for the names of sites in functions, "" for a plain x, y, z.
        weights: (sites, atoms) that make sites from atoms, or None where sites are atoms.
        dtype: Of the parameters.
    """

    weights: Tensor | None

    def __init__(self, n_atoms: int, sites: np.ndarray, expression: Expression, names: list[str], rows: np.ndarray,
                 constants: Mapping[str, Value], prefix: str, weights: np.ndarray | None, dtype: torch.dtype
                 ) -> None:  # fmt: skip
        self_sites = [f"{prefix}{k + 1}" for k in range(sites.shape[1])]
        functions = {
            f"{kind}({','.join(chosen)})": (kind, [self_sites.index(c) for c in chosen])
            for kind, size in _SITE_SIZES.items()
            for chosen in (permutations(self_sites, size) if prefix else ())
        }
        labels = [str(k + 1) if prefix else "" for k in range(sites.shape[1])]
        variables = {axis + label for axis in "xyz" for label in labels} | set(functions)
        super().__init__(expression, names, rows, constants, variables, dtype)
        self.labels = labels
        self.functions = {key: value for key, value in functions.items() if key in expression.names}
        table = torch.from_numpy(weights).to(dtype) if weights is not None else None
        self.register_buffer("weights", table, persistent=False)
        size = n_atoms if weights is None else len(weights)
        self.index = torch.nn.ModuleList(
            RowIndex(size, torch.from_numpy(np.ascontiguousarray(sites[:, k])), None, dtype)
            for k in range(sites.shape[1])
        )

    def _variables(self, sites: tuple[Tensor, ...]) -> dict[str, Value]:
        variables: dict[str, Value] = {}
        for label, site in zip(self.labels, sites, strict=True):
            variables.update(zip((f"x{label}", f"y{label}", f"z{label}"), site.unbind(1), strict=True))
        for key, (kind, chosen) in self.functions.items():
            variables[key] = _measure(kind, [sites[k] for k in chosen])
        return variables

    def forward(self, frame: Frame) -> Tensor:
        """Energies (batch,)."""
        x = frame.x
        if self.weights is not None:
            x = (self.weights @ x.reshape(x.shape[0], -1)).reshape(-1, *x.shape[1:])

        def energy(*sites: Tensor) -> Tensor:
            return self.evaluate(self._variables(sites), sites[0][:, 0])

        return local_energy(energy, *(gather(x, index) for index in self.index)).sum(0)  # type: ignore[arg-type]


def _measure(kind: str, p: list[Tensor]) -> Tensor:
    """Distance, angle or dihedral of points (rows, 3, batch)."""
    if kind.endswith("distance"):
        return norm(p[1] - p[0])
    if kind.endswith("angle"):
        return angle(p[0] - p[1], p[2] - p[1])
    return torsion(p[1] - p[0], p[2] - p[1], p[3] - p[2])


def _point_function(kind: str) -> Callable[..., Value]:
    def measure(*coordinates: Value) -> Value:
        like = next((c for c in coordinates if isinstance(c, Tensor)), None)
        if like is None:
            raise UnsupportedForceError(f"{kind} of numbers alone")
        shaped = [c if isinstance(c, Tensor) else torch.full_like(like, c) for c in coordinates]
        stacked = torch.stack(torch.broadcast_tensors(*shaped), 1)
        return _measure(kind, [stacked[:, 3 * k : 3 * k + 3] for k in range(_POINT_SIZES[kind])])

    return measure


def _tabulated(force: openmm.Force) -> dict[str, Callable[..., Value]]:
    return tabulated_functions(force) if hasattr(force, "getNumTabulatedFunctions") else {}


def _bonded(force: openmm.Force, kind: str, table: DifferenceTable, dtype: torch.dtype) -> list[Term]:
    count = getattr(force, f"getNum{kind}s")()
    rows = [getattr(force, f"get{kind}Parameters")(i) for i in range(count)]
    if not rows:
        return []
    names = [
        getattr(force, f"getPer{kind}ParameterName")(i) for i in range(getattr(force, f"getNumPer{kind}Parameters")())
    ]
    atoms = np.array([r[:-1] for r in rows], dtype=np.int64)
    values = np.array([r[-1] for r in rows]).reshape(count, -1)
    expression = Expression(force.getEnergyFunction(), _tabulated(force))
    return [CustomVariableTerm(table, atoms, expression, names, values, global_parameters(force), dtype)]


def _external(force: openmm.CustomExternalForce, n_atoms: int, dtype: torch.dtype) -> list[Term]:
    rows = [force.getParticleParameters(i) for i in range(force.getNumParticles())]
    if not rows:
        return []
    names = [force.getPerParticleParameterName(i) for i in range(force.getNumPerParticleParameters())]
    atoms = np.array([[r[0]] for r in rows], dtype=np.int64)
    values = np.array([r[1] for r in rows]).reshape(len(rows), -1)
    expression = Expression(force.getEnergyFunction())
    return [CustomSitesTerm(n_atoms, atoms, expression, names, values, global_parameters(force), "", None, dtype)]


def _sites(force: openmm.Force, masses: list[float], dtype: torch.dtype) -> list[Term]:
    count = force.getNumBonds()
    if count == 0:
        return []
    rows = [force.getBondParameters(i) for i in range(count)]
    names = [force.getPerBondParameterName(i) for i in range(force.getNumPerBondParameters())]
    sites = np.array([r[0] for r in rows], dtype=np.int64)
    values = np.array([r[1] for r in rows]).reshape(count, -1)
    functions = {**_tabulated(force), **{kind: _point_function(kind) for kind in _POINT_SIZES}}
    expression = Expression(force.getEnergyFunction(), functions, frozenset(_SITE_SIZES))
    prefix, weights = "p", None
    if isinstance(force, openmm.CustomCentroidBondForce):
        prefix, weights = "g", _centroid_weights(force, masses)
    return [
        CustomSitesTerm(len(masses), sites, expression, names, values, global_parameters(force), prefix, weights, dtype)
    ]


def _centroid_weights(force: openmm.CustomCentroidBondForce, masses: list[float]) -> np.ndarray:
    """(groups, atoms): normalised weights, by default the masses."""
    table = np.zeros((force.getNumGroups(), len(masses)))
    for g in range(force.getNumGroups()):
        atoms, weights = force.getGroupParameters(g)
        w = np.array(weights if len(weights) else [masses[a] for a in atoms], dtype=np.float64)
        table[g, list(atoms)] = w / w.sum()
    return table


def custom_term(force: openmm.Force, table: DifferenceTable, masses: list[float], dtype: torch.dtype) -> list[Term]:
    """Translate a custom force on bonds, angles, torsions, atoms or groups.

    Raises:
        UnsupportedForceError: Another kind of force, or an expression that cannot be translated.
    """
    if isinstance(force, openmm.CustomBondForce):
        return _bonded(force, "Bond", table, dtype)
    if isinstance(force, openmm.CustomAngleForce):
        return _bonded(force, "Angle", table, dtype)
    if isinstance(force, openmm.CustomTorsionForce):
        return _bonded(force, "Torsion", table, dtype)
    if isinstance(force, openmm.CustomExternalForce):
        return _external(force, len(masses), dtype)
    if isinstance(force, openmm.CustomCompoundBondForce | openmm.CustomCentroidBondForce):
        return _sites(force, masses, dtype)
    raise UnsupportedForceError(f"{type(force).__name__} has no translation to torch")
