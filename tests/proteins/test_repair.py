"""What is in one place is drawn anew, and nothing else; windows are drawn from the chain given the planes beyond."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from traces import SEQUENCE, helix, noisy

import openmm_cgflow as cgf
from openmm_cgflow.proteins.builder import ProteinBuilder
from openmm_cgflow.proteins.fragments.grid import BINS
from openmm_cgflow.proteins.relaxing.repair import State

WITHOUT_PROLINE = SEQUENCE.replace("P", "A")  # which has no room in a straight helix


@pytest.fixture(scope="module")
def parts() -> ProteinBuilder:
    mapper = cgf.ProteinBackmapper(WITHOUT_PROLINE)
    return mapper._known()


def drawn(parts: ProteinBuilder, trace: np.ndarray, seed: int) -> tuple[State, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    trace = trace - trace.mean(1, keepdims=True)
    state, log_evidence, _ = parts._packed(torch.as_tensor(trace, dtype=torch.float32), generator, 8, 8, None)
    return state, log_evidence


def test_atoms_in_one_place_are_parted_and_the_rest_stays(parts):
    state, _ = drawn(parts, np.repeat(helix(20)[None], 24, 0), 0)
    state = state._replace(backbone=state.backbone[:1], turns=state.turns[:1], chi=state.chi[:1], chain=state.chain[:1])
    many, chi = torch.zeros(24, dtype=torch.long), state.chi.repeat(24, 1, 1)
    chi[:, 10, 0] += torch.arange(24) * (math.pi / 12)  # a tryptophan, all around
    x = parts.refiner.structures(state.backbone[many], state.turns[many], chi)
    hard = parts.refiner.pairs.judged(x).hard
    rows = torch.stack([hard.argmin(), hard.argmax()])
    assert hard[rows[0]] == 0
    assert hard[rows[1]] > 150
    both = torch.zeros(2, dtype=torch.long)
    broken = State(state.backbone[both], state.chain[both], state.turns[both], chi[rows], x[rows])
    mended = parts.repair.mended(broken._replace(x=x[rows]), torch.Generator().manual_seed(0), 0)
    assert parts.refiner.pairs.judged(mended.x).hard.sum() == 0
    torch.testing.assert_close(mended.x[0], broken.x[0], rtol=0, atol=0)
    near = torch.unique(parts.repair.residue[parts.refiner.pairs.judged(broken.x).atoms])
    far = (parts.repair.residue[:, None] - near).abs().amin(1) > 5  # beyond the widest window
    torch.testing.assert_close(mended.x[1, far], broken.x[1, far], rtol=0, atol=1e-6)
    assert float((mended.x[1] - broken.x[1]).norm(dim=1).max()) > 0.1


def test_oxygens_of_neighbours_that_touch_are_in_one_place(parts):
    """Energies of neighbouring backbones are in the free energy, but for what touches."""
    state, _ = drawn(parts, helix(20)[None], 0)
    k = int(parts.refiner.inner[8])
    first, second = (parts.layout.index[j]["O"] for j in (k, k + 1))
    x = state.x.clone()
    x[0, first] = x[0, second] + torch.tensor([0.15, 0.0, 0.0])
    pairs = parts.refiner.pairs.judged(x).atoms.sort(1).values.tolist()
    assert sorted((first, second)) in pairs
    assert sorted((first, second)) not in parts.refiner.pairs.judged(state.x).atoms.sort(1).values.tolist()


def test_evidence_is_that_of_every_draw(parts):
    """What is drawn anew does not choose among draws: the mean of the evidence stays unbiased."""
    trace = noisy(helix(20), 6, 0.02)
    trace = trace - trace.mean(1, keepdims=True)
    made = parts.draw(trace, torch.Generator().manual_seed(3), "packed", 8, 8)
    _, log_evidence = drawn(parts, trace, 3)
    torch.testing.assert_close(made.log_evidence, log_evidence)


@pytest.mark.parametrize("plane", [0, 5, 20])
def test_a_window_is_drawn_given_the_planes_beyond_it(parts, plane):
    n = 4000
    state, _ = drawn(parts, helix(20)[None], 1)
    chain, segment = state.chain[:1], torch.tensor([plane])
    generator = torch.Generator().manual_seed(0)
    turns = parts.repair._turns(chain, state.turns.expand(n, -1), segment, chain.unary[0, segment], generator)
    bins = torch.floor((state.turns[0] + math.pi) * (BINS / (2 * math.pi))).long() % BINS
    log_p = chain.unary[0, plane].clone()
    if plane > 0:
        log_p += chain.log_factors[0, chain.link[plane - 1], bins[plane - 1]]
    if plane < 20:
        log_p += chain.log_factors[0, chain.link[plane], :, bins[plane + 1]]
    expected = n * torch.softmax(log_p.double(), 0).numpy()
    found = np.bincount(
        ((turns[:, 0] + math.pi) * (BINS / (2 * math.pi))).floor().long().numpy() % BINS, minlength=BINS
    )
    likely = expected > 5
    observed = np.append(found[likely], found[~likely].sum())
    wanted = np.append(expected[likely], expected[~likely].sum())
    assert chisquare(observed[wanted > 1e-9], wanted[wanted > 1e-9]).pvalue > 1e-4  # once in 10,000 by chance
