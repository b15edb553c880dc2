"""Mixed precision: what it needs of a device."""

import logging
import platform
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16}
"""The dtype that `training(precision=…)` computes in; None computes in fp32."""


def has_bf16_instructions() -> bool:
    """Returns whether this machine's CPU multiplies bf16 numbers itself.

    Without such instructions torch converts every number, and a matrix product was measured to take
    40 times as long as in fp32.
    """
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:  # not Linux
        return platform.machine() == "arm64"
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)


def warn_of_slow_bf16(precision: str, device: torch.device) -> None:
    """Logs a warning if bf16 is asked for on a CPU that has no instructions for it."""
    if precision == "bf16" and device.type == "cpu" and not has_bf16_instructions():
        logger.warning(
            'precision="bf16" on a CPU without bf16 instructions (avx512_bf16 or amx_bf16) can be '
            'many times slower than fp32; set training(precision="fp32"), or train on a GPU'
        )
