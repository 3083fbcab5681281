"""Which device a name means, and freed memory that is used again, counted in page faults of processes of their own."""

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
if sys.argv[1] == "kept":
    prepare_process(choose_device("cpu"))
def take():
    torch.empty(64, 1024, 1024, dtype=torch.uint8).fill_(1)
take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_on_a_cpu_large_tensors_are_made_of_memory_that_was_there() -> None:
    faults = {
        way: int(subprocess.run([sys.executable, "-c", COUNT, way], capture_output=True, text=True, check=True).stdout)
        for way in ("kept", "given back")
    }
    assert faults["kept"] < faults["given back"] / 5


def test_names_of_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match='no device "quantum" on this machine; give auto, cpu or one that'):
        choose_device("quantum")
