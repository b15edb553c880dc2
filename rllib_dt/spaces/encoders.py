"""Encoders: how the network reads an observation, as one vector of its width for each step.

Numbers are normalised by the network and embedded by one linear layer; categories have an
embedding each; images pass through convolutions.
"""

from collections.abc import Mapping
from functools import singledispatch

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rllib_dt.spaces.exact import ExactBuffers
from rllib_dt.spaces.leaves import (
    ImageEncoder,
    UnsupportedSpaceError,
    check_observation_space,
    num_numbers,
)
from rllib_dt.spaces.own import imported

_PART_BYTES = 8 * 2**20
"""Pixels, in float32, of the frames that go through large convolutions at a time on the CPU."""

NATURE_PIXELS = 36
"""The least height and width for the convolutions of Mnih et al. 2015; smaller ones vanish."""


@singledispatch
def state_encoder(
    space: gym.Space,
    width: int,
    image_encoder: ImageEncoder = "auto",
    normalize_images: bool = False,
) -> nn.Module:
    """Returns a module that maps an observation leaf to (B, K, D).

    It reads (B, K, S) normalised numbers for a Box of numbers, and (B, K, …) values of the space
    otherwise.

    Args:
        space: the leaf.
        width: D.
        image_encoder, normalize_images: for images; see `DTModelConfig`.

    Raises:
        UnsupportedSpaceError: there is no encoder for the space.
    """
    check_observation_space(space)
    raise AssertionError(f"{type(space).__name__} passed the check but has no encoder")


@state_encoder.register
def _(
    space: gym.spaces.Box,
    width: int,
    image_encoder: ImageEncoder = "auto",
    normalize_images: bool = False,
) -> nn.Module:
    numbers = num_numbers(space, image_encoder)
    if numbers:
        return nn.Linear(numbers, width)
    return Convolutions(space, width, image_encoder, normalize_images)


@state_encoder.register
def _(space: gym.spaces.Discrete, width: int, *_: object) -> nn.Module:
    return Categories(np.array([space.n]), np.array([space.start]), width)


@state_encoder.register
def _(space: gym.spaces.MultiDiscrete, width: int, *_: object) -> nn.Module:
    return Categories(space.nvec.ravel(), np.asarray(space.start).ravel(), width)


@state_encoder.register
def _(space: gym.spaces.MultiBinary, width: int, *_: object) -> nn.Module:
    return Bits(int(np.prod(space.shape)), width)


def encoder_of_space(
    leaves: Mapping[str, gym.Space],
    width: int,
    image_encoder: ImageEncoder = "auto",
    own: Mapping[str, str] | None = None,
    normalize_images: bool = False,
) -> nn.Module:
    """Returns a module that maps a tree of observations to (B, K, D); see `state_encoder`.

    Args:
        leaves: the space's leaves by path; a leaf space alone is under "".
        width: D.
        image_encoder, normalize_images: see `DTModelConfig`.
        own: the names of users' encoders by path; see `DTModelConfig.encoders`.
    """
    own = own or {}
    encoders = {
        path: OwnEncoder(own[path], leaf, width)
        if path in own
        else state_encoder(leaf, width, image_encoder, normalize_images)
        for path, leaf in leaves.items()
    }
    return encoders[""] if list(encoders) == [""] else SummedEncoders(encoders)


def leaf_encoder(encoder: nn.Module, path: str) -> nn.Module:
    """Returns a leaf's part of what `encoder_of_space` made."""
    if not isinstance(encoder, SummedEncoders):
        return encoder
    part: nn.Module = encoder.encoders[module_name(path)]
    return part


