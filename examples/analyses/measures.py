"""Correlations, angles and percentiles."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pearson(sums: Tensor) -> float:
    """Correlation from the sums of 1, x, y, x², y², xy; nan where x or y is constant."""
    n, x, y, xx, yy, xy = sums.tolist()
    variance = (n * xx - x * x) * (n * yy - y * y)
    return (n * xy - x * y) / math.sqrt(variance) if variance > 0 else math.nan


def sums_of(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.flatten().double(), y.flatten().double()
    return torch.stack([x.new_tensor(len(x)), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]).cpu()


def angles_between(a: Tensor, b: Tensor) -> Tensor:
    """Degrees between the vectors of each sample, nan where one is zero; float64 [N]."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    norms = a.norm(dim=1) * b.norm(dim=1)
    cosine = ((a * b).sum(1) / norms).clamp(-1, 1)
    return torch.rad2deg(torch.acos(cosine)).where(norms > 0, torch.nan).cpu()


def spread(values: Tensor) -> dict[str, float]:
    """Mean, 5th and 95th percentile of the values that are not nan."""
    known = values[~values.isnan()]
    if not len(known):
        return dict.fromkeys(("mean", "p05", "p95"), math.nan)
    low, high = torch.quantile(known, torch.tensor([0.05, 0.95], dtype=known.dtype)).tolist()
    return {"mean": float(known.mean()), "p05": low, "p95": high}
