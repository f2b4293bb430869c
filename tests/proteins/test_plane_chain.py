"""The chain of planes against the sum over all states, and its factors against torsions measured by mdtraj."""

from itertools import product

import mdtraj
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from traces import helix

from openmm_cgflow.proteins.chain.sequence import ProteinSequence
from openmm_cgflow.proteins.fragments.grid import BINS
from openmm_cgflow.proteins.fragments.library import FragmentLibrary
from openmm_cgflow.proteins.placing.assembly import Assembly
from openmm_cgflow.proteins.placing.layout import ProteinLayout
from openmm_cgflow.proteins.placing.plane_chain import PlaneChain, grid, local_factors
from openmm_cgflow.proteins.placing.planes import Backbone, Planes


@pytest.fixture(scope="module")
def small() -> tuple[PlaneChain, dict[tuple[int, ...], float]]:
    """Two chains of planes with 4 bins each, and the log-weights of all states."""
    generator = torch.Generator().manual_seed(3)
    factors = torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64) * 2
    unary = torch.randn(1, 5, 4, generator=generator, dtype=torch.float64)
    link = [0, 1, -1, 2]
    states = {}
    for state in product(range(4), repeat=5):
        total = sum(float(unary[0, p, s]) for p, s in enumerate(state))
        total += sum(float(factors[0, r, state[p], state[p + 1]]) for p, r in enumerate(link) if r >= 0)
        states[state] = total
    return PlaneChain(factors, link, unary), states


def test_chain_normaliser_and_marginals_are_those_of_all_states(small):
    chain, states = small
    weights = np.exp(np.array(list(states.values())))
    assert float(chain.log_z[0]) == pytest.approx(np.log(weights.sum()), abs=1e-10)
    marginals = np.zeros((5, 4))
    for state, w in zip(states, weights / weights.sum(), strict=True):
        marginals[np.arange(5), list(state)] += w
    np.testing.assert_allclose(chain.marginals()[0].numpy(), marginals, atol=1e-10)


def test_chain_samples_have_the_density_that_is_said(small):
    chain, states = small
    n = 4000
    many = PlaneChain(chain.log_factors.expand(n, -1, -1, -1), chain.link, chain.unary.expand(n, -1, -1))
    bins, log_p = many.sample(torch.Generator().manual_seed(0))
    exact = np.array([states[tuple(row)] for row in bins.tolist()]) - float(chain.log_z[0])
    np.testing.assert_allclose(log_p.numpy(), exact, atol=1e-9)
    np.testing.assert_allclose(many.log_prob(bins).numpy(), exact, atol=1e-9)
    # frequencies of the first three planes together: 1 in 1000 by chance
    share = np.zeros((4, 4, 4))
    for state, value in states.items():
        share[state[:3]] += np.exp(value - float(chain.log_z[0]))
    counts = np.zeros((4, 4, 4))
    np.add.at(counts, tuple(bins[:, :3].numpy().T), 1)
    likely = share * n > 5
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(share[likely], share[~likely].sum()) * n
    assert chisquare(observed, expected).pvalue > 1e-3


def test_factors_are_free_energies_of_the_torsions_that_the_atoms_have():
    sequence, library = ProteinSequence.of("AGVAPA"), FragmentLibrary.load()
    layout, planes = ProteinLayout(sequence, library), Planes.of(sequence)
    trace = torch.as_tensor(helix(6), dtype=torch.float32)[None]
    backbone = Backbone.of(planes, trace)
    factors = local_factors(backbone, sequence, library)[0]
    generator = torch.Generator().manual_seed(5)
    bins = torch.randint(BINS, (40, len(planes)), generator=generator)
    many = Backbone.of(planes, trace.expand(40, -1, -1))
    x = Assembly(layout, planes).backbone(many, grid(trace)[bins])
    trajectory = mdtraj.Trajectory(x.numpy(), mdtraj.Topology.from_openmm(layout.topology))
    inner = [k for k in range(len(sequence)) if 0 < k < len(sequence) - 1]
    phi = mdtraj.compute_phi(trajectory, opt=False)[1][:, [k - 1 for k in inner]]
    psi = mdtraj.compute_psi(trajectory, opt=False)[1][:, inner]
    angles = np.array([[layout.index[k][name] for name in ("N", "CA", "C")] for k in inner])
    theta = mdtraj.compute_angles(trajectory, angles, opt=False)
    seen = 0
    for column, k in enumerate(inner):
        name = library.class_of(sequence.residues[k].variant, sequence.following(k), sequence.end(k))
        table, (mean, spread) = library.free_energy[name].numpy(), library.angle[name].tolist()
        found = factors[k, bins[:, planes.before[k]], bins[:, planes.after[k]]].numpy()
        off = theta[:, column] - mean
        strain = 0.5 * off**2 / (spread**2 + np.radians(2.5) ** 2)
        oxygens = trajectory.xyz[:, layout.index[k]["O"]] - trajectory.xyz[:, layout.index[k - 1]["O"]]
        strain = strain + np.minimum(0.252**2 / (oxygens**2).sum(1), 1.6) ** 6
        u, v = ((a[:, column] + np.pi) / (2 * np.pi) * BINS for a in (phi, psi))
        corners = [
            table[(np.floor(u).astype(int) + i) % BINS, (np.floor(v).astype(int) + j) % BINS]
            for i in (0, 1)
            for j in (0, 1)
        ]
        s, t = u % 1, v % 1
        energy = (
            (1 - s) * (1 - t) * corners[0] + (1 - s) * t * corners[1] + s * (1 - t) * corners[2] + s * t * corners[3]
        )
        usual = np.abs(off) < np.radians(31)
        seen += usual.sum()
        np.testing.assert_allclose(found[usual], (-energy / 2.494339 - strain)[usual], atol=0.05)
    assert seen > 20


def test_cis_only_before_proline_and_where_the_trace_says_so():
    sequence = ProteinSequence.of("AAPA")
    trace = helix(4)
    trace[2:] += 0.16 * (trace[1] - trace[2])  # both bonds shorter: 1-2 before a proline, and none else
    assert np.linalg.norm(trace[2] - trace[1]) < 0.335
    backbone = Backbone.of(Planes.of(sequence), torch.as_tensor(trace, dtype=torch.float32)[None])
    assert backbone.cis[0].tolist() == [False, False, True, False, False]
    other = Backbone.of(Planes.of(ProteinSequence.of("AAAA")), backbone.trace)
    assert not other.cis.any()