class OwnEncoder(nn.Module):
    """Holds a user's own encoder, and checks what it returns.

    Args:
        name: its class, such as "my_package.MyEncoder"; it is called with the leaf and the width.
        space: the leaf.
        width: D.
    """

    def __init__(self, name: str, space: gym.Space, width: int):
        super().__init__()
        module = imported(name)(space, width)
        if not isinstance(module, nn.Module):
            raise ValueError(f"encoders: {name} made a {type(module).__name__}, no torch.nn.Module")
        self.module = module
        self._name, self._width = name, width

    def forward(self, values: Tensor) -> Tensor:
        """Maps (B, K, …) values of the leaf, as recorded, to (B, K, D)."""
        embedded: Tensor = self.module(values)
        wanted = (*values.shape[:2], self._width)
        if embedded.shape != wanted:
            raise ValueError(
                f"encoders: {self._name} returned {tuple(embedded.shape)} for values of shape "
                f"{tuple(values.shape)}, wanted {tuple(wanted)}"
            )
        return embedded


class SummedEncoders(nn.Module):
    """Adds up the embeddings of a composite observation's leaves.

    Args:
        encoders: the encoder of each leaf, by path.
    """

    def __init__(self, encoders: Mapping[str, nn.Module]):
        super().__init__()
        self._paths = list(encoders)
        self.encoders = nn.ModuleDict({module_name(path): e for path, e in encoders.items()})

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Maps (B, K, …) leaves by path to (B, K, D)."""
        first, *others = (
            encoder(observations[path])
            for path, encoder in zip(self._paths, self.encoders.values(), strict=True)
        )
        total: Tensor = sum(others, start=first)
        return total


def module_name(path: str) -> str:
    """Returns a name for a leaf's module: torch allows no dots, and no names of its own."""
    return "/" + path.replace("%", "%25").replace(".", "%2E")


