"""The MLP's activations: every name of `transformers`' table (`ACT2FN`)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


def _clipped_gelu(x: Tensor) -> Tensor:
    return F.gelu(x).clamp(-10.0, 10.0)


def _identity(x: Tensor) -> Tensor:
    return x


def _laplace(x: Tensor) -> Tensor:
    # a normal distribution's function (Ma et al. 2022, arXiv:2209.10655, §3.5: mean √½, deviation
    # √(1/4π)), with the rounded constants of `transformers`
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _sqrt_softplus(x: Tensor) -> Tensor:
    return F.softplus(x).sqrt()


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class XIELU(nn.Module):
    """xIELU, whose two slopes are learned (Huang & Schlag 2024, arXiv:2411.13010)."""

    beta: Tensor
    eps: Tensor

    def __init__(self, slope: float = 0.8, beta: float = 0.5, eps: float = -1e-6):
        super().__init__()
        self.alpha_p = nn.Parameter(torch.tensor([math.log(math.expm1(slope))]))
        self.alpha_n = nn.Parameter(torch.tensor([math.log(math.expm1(slope - beta))]))
        self.register_buffer("beta", torch.tensor(beta))
        self.register_buffer("eps", torch.tensor(eps))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…) to (…)."""
        bend = torch.expm1(torch.minimum(x, self.eps.to(x.dtype))) - x
        below = bend * (self.beta + F.softplus(self.alpha_n))
        above = F.softplus(self.alpha_p) * x * x
        return torch.where(x > 0, above, below) + self.beta * x


_FUNCTIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_10": _clipped_gelu,
    "gelu_accurate": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_python": F.gelu,
    "gelu_python_tanh": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "hardswish": F.hardswish,
    "laplace": _laplace,
    "leaky_relu": F.leaky_relu,
    "linear": _identity,
    "mish": F.mish,
    "quick_gelu": _quick_gelu,
    # in place, since its input, the output of a Linear, is used nowhere else
    "relu": torch.relu_,
    "relu2": _squared_relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "sqrtsoftplus": _sqrt_softplus,
    "swish": F.silu,
    "tanh": torch.tanh,
}
_MODULES: dict[str, Callable[[], nn.Module]] = {"prelu": nn.PReLU, "xielu": XIELU}


def activation(name: str) -> Activation:
    """Returns an activation by name; those with parameters of their own are modules."""
    return _FUNCTIONS[name] if name in _FUNCTIONS else _MODULES[name]()
