"""What this process holds, from the kernel's account of it (Linux)."""

from pathlib import Path
from typing import Literal


def resident(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes: now (VmRSS), or at the peak since the start or since the kernel was told to forget it (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
