"""`steel inspect --engine ray`: the same file and the same records on every machine of a Ray cluster.

The driver sends the exported file to the workers, so it is nowhere to be copied; each worker fetches and decodes its
images itself. A worker that dies is started anew and its images are inspected again.
"""

import logging
import os
import sys
import tempfile
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from steel.data.images import SUFFIXES, decode_grey
from steel.decision import bundle
from steel.errors import InputError
from steel.inspection.parquet import build_schema, to_table, to_typed
from steel.inspection.records import name_images

if TYPE_CHECKING:
    import pyarrow as pa


# Rows of each Parquet file, at least.
_ROWS = 10_000


class _Worker:
    """One exported inspector in a process of its own."""

    def __init__(self, model: Any, images: fsspec.AbstractFileSystem, batch_size: int, device: str) -> None:
        """Loads the inspector.

        Args:
            model: The exported file's bytes, in Ray's store.
            images: Where the images are.
            batch_size: Images that the networks see at once.
            device: A name of torch's.
        """
        import ray
        import torch

        from steel.inspection.pipeline import Pipeline

        where = torch.device(device)
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            Path(file.name).write_bytes(ray.get(model))
            module, about = bundle.read(file.name, where)
        self._schema = build_schema(about.classes)
        self._read = partial(_read, images)
        self._pipeline = Pipeline(module, about.classes, where, batch_size)

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        """Names and places of images -> their rows of results.parquet."""
        named = zip(batch["image"].to_pylist(), batch["place"].to_pylist(), strict=True)
        records = self._pipeline.run(named, self._read)
        return to_table((to_typed(record, self._schema) for record in records), self._schema)


def _read(images: fsspec.AbstractFileSystem, place: str) -> NDArray[np.uint8]:
    try:
        data = images.cat_file(place)
    except OSError as error:
        raise InputError(f"cannot read {place}: {error.strerror or error}") from error
    return decode_grey(data, place)


def inspect(model: str, images: str, out: str, batch_size: int, device: str) -> None:
    """Inspects images on a Ray cluster: the one that RAY_ADDRESS names, else one of this machine alone.

    Args:
        model: File that `steel export` wrote.
        images: An image, a folder or a pattern, each with a protocol that fsspec knows before it or not.
        out: Folder for results.parquet, likewise.
        batch_size: Images that the networks see at once.
        device: auto, cpu or cuda.

    Raises:
        InputError: Ray is not installed, there is no image, or results are there already.
    """
    bundle.read(model)
    here, places = _find(images)
    there, folder = fsspec.url_to_fs(out)
    parquet = f"{folder}/results.parquet"
    if there.exists(parquet):
        raise InputError(f"{parquet} is there already; name another folder with --out")
    ray = _start()
    resources = ray.cluster_resources()
    kind = "GPU" if resources.get("GPU") and device != "cpu" else "CPU"
    window = 4 * batch_size
    named = [{"image": name, "place": str(place)} for name, place in name_images(places).items()]
    unfinished = f"{parquet}.unfinished"
    if there.exists(unfinished):
        there.rm(unfinished, recursive=True)
    there.makedirs(unfinished)
    # Kept here, since a worker that is started anew asks for it again.
    program = ray.put(Path(model).read_bytes())
    # A task is a window: what a worker that dies takes along.
    ray.data.from_items(named, override_num_blocks=-(-len(named) // window)).map_batches(
        _Worker,
        fn_constructor_args=(program, here, batch_size, "cuda" if kind == "GPU" else "cpu"),
        batch_size=window,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, int(resources[kind]))),
        num_cpus=1,
        num_gpus=1 if kind == "GPU" else 0,
    ).write_parquet(unfinished, filesystem=there, min_rows_per_file=_ROWS, ray_remote_args={"num_cpus": 0})
    there.mv(unfinished, parquet, recursive=True)
    _tell(parquet, there)


def _start() -> Any:
    # Where the driver runs by `uv run`, Ray would build an environment anew for every worker.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Its warnings of what we do on purpose; what fails is raised here.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError("--engine ray needs Ray; install it with the extra ray: steel-inspector[ray]") from error
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
    return ray


def _find(images: str) -> tuple[fsspec.AbstractFileSystem, list[PurePosixPath]]:
    try:
        system, root = fsspec.url_to_fs(images)
    except (ValueError, ImportError) as error:
        raise InputError(f"{images} cannot be reached: {error}; give a path or an address that fsspec knows") from error
    if system.isfile(root):
        return system, [PurePosixPath(root)]
    found = system.ls(root, detail=False) if system.isdir(root) else system.glob(root)
    places = sorted(path for path in map(PurePosixPath, found) if path.suffix.lower() in SUFFIXES)
    if not places:
        raise InputError(f"no image in {images}; images end in {', '.join(SUFFIXES)}")
    return system, places


def _tell(parquet: str, system: fsspec.AbstractFileSystem) -> None:
    from pyarrow import compute, dataset

    table = dataset.dataset(parquet, filesystem=system).to_table(columns=["defective", "error"])
    num_defective = compute.sum(table["defective"]).as_py() or 0
    num_unreadable = table.num_rows - table["error"].null_count
    print(f"{table.num_rows:,} images: {num_defective:,} defective, {num_unreadable:,} unreadable")
    print(f"wrote {parquet}")
