"""Slow and fast variables of plain vectors: a rotation that is found."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from openmm_cgflow.counts import indices, whole_number
from openmm_cgflow.errors import InvalidInputError

__all__ = ["LinearCoordinates"]

_SPAN = 4.0  # in units of the width: where slow variables are looked for at the start


class LinearCoordinates(nn.Module):
    """`x = width R q` with an orthogonal `R`; q is laid out as slow | fast.

    `R` is invertible whatever its parameters, and its log-determinant is zero. Scales and shears are no part of it: the
    fast density has its own linear map of the slow variables, so that both together are any linear bijection.

    Arguments:
        dim: length of the vectors.
        slow: how many slow variables there are, then `R` starts at random and is to be found; or the indices of the
            entries of x that are slow, then `R` only brings these to the front.
        width: half the extent of the region that holds the modes, in units of x: sets the scale of q.
        seed: of the random start.

    Attributes:
        reference, scale, period, span: `(dim,)` as in `InternalCoordinates`.

    Raises:
        InvalidInputError: for an impossible choice of slow variables, or a width that is not positive.

    Example:
        >>> coordinates = LinearCoordinates(3, 1, width=2.0)
        >>> x, logdet = coordinates.to_cartesian(torch.randn(5, 3))
        >>> tuple(x.shape), round(logdet[0].item(), 3)
        ((5, 3), 2.079)
    """

    reference: Tensor
    scale: Tensor
    period: Tensor
    span: Tensor

    def __init__(self, dim: int, slow: int | Sequence[int], width: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        fixed: list[int] | None = None
        if isinstance(slow, Iterable):
            fixed = indices(slow, "slow")
            n_slow = len(fixed)
        else:
            n_slow = whole_number(slow, "slow", least=0)
        if not 0 <= n_slow <= dim or (fixed is not None and len(set(fixed) & set(range(dim))) != n_slow):
            raise InvalidInputError(
                f"slow is {slow!r}, but the vectors have {dim} entries: give a number of slow variables, or the "
                "indices of entries, each once."
            )
        if isinstance(width, bool) or not isinstance(width, int | float | np.number) or not 0 < width < math.inf:
            raise InvalidInputError(f"width is {width!r}; give half the extent of the region that holds the modes.")
        self.dof, self.slow, self.width = dim, n_slow if fixed is None else fixed, float(width)
        self.sizes = (n_slow, 0, 0, dim - n_slow)
        for name, value in (("reference", 0.0), ("scale", 1.0), ("period", 0.0), ("span", _SPAN)):
            self.register_buffer(name, torch.full((dim,), value, dtype=torch.float64), persistent=False)
        self.learned = fixed is None and 0 < n_slow < dim
        self.rotate = nn.Linear(dim, dim, bias=False)
        if self.learned:
            nn.init.orthogonal_(self.rotate.weight, generator=torch.Generator().manual_seed(seed))
            parametrizations.orthogonal(self.rotate, orthogonal_map="matrix_exp")
        else:
            first = fixed or []
            order = [*first, *(k for k in range(dim) if k not in first)]
            self.rotate.weight = nn.Parameter(torch.eye(dim)[order].T.contiguous(), requires_grad=False)

    @property
    def names(self) -> list[str]:
        """A name for each entry of q."""
        n_slow = self.sizes[0]
        return [f"slow {k + 1}" if k < n_slow else f"fast {k + 1 - n_slow}" for k in range(self.dof)]

    @property
    def centre(self) -> Tensor:
        """`(dim,)` where densities over q start: `reference`, since nothing is circular."""
        return self.reference

    @property
    def log_symmetry(self) -> float:
        """Log of the number of equivalent copies that the domain leaves out: 0, for vectors have none."""
        return 0.0

    @property
    def slow_directions(self) -> Tensor:
        """Unit vectors `(n_slow, dim)`, of which the slow variables are the components of x in units of `width`."""
        return self.rotate.weight.detach().T[: self.sizes[0]]

    @torch.no_grad()
    def turn(self, directions: Tensor) -> None:
        """Start anew, with slow variables along `directions (k, dof)` of q, the most important first.

        Where there are fewer than slow variables, the others stay about where they were.
        """
        n_slow = self.sizes[0]
        wanted = directions[:n_slow].to(self.rotate.weight) @ self.rotate.weight.T
        basis = torch.cat([wanted, self.rotate.weight.T])
        # contiguous: the parameters take over the strides, and a fused optimizer does not look at these
        self.rotate.weight = torch.linalg.qr(basis.T).Q.contiguous()

    def in_domain(self, q: Tensor) -> Tensor:
        """Whether q is finite, `(batch,)` bool."""
        return torch.isfinite(q).all(1)

    def to_cartesian(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors `(batch, dim)` and `log |det dx/dq| (batch,)` of q `(batch, dim)`."""
        return self.width * q @ self.rotate.weight.to(q.dtype).T, self._log_measure(q)

    def to_internal(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse: q `(batch, dim)` and `log |det dx/dq| (batch,)`."""
        return x @ self.rotate.weight.to(x.dtype) / self.width, self._log_measure(x)

    def _log_measure(self, rows: Tensor) -> Tensor:
        return rows.new_full((len(rows),), self.dof * math.log(self.width))
