"""Reports: files, numbers in the page, and honesty about bad weights."""

import base64
import re
from importlib.resources import files
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
from openmm import System, app

from openmm_cgflow.analysis import report, summary, torsion_pairs, trust
from openmm_cgflow.errors import InvalidInputError, MismatchError
from openmm_cgflow.sampling import Samples
from openmm_cgflow.units import KB

ATOMS = 22
MEANS = np.radians([[-75, 140], [-70, -35], [55, 45]])
SHARES = np.array([0.62, 0.35, 0.03])


def fake_topology(n_atoms=ATOMS):
    topology = app.Topology()
    residue = topology.addResidue("ALA", topology.addChain())
    for k in range(n_atoms):
        topology.addAtom(f"C{k}", app.element.carbon, residue)
    return topology


def log_mixture(x, shares, concentration):
    """Log-density of a mixture of products of von Mises densities, up to a constant."""
    terms = concentration * np.cos(x[:, None, :] - MEANS[None]).sum(-1)
    return np.log(np.exp(terms - 2 * concentration) @ shares)


def make_samples(n=10_000, noise=0.6, names=("phi", "psi"), seed=0):
    """Draws of a mixture of von Mises densities, weights towards another mixture, and noise as of stiff modes."""
    rng = np.random.default_rng(seed)
    proposal = np.array([0.5, 0.4, 0.1])
    which = rng.choice(3, n, p=proposal)
    x = rng.vonmises(MEANS[which], 6.0)
    slow = np.concatenate([x] * (-(-len(names) // 2)), axis=1)[:, : len(names)]
    extra = noise * rng.standard_normal(n)
    logw = log_mixture(x, SHARES, 6.0) - log_mixture(x, proposal, 6.0) + extra - noise**2 / 2
    stiff = 0.5 * rng.chisquare(55, n)
    return Samples(
        positions=np.zeros((n, ATOMS, 3), dtype=np.float32),
        log_weights=logw - 31.0,
        reduced_energies=stiff - log_mixture(x, SHARES, 6.0) - 40 - extra,
        log_densities=-stiff,
        slow=slow.astype(np.float32),
        temperature=300.0,
        topology=fake_topology(),
        slow_names=tuple(names),
    )


def make_history():
    rng = np.random.default_rng(1)
    rows, t, e = [], 0.0, 0
    for stage, n, start, end in (("Laplace", 6, 0, 0.12), ("reverse KL", 60, 0.1, 0.4), ("refinement", 90, 0.4, 0.68)):
        for k in range(n):
            t, e = t + 2.5, e + (60_000 if stage == "Laplace" else 20_000)
            ess = start + (end - start) * (1 - np.exp(-4 * k / n)) + 0.015 * rng.standard_normal()
            laplace = stage == "Laplace"
            rows.append(
                {
                    "stage": stage,
                    "seconds": t,
                    "evaluations": e,
                    "ess": None if laplace and k < 3 else max(ess, 0.001),
                    "logZ": None if laplace else 31 - 0.4 * np.exp(-3 * k / n) + 0.02 * rng.standard_normal(),
                    "loss": float("nan")
                    if laplace
                    else (-20 if k == 0 else -31 + 6 * np.exp(-5 * k / n) + 0.2 * rng.standard_normal()),
                    "beta": 1.0,
                }
            )
    return rows


def make_flow(names=("phi", "psi"), history=True):
    return SimpleNamespace(
        topology=fake_topology(),
        system=System(),
        slow_names=list(names),
        slow_torsions=[(k, k + 1, k + 2, k + 3) for k in range(len(names))],
        history=make_history() if history else [],
        coverage=None,
        provenance={"evaluations": 3_160_000, "seconds": 391.2, "version": "0.1.0", "machine": "2 cores"},
        freeEnergy=lambda s: -KB * 300 * np.log(np.exp(6 * (np.cos(s - MEANS[:, 0]) - 1)) @ SHARES),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("report")
    before = dict(mpl.rcParams)
    page = report(make_flow(), make_samples(), where / "new" / "folder", command="openmm-cgflow demo --out <demo>")
    assert dict(mpl.rcParams) == before
    return page.parent


def test_the_lowest_basin_is_at_zero(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert ">0.0<" in text
    assert ">-0.0<" not in text


def test_files(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "report.html",
        "free_energy_phi_psi.png",
        "free_energy_torsions.png",
        "energies.png",
        "log_weights.png",
        "training.png",
    }
    for path in folder.glob("*.png"):
        pixels = mpl.image.imread(path)
        assert min(pixels.shape[:2]) > 400, path
        assert 0.02 < np.mean(pixels[..., :3].min(-1) < 0.9) < 0.95, path  # neither blank nor black


def test_page_is_self_contained(folder):
    html = (folder / "report.html").read_text()
    inside = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(inside) == 5 == html.count("<img")
    on_disk = {path.read_bytes() for path in folder.glob("*.png")}
    assert {base64.b64decode(text) for text in inside} == on_disk
    own = html.replace((files("openmm_cgflow") / "data" / "3Dmol-min.js").read_text(encoding="utf-8"), "")
    assert len(own) < len(html)
    assert "http" not in own
    assert "demo --out &lt;demo&gt;" in html


def test_page_has_the_numbers(folder):
    html = (folder / "report.html").read_text()
    samples = make_samples()
    assert f"{100 * samples.ess:.1f} %" in html
    assert f"{samples.logZ:.4f} ± {samples.logZ_error:.4f}" in html
    assert "3,160,000" in html
    assert "6 min 31 s" in html
    assert "the weights can be trusted" in html
    populations = [float(p) for p in re.findall(r"<td class=n>([\d.]+) %</td><td class=n>[\d.]+ %</td>", html)]
    errors = [float(p) for p in re.findall(r"<td class=n>[\d.]+ %</td><td class=n>([\d.]+) %</td>", html)]
    assert len(populations) == 3
    for population, error, share in zip(
        sorted(populations), [e for _, e in sorted(zip(populations, errors, strict=True))], sorted(SHARES), strict=True
    ):
        assert abs(population - 100 * share) < 4.5 * error + 0.3  # 0.3 %: tails of one mode in the next one's basin


def test_bad_weights_are_called_bad(tmp_path):
    """Log-weights with an exponential tail of mean 2 are Pareto with k = 2 after the exponential."""
    samples = make_samples(2000)
    heavy = samples.log_weights + np.random.default_rng(2).exponential(2.0, 2000)
    samples = Samples(**{**vars_of(samples), "log_weights": heavy})
    html = report(make_flow(), samples, tmp_path).read_text()
    assert "not to be trusted" in html
    assert 'class="verdict bad"' in html


def vars_of(samples):
    return {name: getattr(samples, name) for name in Samples.__dataclass_fields__}


@pytest.mark.parametrize(("n_slow", "surfaces"), [(0, 0), (1, 0), (3, 2), (5, 4)])
def test_any_number_of_slow_torsions(tmp_path, n_slow, surfaces):
    names = ("phi", "psi", "phi2", "psi2", "chi1")[:n_slow]
    samples = make_samples(500, names=names or ("phi",))
    if not names:
        samples = Samples(**{**vars_of(samples), "slow": np.zeros((500, 0), np.float32), "slow_names": ()})
    report(make_flow(names, history=False), samples, tmp_path)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert ("free_energy_torsions.png" in drawn) == (n_slow > 0)
    assert len([name for name in drawn if name.startswith("free_energy_") and "torsions" not in name]) == surfaces
    assert "training.png" not in drawn


@pytest.mark.parametrize("chains", ["AB", "AA"])
def test_torsions_of_one_name_have_pictures_and_labels_of_their_own(tmp_path, chains):
    names = ("ALA2:phi", "ALA2:psi") * 2
    samples = make_samples(500, names=names)
    samples.slow[:, 2:] *= -1
    flow = make_flow(names, history=False)
    flow.slow_torsions = [(0, 1, 2, 3), (1, 2, 3, 4), (11, 12, 13, 14), (12, 13, 14, 15)]
    flow.topology = app.Topology()
    for chain in chains:
        residue = flow.topology.addResidue("ALA", flow.topology.addChain(chain), "2")
        for k in range(11):
            flow.topology.addAtom(f"C{k}", app.element.carbon, residue)
    html = report(flow, samples, tmp_path).read_text()
    surfaces = {path.read_bytes() for path in tmp_path.glob("free_energy_*ALA*.png")}
    assert len(surfaces) == 3
    captions = re.findall(r"<figcaption>Free energy over (.*?) from", html)
    assert len(set(captions)) == len(captions) == 3
    assert ("chain B ALA2:phi and chain B ALA2:psi" in captions) == (chains == "AB")


def test_pictures_of_names_that_look_alike_in_a_folder_are_all_kept(tmp_path):
    names = ("C1-C2", "C1:C2", "c1-c2")
    report(make_flow(names, history=False), make_samples(500, names=names), tmp_path)
    assert len({path.name.lower() for path in tmp_path.glob("free_energy_*2*.png")}) == 2  # also on a Mac


def test_samples_of_another_flow_are_refused(tmp_path):
    with pytest.raises(MismatchError, match="slow torsions psi, phi, the flow of 22 with phi, psi"):
        report(make_flow(), make_samples(10, names=("psi", "phi")), tmp_path)
    samples = make_samples(10)
    with pytest.raises(MismatchError, match="of 21 atoms"):
        report(make_flow(), Samples(**{**vars_of(samples), "positions": samples.positions[:, :-1]}), tmp_path)
    assert not any(tmp_path.iterdir())


def test_infinite_energies_are_left_out(tmp_path):
    samples = make_samples(1000)
    logw, u = samples.log_weights.copy(), samples.reduced_energies.copy()
    logw[:50], u[:50] = -np.inf, np.inf
    u[50] = np.nan
    logw[50] = -np.inf
    spoilt = Samples(**{**vars_of(samples), "log_weights": logw, "reduced_energies": u})
    kept = {
        name: value[51:] if getattr(value, "shape", ())[:1] == (1000,) else value
        for name, value in vars_of(samples).items()
    }
    with_them, without = (
        report(make_flow(), some, tmp_path / name).read_text() for name, some in (("a", spoilt), ("b", Samples(**kept)))
    )
    shown = re.findall(r"<td class=n>([\d.]+) %</td>", with_them)
    assert len(shown) >= 6  # the populations of three basins and their errors
    assert shown == re.findall(r"<td class=n>([\d.]+) %</td>", without)


def test_no_usable_samples(tmp_path):
    samples = make_samples(10)
    dead = Samples(**{**vars_of(samples), "log_weights": np.full(10, -np.inf)})
    with pytest.raises(InvalidInputError, match="at least 2 samples with finite energies, these have 0"):
        report(make_flow(), dead, tmp_path)


def test_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot write the report"):
        report(make_flow(), make_samples(100), tmp_path / "file" / "sub")


def test_pairs_are_neighbours_and_ramachandran_first():
    names = ["ALA1:phi", "ALA1:psi", "ALA2:phi", "ALA2:psi", "ALA2:chi1", "phi3", "psi3"]
    atoms = [(0, 1, 2, 3), (1, 2, 3, 4), (3, 4, 5, 6), (4, 5, 6, 7), (9, 5, 8, 10), (6, 7, 11, 12), (7, 11, 12, 13)]
    assert torsion_pairs(names, atoms, most=3) == [(0, 1), (2, 3), (5, 6)]
    assert torsion_pairs(names[:2], atoms[:2]) == [(0, 1)]
    assert torsion_pairs(["a"], [(0, 1, 2, 3)]) == []


@pytest.mark.parametrize(
    ("khat", "n", "words"),
    [
        (0.2, 5000, "can be trusted"),
        (0.6, 5000, "converge slowly"),
        (0.71, 5000, "not to be trusted"),
        (0.6, 100, "not to be trusted"),
        (float("nan"), 5000, "too few"),
    ],
)
def test_words_for_khat(khat, n, words):
    assert words in trust(khat, n)


def test_summary_counts_constraints():
    flow = make_flow()
    for _ in range(ATOMS):
        flow.system.addParticle(1.0)
    flow.system.addConstraint(0, 1, 0.1)
    rows = dict(summary(flow, make_samples(100)))
    assert rows["degrees of freedom"] == str(3 * ATOMS - 6 - 1)
    assert "command" not in rows
