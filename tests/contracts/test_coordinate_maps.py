"""What every coordinate map keeps to: there and back, with the Jacobian's determinant, on any device and dtype."""

from collections.abc import Callable

import pytest
import torch
from molecules import load, thermal
from torch import Tensor

from openmm_cgflow.coordinates import InternalCoordinates, LinearCoordinates

Map = InternalCoordinates | LinearCoordinates


def of(name: str, **options) -> Callable[[], tuple[Map, Tensor]]:
    def make() -> tuple[Map, Tensor]:
        molecule = load(name, **options)
        return InternalCoordinates.fromTopology(*molecule), torch.as_tensor(thermal(molecule, 4))

    return make


def beads() -> tuple[Map, Tensor]:
    coordinates, x = of("ALA")()
    return coordinates.bead_coordinates(), x[:, coordinates.bead_atoms]


def planes() -> tuple[Map, Tensor]:
    """The alpha carbons of a peptide: two atoms that are no beads between each two of them."""
    molecule = load("ALA3")
    beads = [
        a.index
        for a in molecule.topology.atoms()
        if a.name in ("CA", "CH3") or (a.residue.name, a.name) == ("NME", "C")
    ]
    return InternalCoordinates.fromTopology(*molecule, beads=beads), torch.as_tensor(thermal(molecule, 4))


def vectors(slow) -> Callable[[], tuple[Map, Tensor]]:
    def make() -> tuple[Map, Tensor]:
        x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return LinearCoordinates(5, slow, width=3.0, seed=1).double(), x

    return make


MAPS: dict[str, Callable[[], tuple[Map, Tensor]]] = {
    "butane": of("butane"),
    "alanine dipeptide": of("ALA"),
    "with constraints": of("ALA", constraints="HBonds"),
    "a ring that flips": of("PRO"),
    "beads": beads,
    "planes": planes,
    "a rotation": vectors(2),
    "chosen entries": vectors([3, 0]),
}


@pytest.fixture(params=list(MAPS))
def made(request, dtype, device) -> tuple[Map, Tensor]:
    coordinates, x = MAPS[request.param]()
    return coordinates.to(device), x.to(dtype).to(device)


def distances(x: Tensor) -> Tensor:
    """What does not change as structures are turned; vectors are taken as they are."""
    return torch.cdist(x, x) if x.dim() == 3 else x


def test_map_goes_there_and_back(made, dtype):
    coordinates, x = made
    length, logarithm = (1e-6, 1e-3) if dtype == torch.float64 else (1e-4, 5e-2)  # MD keeps constraints to 1e-5
    q, log_det = coordinates.to_internal(x)
    back, again = coordinates.to_cartesian(q)
    assert q.shape == (len(x), coordinates.dof)
    assert back.shape == x.shape
    assert log_det.shape == again.shape == (len(x),)
    assert {t.device for t in (q, log_det, back, again)} == {x.device}
    assert coordinates.in_domain(q).all()
    if not isinstance(coordinates, LinearCoordinates):
        x = coordinates.canonical(x)  # leaves of rotors in the order in which they come out
    torch.testing.assert_close(distances(back), distances(x), rtol=0, atol=10 * length)
    torch.testing.assert_close(log_det, again, rtol=0, atol=logarithm)


def test_map_says_what_its_coordinates_are(made):
    coordinates, _ = made
    assert sum(coordinates.sizes) == coordinates.dof == len(coordinates.names)
    assert len(set(coordinates.names)) == coordinates.dof
    for name in ("reference", "centre", "scale", "period", "span"):
        assert getattr(coordinates, name).shape == (coordinates.dof,), name
    assert (coordinates.scale > 0).all()
    assert not coordinates.period[coordinates.sizes[0] : coordinates.sizes[0] + coordinates.sizes[1]].any()


def test_map_of_a_row_does_not_depend_on_the_others(made, dtype):
    coordinates, x = made
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    whole = coordinates.to_cartesian(coordinates.to_internal(x)[0])
    for k in range(len(x)):
        one = coordinates.to_cartesian(coordinates.to_internal(x[k : k + 1])[0])
        for mine, all_ in zip(one, whole, strict=True):
            torch.testing.assert_close(mine[0], all_[k], rtol=tolerance, atol=tolerance)


def test_map_is_differentiable_both_ways(made):
    coordinates, x = made
    leaf = x.clone().requires_grad_(True)
    q, log_det = coordinates.to_internal(leaf)
    assert torch.isfinite(torch.autograd.grad(q.sum() + log_det.sum(), leaf)[0]).all()
    leaf = q.detach().requires_grad_(True)
    y, log_det = coordinates.to_cartesian(leaf)
    assert torch.isfinite(torch.autograd.grad(y.sum() + log_det.sum(), leaf)[0]).all()
