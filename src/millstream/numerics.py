"""What the last bits of a result depend on besides code and data."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
from typing import Any

import numpy
import pyarrow
import torch

__all__ = ["numerics"]


def numerics() -> dict[str, Any]:
    """Names and values, all JSON; None for what is not set."""
    changing = {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "MKL_CBWR": os.environ.get("MKL_CBWR"),
        "ATEN_CPU_CAPABILITY": os.environ.get("ATEN_CPU_CAPABILITY"),
    }
    return {**_installed(), **changing}


@functools.cache
def _installed() -> dict[str, Any]:
    return {
        "millstream": sys.modules["millstream"].__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pyarrow": pyarrow.__version__,
        "numba": importlib.metadata.version("numba"),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
    }
