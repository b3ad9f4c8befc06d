"""Estimates with intervals of 95 %, and the rules that read them. `ldm.evaluation.metrics` has those of one proportion
and of one mean; a difference of paired observations is a mean."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ldm.evaluation.metrics import Estimate

_Z_95 = 1.959963984540054
_NUM_NEIGHBOURS = 3


def kernel_terms(samples: Float[Tensor, "n f"], real: Float[Tensor, "n f"]) -> Float[Tensor, "n n"]:
    """h with h[i, j] = k(s_i, s_j) + k(r_i, r_j) - k(s_i, r_j) - k(s_j, r_i), k(x, y) = (x y / f + 1)^3, where sample i
    and real image i have the same prompt (Gretton et al. 2012, equation 4; kernel of Binkowski et al. 2018)."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double().T / a.shape[1] + 1) ** 3

    across = kernel(samples, real)
    return kernel(samples, samples) + kernel(real, real) - across - across.T


def kernel_distance(terms: Float[Tensor, "n n"]) -> Estimate:
    """The squared maximum mean discrepancy of `kernel_terms`, unbiased: the mean of h over all i != j. Of a difference
    of two such matrices, it is the difference of two distances from the same real images.

    The interval is the jackknife's, which leaves out one prompt at a time (Arvesen 1969, for such means over pairs).
    """
    n = len(terms)
    assert n > 2, f"a distance of {n} samples"
    rows = terms.double().sum(1) - terms.double().diagonal()
    total = float(rows.sum())
    without = (total - 2 * rows) / ((n - 1) * (n - 2))
    spread = math.sqrt((n - 1) / n * float((without - without.mean()).square().sum()))
    centre = total / (n * (n - 1))
    return Estimate(centre, centre - _Z_95 * spread, centre + _Z_95 * spread, n)


def is_covered(real: Float[Tensor, "n f"], samples: Float[Tensor, "m f"]) -> Bool[Tensor, "n"]:
    """Whether each real image is as near to some sample as this sample's third nearest other sample. The share of true
    values is recall, and precision with exchanged arguments (Kynkaanniemi et al. 2019, equations 1 and 2)."""
    among = torch.cdist(samples.double(), samples.double())
    radii = among.topk(_NUM_NEIGHBOURS + 1, largest=False).values[:, -1]  # the nearest is the sample itself
    return (torch.cdist(real.double(), samples.double()) <= radii).any(1)


def least_equal(rows: Sequence[tuple[int, Estimate]]) -> int | None:
    """The least number of evaluations from which on no row is worse than the reference. A row is (evaluations, how much
    better than the reference it is); it is worse if the whole interval is below 0. None if the last row is worse."""
    least: int | None = None
    for evaluations, better in sorted(rows, key=lambda row: row[0], reverse=True):
        if better.high < 0:
            break
        least = evaluations
    return least
