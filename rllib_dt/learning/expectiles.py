"""Expectile regression (Newey & Powell 1987): a mean that weighs one side more."""

import torch
from torch import Tensor


def expectile_losses(errors: Tensor, expectile: float) -> Tensor:
    """Returns |m - 1(u < 0)| u² for each error u; least where u is zero at the m-expectile."""
    return torch.where(errors < 0, 1 - expectile, expectile) * errors.square()
