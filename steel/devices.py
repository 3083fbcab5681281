"""Devices, and the settings of the process that only a command may change."""

import ctypes

import cv2
import torch

from steel.errors import InputError

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def choose_device(name: str) -> torch.device:
    """Return the device that a name means.

    Args:
        name: "auto" (a GPU where there is one), or a name of torch's: cpu, cuda, cuda:1, mps.

    Raises:
        InputError: There is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f'no device "{name}" on this machine; give auto, cpu or one that `steel info` lists'
        ) from error
    return device


def prepare_process(device: torch.device) -> None:
    """Change settings of the whole process for a command that runs networks; a library must not call this.

    Args:
        device: Where the networks run.
    """
    # OpenCV's threads would compete with the threads that load images.
    cv2.setNumThreads(1)
    if device.type == "cpu":
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Has glibc keep what is freed, for networks on a CPU; other C libraries are left alone.

    A large tensor is otherwise made of fresh pages, each of which costs a page fault: a training step of a small U-Net
    took 0.354 s so, and 0.313 to 0.323 s with the memory kept, with the same peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
