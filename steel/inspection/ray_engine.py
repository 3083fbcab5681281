"""`steel inspect --engine ray`: inspects images on all machines of a Ray cluster, with the same records.

The driver sends the exported file to the workers, so it need not be copied anywhere. Each worker reads and decodes its
own images. If a worker dies, Ray restarts it and inspects its images again.
"""

import logging
import os
import sys
import tempfile
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, dataset

from steel.data.images import SUFFIXES, decode_grey, is_image
from steel.decision import bundle
from steel.errors import InputError
from steel.inspection.parquet import build_schema, to_table
from steel.inspection.records import list_result_columns, name_images
from steel.wording import format_count


class _Worker:
    """An exported inspector in a process of its own; `model` refers to the file's bytes in Ray's object store."""

    def __init__(
        self, model: Any, digest: str | None, images: fsspec.AbstractFileSystem, batch_size: int, device: str
    ) -> None:
        import ray
        import torch

        from steel.inspection.pipeline import Pipeline

        torch_device = torch.device(device)
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            Path(file.name).write_bytes(ray.get(model))
            module, about = bundle.read(file.name, torch_device, digest)
        self._schema = build_schema(list_result_columns(about.classes, has_novelty=about.novelty is not None))
        self._read = partial(_read, images)
        self._pipeline = Pipeline(module, about.classes, torch_device, batch_size=batch_size)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Convert names and paths of images to their rows of results.parquet."""
        sources = zip(batch["image"].to_pylist(), batch["path"].to_pylist(), strict=True)
        return to_table(self._pipeline.run(sources, self._read), self._schema)


def _read(images: fsspec.AbstractFileSystem, path: str) -> NDArray[np.uint8]:
    try:
        data = images.cat_file(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    return decode_grey(data, path)


def inspect(model: str, images: str, out: str, *, batch_size: int, device: str, digest: str | None) -> None:
    """Inspect images on the Ray cluster that RAY_ADDRESS names, or else on a local one.

    The arguments are those of `steel inspect`; `images` and `out` may also be fsspec URLs.

    Raises:
        InputError: Ray is not installed, no image is found, or the folder already has results.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device must be auto, cpu or cuda with --engine ray, got {device}")
    _, about = bundle.read(model, digest=digest)  # fails before the cluster starts
    source, paths = _find(images)
    target, folder = fsspec.url_to_fs(out)
    parquet = f"{folder}/results.parquet"
    if target.exists(parquet):
        raise InputError(f"{parquet} already exists; choose another folder with --out")
    ray = _start()
    resources = ray.cluster_resources()
    use_gpu = device == "cuda" or (device == "auto" and bool(resources.get("GPU")))
    if use_gpu and not resources.get("GPU"):
        raise InputError("--device cuda needs a GPU, but the Ray cluster has none; use auto or cpu")
    # Ray inspects this many images again if a worker dies.
    block_size = 4 * batch_size
    items = [{"image": name, "path": str(path)} for name, path in name_images(paths).items()]
    unfinished = f"{parquet}.unfinished"
    if target.exists(unfinished):
        target.rm(unfinished, recursive=True)
    target.makedirs(unfinished)
    # This variable keeps the object alive for workers that are restarted.
    program = ray.put(Path(model).read_bytes())
    ray.data.from_items(items, override_num_blocks=-(-len(items) // block_size)).map_batches(
        _Worker,
        fn_constructor_args=(program, about.sha256, source, batch_size, "cuda" if use_gpu else "cpu"),
        batch_size=block_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, int(resources["GPU" if use_gpu else "CPU"]))),
        num_cpus=1,
        num_gpus=int(use_gpu),
    ).write_parquet(unfinished, filesystem=target, min_rows_per_file=10_000, ray_remote_args={"num_cpus": 0})
    target.mv(unfinished, parquet, recursive=True)
    _print_summary(parquet, target)


def _start() -> Any:
    # Under `uv run`, Ray would otherwise build a new environment for every worker.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Ray warns about what this file does on purpose. Errors are raised here in any case.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            "--engine ray needs Ray; install it with pip install '.[ray]' in the folder of steel"
        ) from error
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
    return ray


def _find(images: str) -> tuple[fsspec.AbstractFileSystem, list[PurePosixPath]]:
    try:
        system, root = fsspec.url_to_fs(images)
    except (ValueError, ImportError) as error:
        raise InputError(f"cannot open {images}: {error}; give a path or a URL that fsspec supports") from error
    if system.isfile(root):
        return system, [PurePosixPath(root)]
    found = system.ls(root, detail=False) if system.isdir(root) else system.glob(root)
    paths = sorted(path for path in map(PurePosixPath, found) if is_image(path))
    if not paths:
        raise InputError(f"no image in {images}; image files must end in {', '.join(SUFFIXES)}")
    return system, paths


def _print_summary(parquet: str, system: fsspec.AbstractFileSystem) -> None:
    table = dataset.dataset(parquet, filesystem=system).to_table(columns=["defective", "error"])
    num_defective = compute.sum(table["defective"]).as_py() or 0
    num_unreadable = table.num_rows - table["error"].null_count
    print(f"{format_count(table.num_rows, 'image')}: {num_defective:,} defective, {num_unreadable:,} unreadable")
    print(f"wrote {parquet}")
