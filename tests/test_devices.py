"""Device names, and the reuse of freed memory, measured by the page faults of a fresh process."""

import platform
import subprocess
import sys

import pytest
import torch

from steel.devices import choose_device
from steel.errors import InputError

COUNT = """
import resource, sys
import torch
from steel.devices import choose_device, prepare_process
if sys.argv[1] == "prepared":
    prepare_process(choose_device("cpu"))
def allocate():
    torch.empty(64, 1024, 1024, dtype=torch.uint8).fill_(1)
allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    allocate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_prepare_process_makes_large_tensors_reuse_freed_memory() -> None:
    faults = {
        way: int(subprocess.run([sys.executable, "-c", COUNT, way], capture_output=True, text=True, check=True).stdout)
        for way in ("prepared", "default")
    }
    assert faults["prepared"] < faults["default"] / 5


def test_device_names() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("quantum", "", "cuda:99", "meta"):  # meta has tensors without values
        with pytest.raises(InputError, match=f'device "{name}" is not available; use auto, cpu or'):
            choose_device(name)
