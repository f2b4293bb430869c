"""No System from a file runs code, whatever it hides in; every System of OpenMM's own forces is stored and read."""

from pathlib import Path

import numpy as np
import openmm
import pytest
from fuzz.seeds import model, peroxide
from hostile import RUN_BY_OPENMM, attacks
from molecules import MODELS
from openmm import app
from typer.testing import CliRunner

import openmm_cgflow as cgf
from openmm_cgflow import cli, inputs, storage
from openmm_cgflow.ml_potential import CGFlowPotential

NAMES = list(attacks(Path("x")))
NATIVE = [
    kind
    for name, kind in vars(openmm).items()
    if isinstance(kind, type)
    and issubclass(kind, openmm.Force)
    and name not in ("Force", "PythonForce", "RPMDMonteCarloBarostat")
]


@pytest.fixture(scope="module")
def good_model() -> bytes:
    return model(*peroxide())


def with_system(data: bytes, xml: str | bytes) -> bytes:
    """A model file with another System in it."""
    tensors, header = storage.unpack(data, "model")
    header["system"] = xml if isinstance(xml, str) else xml.decode("latin-1")
    return storage.pack("model", tensors, header)


@pytest.mark.parametrize("name", sorted(RUN_BY_OPENMM))
def test_hostile_system_would_run_code_if_openmm_were_given_it(tmp_path, name):
    """What the other tests here are worth: these attacks work where nothing stands before them."""
    if name == "type twice" and not openmm.__version__.startswith("8.5"):
        pytest.skip("OpenMM 8.6 takes the first of two types")
    openmm.XmlSerializer.deserialize(attacks(tmp_path / "ran")[name])
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", NAMES)
def test_hostile_system_is_refused_and_not_run(tmp_path, good_model, name):
    xml = attacks(tmp_path / "ran", particles=4)[name]
    with pytest.raises(cgf.ModelFileError):
        storage.system_from_xml(xml)
    path = tmp_path / "m.cgflow"
    path.write_bytes(with_system(good_model, xml))
    with pytest.raises(cgf.ModelFileError, match=r"m\.cgflow"):
        cgf.CGFlow.load(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", NAMES)
def test_hostile_system_file_is_refused_and_not_run(tmp_path, name):
    topology, _, x = peroxide()
    pdb = tmp_path / "m.pdb"
    with pdb.open("w") as file:
        app.PDBFile.writeFile(topology, 10 * x, file)
    path = tmp_path / "s.xml"
    xml = attacks(tmp_path / "ran", particles=4)[name]
    path.write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    with pytest.raises(cgf.CGFlowError):
        inputs.load_system(path, pdb)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["plain", "a comment", "a processing instruction", "collective variables"])
def test_hostile_files_at_the_other_doors(tmp_path, good_model, name):
    topology, _, x = peroxide()
    with (tmp_path / "m.pdb").open("w") as file:
        app.PDBFile.writeFile(topology, 10 * x, file)
    xml = attacks(tmp_path / "ran", particles=4)[name]
    (tmp_path / "s.xml").write_text(xml)
    (tmp_path / "m.cgflow").write_bytes(with_system(good_model, xml))
    output = str(tmp_path / "o.cgflow")
    for command in (
        ["train", str(tmp_path / "s.xml"), str(tmp_path / "m.pdb"), "-o", output, "--time", "1"],
        ["sample", str(tmp_path / "m.cgflow"), "-o", str(tmp_path / "o.npz")],
        ["report", str(tmp_path / "m.cgflow"), "--out", str(tmp_path / "r")],
    ):
        result = CliRunner().invoke(cli.app, command)
        assert result.exit_code == 2, result.output
    with pytest.raises(cgf.ModelFileError, match=r"PythonForce|OpenMM does not write"):
        CGFlowPotential(tmp_path / "m.cgflow").addForces(topology, openmm.System(), None, 0)
    with pytest.raises(cgf.ModelFileError, match="is a model, not a checkpoint"):
        build().train(evaluations=100, checkpoint=tmp_path / "m.cgflow", progress=False)
    assert not (tmp_path / "ran").exists()


