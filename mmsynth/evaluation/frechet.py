"""The Fréchet distance between two sets of features, each taken as a normal distribution.

    d² = ‖μ1 - μ2‖² + tr(C1 + C2 - 2 (C1 C2)^(1/2))

(Dowson and Landau 1982; with Inception features it is the FID, Heusel et al., arXiv 1706.08500.) The root of the
product is never formed: with C = RᵀR its trace is the nuclear norm of R1 R2ᵀ, exact also where C is singular.

Legend: N samples, D features, R rows of a covariance's root.
"""
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution.

    Attributes:
        mean: (D,), float64.
        root: (R, D), float64; the covariance is ``root.T @ root``.
        count: Samples that it was fitted on.
    """

    mean: Tensor
    root: Tensor
    count: int

    @property
    def covariance(self) -> Tensor:
        """(D, D), float64."""
        return self.root.T @ self.root

    @classmethod
    def fit(cls, features: Tensor) -> 'Gaussian':
        """Mean and unbiased covariance of features (N, D), computed in float64.

        With N ≤ D samples the covariance is singular; that is no error.

        Raises:
            ValueError: If ``features`` is not (N, D) of at least two samples, or holds a value that is not finite.
        """
        if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
            raise ValueError('`features` must be (N, D) with at least two samples, which a covariance needs, got '
                             f'{tuple(features.shape)}.')
        features = features.double()
        if not features.isfinite().all():
            raise ValueError(f'`features` must be finite, got {int((~features.isfinite()).sum())} values that are not.')
        mean = features.mean(0)
        root = torch.linalg.qr(features - mean, mode='r').R / sqrt(len(features) - 1)
        return cls(mean, root, len(features))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """The squared Fréchet distance (what is reported as FID), at least 0, in the square of the features' unit.

    Fitted distributions are biased: two sets drawn from one distribution are at a distance above 0 that shrinks as
    the counts grow, and with fewer samples than features, where the covariances are singular, it is large. Compare
    distances only where the counts are the same, and take several times as many samples as there are features if the
    value itself is to mean something.

    Raises:
        ValueError: If the two have different numbers of features.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f'both distributions must be over the same features, got {len(first.mean)} and '
                         f'{len(second.mean)} of them.')
    shift = (first.mean - second.mean).square().sum()
    spread = first.root.square().sum() + second.root.square().sum()  # tr C1 + tr C2
    shared = torch.linalg.svdvals(first.root @ second.root.T).sum()  # tr (C1 C2)^(1/2)
    return max(float(shift + spread - 2 * shared), 0.0)  # rounding can leave it below 0
