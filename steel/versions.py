"""What made a result: the versions and the commit that stand beside every score."""

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
    """The version of `steel`."""
    return importlib.metadata.version("steel-inspector")


@cache
def read_commit() -> str | None:
    """The git commit of `steel`'s own checkout, with "+" behind it where files differ; None for an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def describe_versions() -> dict[str, str | None]:
    """Versions of `steel`, Python and the packages that a result depends on, and the commit."""
    versions: dict[str, str | None] = {"steel": read_version(), "commit": read_commit()}
    versions["python"] = platform.python_version()
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def has_fast_bfloat16() -> bool:
    """Whether this machine has hardware for bfloat16: a GPU, or a CPU with AVX-512's instructions for it."""
    import torch

    # An older torch says nothing of its CPU; fp32 is then the safe choice.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.cuda.is_available() or bool(capabilities.get("avx512_bf16", False))


def info() -> None:
    """Shows versions, devices and precisions: what to look at first when two machines disagree.

    Example:
        steel info
    """
    import torch

    for name, version in describe_versions().items():
        print(f"{name:28} {version}")
    print(f"{'CPU threads':28} {torch.get_num_threads()}")
    print(f"{'bfloat16':28} {'fast' if has_fast_bfloat16() else 'slow'}")
    if not torch.cuda.is_available():
        print(f"{'GPU':28} none that torch can use")
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        print(f"{f'cuda:{i}':28} {device.name}, {device.total_memory / 2**30:.0f} GiB")
