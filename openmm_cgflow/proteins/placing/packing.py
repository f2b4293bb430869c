"""Which candidate of each side chain: tables of pairs, and annealed Gibbs sampling over them."""

from typing import NamedTuple

import torch
from torch import Tensor

from openmm_cgflow.proteins.placing.contacts import Nonbonded, grouped, pair_energies, squared_distances
from openmm_cgflow.proteins.placing.layout import MOST_CHI
from openmm_cgflow.proteins.placing.side_chains import KEPT, Candidates, SelfEnergies

__all__ = ["Packed", "PairTables", "chosen", "pack", "pair_tables"]

_CAP = 60.0  # kJ/mol, of a pair of atoms
_SEE = 0.3  # nm between the spheres of two side chains, of any of their candidates
_ENTRIES = 400_000
_SWEEPS = 16
_HOT, _COLD = 8.0, 0.4  # kT, first and last temperature of the sweeps
_NOWHERE = 1e4


class PairTables(NamedTuple):
    """Energies between candidates of two residues, each pair twice: from either side."""

    frame: Tensor
    """`(edges,)`."""
    residue: Tensor
    """`(edges,)`, whose candidates are the rows."""
    other: Tensor
    """`(edges,)`, whose candidates are the columns."""
    energy: Tensor
    """`(edges, kept, kept)` kJ/mol."""


class Packed(NamedTuple):
    """What `pack` chose."""

    state: Tensor
    """`(batch, residues)`, the candidate of each residue."""
    energy: Tensor
    """`(batch,)` kJ/mol."""


def pair_tables(candidates: Candidates, energies: SelfEnergies, nonbonded: Nonbonded) -> PairTables:
    """Energies between the candidates of all residues that are near one another."""
    batch, n = candidates.energy.shape[:2]
    x = candidates.energy
    centre, radius = x.new_zeros(batch, n, 3), x.new_zeros(batch, n)
    middles, sizes = x.new_full((batch, n, KEPT, 3), 1e3), x.new_zeros(batch, n, KEPT)
    kind, place = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long)
    variants = list(candidates.placed)
    for v, variant in enumerate(variants):
        rows, placed = candidates.placed[variant]
        flat = placed.flatten(2, 3)
        centre[:, rows] = flat.mean(2)
        radius[:, rows] = (flat - flat.mean(2, keepdim=True)).norm(dim=-1).amax(-1)
        middle = placed.mean(3)
        middles[:, rows, : middle.shape[2]] = middle
        sizes[:, rows, : middle.shape[2]] = (placed - middle[:, :, :, None]).norm(dim=-1).amax(-1)
        kind[rows], place[rows] = v, torch.arange(len(rows))
    near = torch.cdist(centre, centre) < radius[:, :, None] + radius[:, None, :] + _SEE
    near &= torch.triu(torch.ones(n, n, dtype=torch.bool, device=x.device), 1)
    frame, first, second = near.nonzero().unbind(1)
    many = torch.isfinite(candidates.energy).sum(-1) > 1
    chosen = many[frame, first] | many[frame, second]  # pairs of two that cannot move are a constant
    frame, first, second = frame[chosen], first[chosen], second[chosen]
    apart = torch.cdist(middles[frame, first], middles[frame, second])
    apart = apart - sizes[frame, first][:, :, None] - sizes[frame, second][:, None, :]
    chosen = apart.amin((1, 2)) < _SEE
    frame, first, second = frame[chosen], first[chosen], second[chosen]
    tables = x.new_zeros(len(frame), KEPT, KEPT)
    combination = kind[first.cpu()] * len(variants) + kind[second.cpu()]
    order = torch.argsort(combination, stable=True)
    found, counts = torch.unique_consecutive(combination[order], return_counts=True)
    seen = [len(energies.seen[variant]) for variant in variants]
    for which, rows in zip(found.tolist(), order.split(counts.tolist()), strict=True):
        first_kind, second_kind = divmod(which, len(variants))
        if not seen[first_kind] * seen[second_kind]:  # glycine
            continue
        a, b = variants[first_kind], variants[second_kind]
        _fill(tables, rows.to(x.device), candidates, energies, nonbonded, (a, b), (frame, first, second), place)
    return PairTables(
        torch.cat([frame, frame]),
        torch.cat([first, second]),
        torch.cat([second, first]),
        torch.cat([tables, tables.transpose(1, 2)]),
    )