class Categories(nn.Module):
    """Embeds C categories, each with a table of its own, and adds the embeddings.

    Args:
        counts: (C,) the number of values of each.
        starts: (C,) the smallest value of each.
        width: D.
    """

    offsets: Tensor
    first: Tensor
    last: Tensor

    def __init__(self, counts: np.ndarray, starts: np.ndarray, width: int):
        super().__init__()
        self.table = nn.Embedding(int(counts.sum()), width)
        first = np.cumsum(counts) - counts
        self.register_buffer("offsets", torch.as_tensor(first - starts), persistent=False)
        self.register_buffer("first", torch.as_tensor(first), persistent=False)
        self.register_buffer("last", torch.as_tensor(first + counts - 1), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Maps (B, K, …) whole numbers to (B, K, D). Padded zeros become legal ones."""
        B, K = values.shape[:2]
        rows = values.reshape(B, K, -1).long() + self.offsets
        rows = torch.minimum(torch.maximum(rows, self.first), self.last)
        embedded: Tensor = self.table(rows).sum(dim=2)
        return embedded


class Bits(nn.Module):
    """Embeds bits by a linear layer, as -1 and 1."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.linear = nn.Linear(count, width)

    def forward(self, values: Tensor) -> Tensor:
        """Maps (B, K, …) zeros and ones to (B, K, D)."""
        B, K = values.shape[:2]
        bits = values.reshape(B, K, -1)
        embedded: Tensor = self.linear(bits.to(self.linear.weight.dtype) * 2 - 1)
        return embedded


class Convolutions(ExactBuffers):
    """Convolutions over an image, then a linear layer and a tanh (Chen et al. 2021, §A.1).

    "nature" has the three layers of Mnih et al. 2015 (32 of 8 × 8 by 4, 64 of 4 × 4 by 2, 64 of
    3 × 3); "small" has two of 3 × 3 (32 and 64) that keep the size. Bytes are divided by 255, here
    and nowhere else.

    Args:
        space: bytes or bits, of height and width, with channels first or last, and possibly frames
            before both.
        width: D.
        kind: "auto" takes "nature" if height and width are at least `NATURE_PIXELS`.
        normalize: subtract a mean image, and divide by a number; see `set_statistics`.
    """

    exact = ("mean", "std")
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        space: gym.spaces.Box,
        width: int,
        kind: ImageEncoder = "auto",
        normalize: bool = False,
    ):
        super().__init__()
        self.normalizes = normalize
        if normalize:
            self.register_buffer("mean", torch.zeros(space.shape))
            self.register_buffer("std", torch.ones(()))
        self._axes = image_axes(space)
        self._shape = space.shape
        self._scale = 255.0 if space.dtype == np.uint8 else 1.0
        image = torch.zeros(1, 1, *space.shape)
        channels, height, breadth = self._arranged(image).shape[1:]
        if kind == "auto":
            kind = "nature" if min(height, breadth) >= NATURE_PIXELS else "small"
        if kind == "nature" and min(height, breadth) < NATURE_PIXELS:
            raise UnsupportedSpaceError(
                f'image_encoder="nature" needs at least {NATURE_PIXELS} pixels in height and '
                f'width, but the image is {height} × {breadth}; set image_encoder="small"'
            )
        # frames at a time on the CPU, where the large convolutions are fastest on frames that fit
        # its caches, with channels last (docs/performance.md)
        self._part = None
        if kind == "nature":
            self._part = max(1, _PART_BYTES // (4 * channels * height * breadth))
        # in place, since the output of a convolution is used nowhere else
        self.convolutions = nn.Sequential(
            *(
                (
                    nn.Conv2d(channels, 32, 8, stride=4),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(32, 64, 4, stride=2),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(64, 64, 3),
                    nn.ReLU(inplace=True),
                )
                if kind == "nature"
                else (
                    nn.Conv2d(channels, 32, 3, padding=1),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(32, 64, 3, padding=1),
                    nn.ReLU(inplace=True),
                )
            )
        )
        with torch.no_grad():
            size = self.convolutions(self._arranged(image)).numel()
        self.linear = nn.Linear(size, width)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, K, …) bytes or bits to (B, K, D)."""
        B, K = images.shape[:2]
        frames = self._arranged(images)
        if self._part is None or frames.device.type != "cpu" or torch.compiler.is_compiling():
            return self._embedded(frames).view(B, K, -1)
        parts = [
            self._embedded(part.contiguous(memory_format=torch.channels_last))
            for part in torch.split(frames, self._part)
        ]
        return torch.cat(parts).view(B, K, -1)

    def _embedded(self, frames: Tensor) -> Tensor:
        """Maps (N, channels, height, width) to (N, D)."""
        dtype = self.linear.weight.dtype
        pixels = frames.to(dtype) / self._scale
        if self.normalizes:
            pixels = ((pixels - self._arranged(self.mean[None, None])) / self.std).to(dtype)
        features = self.convolutions(pixels).flatten(1)
        embedded: Tensor = self.linear(features).tanh()
        return embedded

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Sets what images are normalised with.

        Args:
            mean: of an image's shape, in its own unit.
            std: () the standard deviation around it, in the same unit.
        """
        self.mean.copy_(mean / self._scale)
        self.std.copy_(std / self._scale)

    def _arranged(self, images: Tensor) -> Tensor:
        """Arranges (B, K, …) as (B·K, C, H, W); frames become channels."""
        flat = images.flatten(0, 1)
        frames, channels, height, breadth = self._axes
        order = [axis + 1 for axis in (frames, channels, height, breadth) if axis is not None]
        arranged = flat.permute(0, *order)
        # not len(flat), which would fix the batch's size in an exported graph
        return arranged.reshape(flat.shape[0], -1, *arranged.shape[-2:])


def image_axes(space: gym.Space) -> tuple[int | None, int | None, int, int]:
    """Returns the axes of an image's (frames, channels, height, width); None if it has none.

    Of three axes, the channels are the first or the last, whichever is shorter (the last if both
    are equal); of four, the first is the frames'.
    """
    shape: tuple[int, ...] = space.shape or ()
    if len(shape) == 2:
        return None, None, 0, 1
    rest = shape[-3:]
    offset = len(shape) - 3
    is_last = rest[2] <= rest[0]
    channels, height, breadth = (2, 0, 1) if is_last else (0, 1, 2)
    frames = 0 if len(shape) == 4 else None
    return frames, channels + offset, height + offset, breadth + offset
