"""What a figure was measured on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("boxreg", "torch", "torchvision", "numba", "triton", "powerboxes", "ultralytics", "mmdet")


def processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe(device: torch.device) -> dict[str, str | int]:
    """The machine and the versions of all that computes, for a row of results."""
    names = {"processor": processor(), "system": f"{platform.system()} {platform.machine()}"}
    if device.type == "cuda":
        names |= {"gpu": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    return {**names, "threads": torch.get_num_threads(), "python": platform.python_version(), **versions()}


def versions() -> dict[str, str]:
    """The versions of the packages that are installed, of those that matter here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
