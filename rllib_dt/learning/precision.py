"""Mixed precision: what it needs of a device."""

import logging
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16", "auto")
"""The values of `training(precision=…)`."""

_BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
"""How /proc/cpuinfo calls instructions that multiply bf16 numbers: two of x86, one of ARM."""


def bf16_instructions() -> list[str]:
    """Returns the names of the instructions with which this machine's CPU multiplies bf16 numbers.

    Without any, torch converts every number, and a matrix product was measured to take 40 times as
    long as in fp32.
    """
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux; of Apple's processors the first has none
        return []
    return [flag for flag in _BF16_FLAGS if flag in words]


def multiplies_bf16(device: torch.device) -> bool:
    """Returns whether a device multiplies bf16 numbers itself, without converting them."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(bf16_instructions())


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Returns the dtype that a learner computes in by autocast, or None for fp32.

    "auto" is bf16 where the device multiplies it itself. "bf16" on a CPU that does not is warned
    of.

    Args:
        precision: one of `PRECISIONS`.
        device: the learner's.
    """
    if precision == "auto":
        precision = "bf16" if multiplies_bf16(device) else "fp32"
        logger.info('precision="auto" is %s on this %s', precision, device.type)
    elif precision == "bf16" and device.type == "cpu" and not multiplies_bf16(device):
        logger.warning(
            'precision="bf16" on a CPU without bf16 instructions (avx512_bf16 or amx_bf16) can be '
            'many times slower than fp32; set training(precision="auto"), or train on a GPU'
        )
    return torch.bfloat16 if precision == "bf16" else None
