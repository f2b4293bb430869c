"""What an audit found, in words and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Coverage", "Form"]

_SHOWN = 5  # forms that are named on one line


@dataclass(frozen=True)
class Form:
    """A minimum that the flow does not give, or gives far too seldom.

    Attributes:
        what: in which it differs from every form that the flow gives, such as `ring of 10 atoms`.
        energy: of the minimum above the lowest that the flow gives, kJ/mol; negative if it is lower.
        weight: its share of the whole ensemble, by the curvature of the minimum: an estimate, 0 to 1.
        include: how to have it sampled.
        positions: `(atoms, 3)` nm.
        barrier: kJ/mol, of the torsion that leads to it, where that was measured.
    """

    what: str
    energy: float
    weight: float
    include: str
    positions: list[list[float]]
    barrier: float | None = None

    def __str__(self) -> str:
        """What it is, its energy, and what it weighs.

        Example:
            >>> str(Form("ring of 10 atoms", -13.1, 0.9, "", []))
            'ring of 10 atoms: another form 13.1 kJ/mol lower than any that this flow can give (weight about 90 %)'
        """
        if self.energy < 0:
            where = f"{-self.energy:.1f} kJ/mol lower than any that this flow can give"
        else:
            where = f"{self.energy:.1f} kJ/mol higher than the lowest that this flow gives"
        barrier = "" if self.barrier is None else f", behind a barrier of {self.barrier:.0f} kJ/mol"
        return f"{self.what}: another form {where}{barrier} (weight about {_percent(self.weight)})"


@dataclass(frozen=True)
class Coverage:
    """Whether the flow reaches every form of the molecule that was found.

    Attributes:
        forms: what is missing, the heaviest first.
        kept: forms behind high barriers that are left out because the input's isomer is kept, the heaviest first.
        why_not: why no audit was made, or could not tell what is missing; empty after one that could. What the flow
            gives by far the least is named all the same.
        evaluations: energies that it cost.
        walkers: dynamics that were run.
        picoseconds: of dynamics, all walkers together.
        temperatures: K, the lowest and the highest.
        minima: different forms that were found and that the flow gives.
    """

    forms: list[Form] = field(default_factory=list)
    kept: list[Form] = field(default_factory=list)
    why_not: str = ""
    evaluations: int = 0
    walkers: int = 0
    picoseconds: float = 0.0
    temperatures: tuple[float, float] = (0.0, 0.0)
    minima: int = 0

    @property
    def audited(self) -> bool:
        """Whether an audit was made."""
        return not self.why_not

    @property
    def conclusive(self) -> bool:
        """Whether it tells if anything is missing: after a whole audit, or where forms stand out without one."""
        return self.audited or bool(self.forms)

    @property
    def covered(self) -> bool:
        """Whether an audit was made and found nothing missing."""
        return self.audited and not self.forms

    @property
    def verdict(self) -> str:
        """One sentence without a full stop."""
        if not self.conclusive:
            return f"not audited: {self.why_not}"
        if not self.forms:
            low, high = self.temperatures
            return (
                f"covered: {self.walkers} walkers found nothing else in {self.picoseconds:.0f} ps of dynamics at "
                f"{low:.0f} to {high:.0f} K ({self.evaluations:,} evaluations)"
            )
        more = f"; and {len(self.forms) - _SHOWN} more" if len(self.forms) > _SHOWN else ""
        named = "; ".join(str(form) for form in self.forms[:_SHOWN])
        ways = "; ".join(dict.fromkeys(form.include for form in self.forms[:_SHOWN]))
        rest = f". Not audited otherwise: {self.why_not}" if self.why_not else ""
        return f"NOT covered: {named}{more}. To include: {ways}{rest}"

    def rows(self) -> list[tuple[str, str]]:
        """Label and text, for people."""
        rows = [("coverage", self.verdict)]
        if self.kept:
            rows.append(("kept as in the input", "; ".join(str(form) for form in self.kept[:_SHOWN])))
        return rows

    def __str__(self) -> str:
        return "\n".join(f"{label}: {text}" for label, text in self.rows())


def rounded(x: np.ndarray) -> list[list[float]]:
    """Positions for JSON, to 1e-6 nm."""
    return np.round(np.asarray(x, dtype=float), 6).tolist()


def heaviest_first(forms: Sequence[Form]) -> list[Form]:
    """By weight."""
    return sorted(forms, key=lambda form: -form.weight)


def _percent(share: float) -> str:
    percent = 100 * share
    return "less than 1 %" if percent < 1 else f"{percent:.0f} %"