def build() -> cgf.CGFlow:
    return cgf.CGFlow(*peroxide(), seed=0)


@pytest.mark.parametrize(
    ("force", "name"), [(openmm.PythonForce(len), "PythonForce"), (openmm.CustomCVForce("x"), "PythonForce")]
)
def test_hostile_forces_are_not_stored_either(tmp_path, force, name):
    """`save` refuses what `load` would refuse."""
    if isinstance(force, openmm.CustomCVForce):
        force.addCollectiveVariable("x", openmm.PythonForce(len))
    topology, system, x = peroxide()
    flow = cgf.CGFlow(topology, system, x)
    getattr(flow, "_system", flow.system).addForce(force)
    with pytest.raises(cgf.ModelFileError, match=name):
        flow.save(tmp_path / "m.cgflow")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", NATIVE, ids=lambda kind: kind.__name__)
def test_hostile_guard_lets_native_forces_pass(kind):
    """As they are made with the fewest arguments that they take."""
    arguments = {
        "AndersenThermostat": (300, 1), "ATMForce": ("u0+u1",), "CustomAngleForce": ("theta",),
        "CustomBondForce": ("r",), "CustomCVForce": ("0",), "CustomCentroidBondForce": (2, "distance(g1,g2)"),
        "CustomCompoundBondForce": (2, "distance(p1,p2)"), "CustomExternalForce": ("x",),
        "CustomHbondForce": ("distance(a1,d1)",), "CustomManyParticleForce": (3, "distance(p1,p2)"),
        "CustomNonbondedForce": ("r",), "CustomTorsionForce": ("theta",), "CustomVolumeForce": ("v",),
        "MonteCarloAnisotropicBarostat": ((1, 1, 1), 300), "MonteCarloBarostat": (1, 300),
        "MonteCarloFlexibleBarostat": (1, 300), "RMSDForce": ([openmm.Vec3(0, 0, 0)],),
        "MonteCarloMembraneBarostat": (1, 1, 300, 0, 0), "OrientationRestraintForce": (1, [openmm.Vec3(0, 0, 0)]),
    }  # fmt: skip
    system = openmm.System()
    system.addParticle(1.0)
    force = kind(*arguments.get(kind.__name__, ()))
    force.setName("a<b & 'c' \"d\" \u03c6")
    system.addForce(force)
    xml = storage.system_to_xml(system)
    assert storage.system_to_xml(storage.system_from_xml(xml)) == xml
    storage.check_storable(system)


@pytest.mark.parametrize("kind", [3, 5, 8])
def test_hostile_guard_lets_tables_and_sites_pass(kind):
    system = peroxide()[1]
    for k in range(4):
        system.addParticle(0.0)
        sites = (
            openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5),
            openmm.ThreeParticleAverageSite(0, 1, 2, 0.2, 0.3, 0.5),
            openmm.OutOfPlaneSite(0, 1, 2, 0.1, 0.2, 0.3),
            openmm.LocalCoordinatesSite([0, 1, 2], [1, 0, 0], [-1, 1, 0], [-1, 0, 1], [0.1, 0, 0]),
        )
        system.setVirtualSite(4 + k, sites[k])
    system.addConstraint(0, 1, 0.1)
    many = openmm.CustomManyParticleForce(kind, "f(distance(p1,p2))*g(1)*h(1,2)*i(1,2,3)*j(1,2)*k(1,2,3)")
    many.setTypeFilter(0, [0, 1])
    numbers = list(np.arange(8.0))
    for name, function in {
        "f": openmm.Continuous1DFunction(numbers, 0, 1),
        "g": openmm.Discrete1DFunction(numbers),
        "h": openmm.Discrete2DFunction(2, 4, numbers),
        "i": openmm.Discrete3DFunction(2, 2, 2, numbers),
        "j": openmm.Continuous2DFunction(2, 4, numbers, 0, 1, 0, 1),
        "k": openmm.Continuous3DFunction(2, 2, 2, numbers, 0, 1, 0, 1, 0, 1),
    }.items():
        many.addTabulatedFunction(name, function)
    system.addForce(many)
    born = openmm.CustomGBForce()
    born.addComputedValue("B", "1", openmm.CustomGBForce.ParticlePairNoExclusions)
    born.addEnergyTerm("B", openmm.CustomGBForce.SingleParticle)
    system.addForce(born)
    xml = storage.system_to_xml(system)
    assert storage.system_to_xml(storage.system_from_xml(xml)) == xml