def _fill(
    tables: Tensor,
    rows: Tensor,
    candidates: Candidates,
    energies: SelfEnergies,
    nonbonded: Nonbonded,
    variants: tuple[str, str],
    pairs: tuple[Tensor, Tensor, Tensor],
    place: Tensor,
) -> None:
    frame, first, second = pairs
    seen = [energies.seen[variant] for variant in variants]
    x, y = (candidates.placed[v][1][:, :, :, atoms] for v, atoms in zip(variants, seen, strict=True))
    (k, a), (m, b) = x.shape[2:4], y.shape[2:4]
    for part in rows.split(max(1, _ENTRIES // (k * a * m * b))):
        i, j = first[part], second[part]
        ours, theirs = x[frame[part], place[i]], y[frame[part], place[j]]
        squared = squared_distances(ours.flatten(1, 2), theirs.flatten(1, 2))
        ours_of, theirs_of = (
            energies.side_indices(candidates.residues[k.cpu()])[:, atoms] for k, atoms in zip((i, j), seen, strict=True)
        )
        factors = energies.united.between(ours_of, theirs_of)
        spread = tuple(factor[:, None, :, None, :] for factor in factors)
        energy = pair_energies(squared.reshape(-1, k, a, m, b), spread, _CAP).sum((2, 4))  # type: ignore[arg-type]
        tables[part, :k, :m] = energy


def pack(own: Tensor, tables: PairTables, kT: float, restarts: int, generator: torch.Generator) -> Packed:
    """Candidates by annealed Gibbs sampling, the best of some restarts, then downhill.

    Arguments:
        own: `(batch, residues, kept)` kJ/mol, of each candidate by itself; infinite where there is none.
        tables: of pairs.
        kT: kJ/mol.
        restarts: independent runs for each trace.
        generator: of everything random.
    """
    batch, n, kept = own.shape
    own = own.clamp(max=_NOWHERE)
    state = torch.multinomial(
        torch.softmax(-own / (4 * kT), -1).reshape(-1, kept), restarts, replacement=True, generator=generator
    )
    state = state.reshape(batch, n, restarts)
    by_residue = grouped(tables.residue, n)
    moving = [k for k in range(n) if bool((own[:, k] < _NOWHERE).sum(-1).gt(1).any())]
    temperatures = [_HOT * (_COLD / _HOT) ** (t / (_SWEEPS - 1)) for t in range(_SWEEPS)] + [0.0, 0.0]
    for temperature in temperatures:
        for k in moving:
            field = own[:, k, None] + _field(state, tables, by_residue[k], batch)
            if temperature:
                noise = torch.rand(field.shape, generator=generator, device=field.device).clamp_min(1e-12)
                field = field + temperature * kT * torch.log(-torch.log(noise))
            state[:, k] = field.argmin(-1)
    alone = own.gather(2, state).sum(1)
    rows = torch.arange(len(tables.frame), device=own.device)[:, None]
    of_pairs = tables.energy[rows, state[tables.frame, tables.residue], state[tables.frame, tables.other]]
    energy = alone + 0.5 * alone.new_zeros(batch, restarts).index_add_(0, tables.frame, of_pairs)
    best = energy.argmin(-1)
    at = torch.arange(batch, device=own.device)
    return Packed(state[at, :, best], energy[at, best])


def chosen(candidates: Candidates, state: Tensor) -> Tensor:
    """Torsions of the chosen candidates, `(batch, residues, MOST_CHI)` rad."""
    return candidates.chi.gather(2, state[..., None, None].expand(-1, -1, 1, MOST_CHI))[:, :, 0]


def _field(state: Tensor, tables: PairTables, edges: Tensor, batch: int) -> Tensor:
    """Energy of each candidate of a residue with the others as they are, `(batch, restarts, kept)`."""
    frame = tables.frame[edges]
    now = state[frame, tables.other[edges]]  # (edges, restarts)
    turned_round = (edges + len(tables.frame) // 2) % len(tables.frame)
    seen = tables.energy[turned_round[:, None], now]  # (edges, restarts, kept)
    return seen.new_zeros(batch, *seen.shape[1:]).index_add_(0, frame, seen)
