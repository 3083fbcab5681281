"""Versions and the git commit that are recorded with every result, and `steel info`."""

import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path

_PACKAGES = (
    "torch", "torchvision", "pytorch-lightning", "segmentation-models-pytorch", "torchmetrics",
    "numpy", "pandas", "opencv-python-headless",
)  # fmt: skip


def read_version() -> str:
    """Return the version of `steel`."""
    return importlib.metadata.version("steel-inspector")


@cache
def read_commit() -> str | None:
    """Return the git commit of the source checkout, followed by "+" if files differ; None for an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def describe_versions() -> dict[str, str | None]:
    """Return the versions of `steel`, Python and the main packages, and the commit; None where there is none."""
    versions: dict[str, str | None] = {"steel": read_version(), "commit": read_commit()}
    versions["python"] = platform.python_version()
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def has_fast_bfloat16() -> bool:
    """Return whether bfloat16 runs in hardware: on the GPU or, without one, by the AVX-512 BF16 instructions."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Older releases of torch cannot report CPU capabilities; float32 is then the safe choice.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16", False))


def info() -> None:
    """Show versions, devices and precisions. Compare its output when two machines give different results.

    Example:
        steel info
    """
    import torch

    for name, version in describe_versions().items():
        print(f"{name:28} {version}")
    print(f"{'CPU threads':28} {torch.get_num_threads()}")
    print(f"{'bfloat16':28} {'fast' if has_fast_bfloat16() else 'slow'}")
    if not torch.cuda.is_available():
        print(f"{'GPU':28} none available to torch")
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        print(f"{f'cuda:{i}':28} {device.name}, {device.total_memory / 2**30:.0f} GiB")
