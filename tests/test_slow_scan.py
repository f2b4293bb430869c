"""Which torsions are slow by themselves."""

import numpy as np
import pytest
from molecules import load

import openmm_cgflow as cgf
from openmm_cgflow import cli
from openmm_cgflow.chemistry import find_kept_back, perceive
from openmm_cgflow.slow_scan import basins_on_circle


@pytest.mark.parametrize(
    ("values", "basins", "ridges"),
    [
        ([0, 8, 1, 1.5, 1.2, 9], [0, 2], [8, 9]),
        ([0, 8, 6, 9], [0], []),  # the other is out of reach
        ([3, 3.5, 3.1, 8, 0, 9], [0, 4], [8, 9]),  # a dent of half a kT is none
        ([9, 0, 9, 1, 9, 2], [1, 3, 5], [9, 9, 9]),
        ([0, np.inf, 2, np.inf], [0, 2], [np.inf, np.inf]),
        ([1, 1, 1, 1], [0], []),
    ],
)
def test_basins_on_a_circle(values, basins, ridges):
    found, walls = basins_on_circle(np.array(values, dtype=float), reach=5, ridge=1)
    assert len(found) == len(basins)
    if len(basins) > 1:
        assert found == basins
        assert walls == ridges


def test_butane_has_its_one_torsion_with_three_basins():
    scan = cgf.scanTorsions(*load("butane"))
    assert scan.slow_names == ["LIG1:C1-C2-C3-C4"]
    (torsion,) = scan.torsions
    degrees = sorted(abs(round(np.degrees(angle))) for angle, _ in torsion.basins)
    assert degrees[2] == 180
    assert all(50 < angle < 80 for angle in degrees[:2])
    trans, *gauche = (energy for _, energy in torsion.basins)
    assert trans == 0
    assert gauche[0] == pytest.approx(gauche[1], abs=0.3)  # mirror images
    assert len(torsion.barriers) == 3
    assert "barriers" in str(scan)
    assert str(scan).count("symmetric rotor") == 2


def test_alanine_dipeptide_has_phi_and_psi(aldp_vacuum):
    flow = cgf.CGFlow(*aldp_vacuum, slow="auto")
    assert flow.slow_names == ["ALA2:phi", "ALA2:psi"]


def test_auto_can_be_asked_for_in_the_shell():
    assert cli.flows.slow_torsions("auto") == "auto"


def test_biphenyl_has_the_torsion_between_its_rings():
    scan = cgf.scanTorsions(*load("biphenyl"))
    assert scan.slow == [scan.torsions[0].atoms]
    assert len(scan.torsions[0].basins) == 4
    assert np.ptp([energy for _, energy in scan.torsions[0].basins]) < 0.3  # equivalent by symmetry


def test_what_is_left_out_is_said():
    molecule = load("PRO")
    kept = find_kept_back(perceive(*molecule))
    reasons = {entry.name: entry.reason for entry in kept}
    assert "isomer of the input" in reasons["PRO2:omega"]
    assert any(name.startswith("ring bonds") and "puckers" in reason for name, reason in reasons.items())
    assert all(i < j for entry in kept for i, j in entry.axes)


def test_automatic_choice_perceives_once_and_builds_its_energies_once(monkeypatch):
    from openmm_cgflow import model, slow_scan
    from openmm_cgflow.chemistry import perception
    from openmm_cgflow.trained import molecule as trained

    for name, few in (("_WALKERS", 16), ("_KEPT", 2), ("_SWEEPS", 2)):
        monkeypatch.setattr(slow_scan, name, few)
    calls = {"checks": 0, "potential": 0}

    def counted(name, function):
        def call(*arguments):
            calls[name] += 1
            return function(*arguments)

        return call

    monkeypatch.setattr(perception, "check_inputs", counted("checks", perception.check_inputs))
    make = counted("potential", model.make_potential)
    monkeypatch.setattr(model, "make_potential", make)
    monkeypatch.setattr(trained, "make_potential", make)
    flow = cgf.CGFlow(*load("butane"), slow="auto")
    assert calls == {"checks": 1, "potential": 1}
    assert flow.evaluations == 0  # those of the scan are no part of the flow's
    assert flow.slow_names == ["LIG1:C1-C2-C3-C4"]