@pytest.mark.parametrize(
    "xml",
    [
        "<System" + " a='b'" * 3 + ' type="System">' + "<a>" * 100_000,
        "",
        "<",
        "<System/>",
        '<System type="System"/>',
        '<System type="State"/>',
        '<!DOCTYPE a [<!ENTITY a0 "x">'
        + "".join(f'<!ENTITY a{k + 1} "&a{k};&a{k};&a{k};&a{k};">' for k in range(40))
        + ']><System type="System">&a40;</System>',
        '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><System type="System">&a;</System>',
        "\ud800",
        b"\xff\xfe\x00",
        "(" * 10,
    ],
    ids=["deep", "empty", "cut", "bare", "hollow", "state", "entities", "file", "surrogate", "bytes", "text"],
)
def test_hostile_text_instead_of_a_system(xml):
    with pytest.raises(cgf.ModelFileError):
        storage.system_from_xml(xml)


def test_hostile_number_of_elements(monkeypatch):
    monkeypatch.setattr("openmm_cgflow.storage.system_xml.MOST_ELEMENTS", 1000)
    xml = storage.system_to_xml(peroxide()[1])
    storage.system_from_xml(xml)
    with pytest.raises(cgf.ModelFileError, match="1,000 elements"):
        storage.system_from_xml(xml.replace("<Constraints/>", f"<Constraints>{'<Constraint/>' * 1000}</Constraints>"))


@pytest.mark.parametrize(
    "formula",
    [
        "(" * 5000 + "r" + ")" * 5000,
        "sin(" * 500 + "r" + ")" * 500,
        "-" * 20_000 + "r",
        "^".join(["r"] * 500),
        "+".join(["r"] * 5000),
        "a0;" + ";".join(f"a{i}=a{i + 1}+a{i + 1}" for i in range(40)) + ";a40=r",
        "9" * 200_000,
    ],
    ids=["parentheses", "functions", "signs", "powers", "sum", "definitions", "digits"],
)
def test_hostile_formulas_are_refused_at_once(formula):
    """OpenMM takes minutes for these, or crashes; Python runs out of stack."""
    from openmm_cgflow.potentials.terms.lepton import Expression

    with pytest.raises(cgf.UnsupportedForceError):
        Expression(formula)
    system = peroxide()[1]
    force = openmm.CustomBondForce(formula)
    force.addBond(0, 1, [])
    system.addForce(force)
    with pytest.raises(cgf.ModelFileError, match="an attribute energy that is too much"):
        storage.system_from_xml(storage.system_to_xml(system))


def test_hostile_python_force_in_a_script_is_the_users_own(tmp_path):
    """Whoever trusts a force builds the System himself; the message says so."""
    with pytest.raises(cgf.ModelFileError, match="Build the System in your script and give it to CGFlow"):
        storage.system_from_xml(attacks(tmp_path / "ran")["plain"])


def test_hostile_checks_let_models_of_before_pass():
    """Files that were written before there was a schema."""
    for path in sorted(MODELS.glob("*.cgflow")):
        _, header = storage.read_file(path, "model")
        flow = cgf.CGFlow.load(path)
        assert flow.history == header["history"]
        assert flow.sample(200, seed=0).ess > 0.9, path  # 98 % with 20,000: below 90 % by chance in less than 1 of 10^4
