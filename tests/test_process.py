"""Importing `steel` leaves the settings of the process unchanged; only commands may change them."""

import json
import os
import subprocess
import sys

import pytest

# Runs in a fresh interpreter. First imports all third-party packages that steel imports, since some of them change
# settings themselves; then compares the settings before and after importing every public name of every module of steel.
SCRIPT = """
import contextlib, csv, importlib, json, locale, logging, os, pkgutil, sys, warnings

for name in sys.argv[1].split():
    with contextlib.suppress(ImportError):  # optional extras
        importlib.import_module(name)

import cv2, matplotlib, torch

def read_settings():
    return {
        "matplotlib": {key: repr(value) for key, value in dict.items(matplotlib.rcParams)},
        "cv2 threads": cv2.getNumThreads(),
        "csv field size": csv.field_size_limit(),
        "warnings filters": [repr(entry) for entry in warnings.filters],
        "environment": dict(os.environ),
        "torch threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "torch precision": torch.get_float32_matmul_precision(),
        "torch default type": str(torch.get_default_dtype()),
        "logging": [logging.root.level, len(logging.root.handlers)],
        "locale": locale.setlocale(locale.LC_ALL),
    }

before = read_settings()
import steel
for name in steel.__all__:
    getattr(steel, name)
modules = [module.name for module in pkgutil.walk_packages(steel.__path__, "steel.") if module.name != "steel.__main__"]
for name in modules:
    module = importlib.import_module(name)
    for public in dir(module):
        if not public.startswith("_"):
            getattr(module, public)
after = read_settings()
changed = [key for key in before if key not in ("matplotlib", "environment") and before[key] != after[key]]
for group in ("matplotlib", "environment"):
    keys = before[group].keys() | after[group].keys()
    changed += [f"{group}: {key}" for key in keys if before[group].get(key) != after[group].get(key)]
print(json.dumps({"modules": len(modules), "changed": sorted(changed)}))
"""

THIRD_PARTY = (
    "albumentations cv2 fastapi jsonargparse lightning_fabric matplotlib.figure matplotlib.ticker numpy onnx "
    "onnxruntime pandas pandas.plotting PIL.Image prometheus_client pyarrow pyarrow.parquet pycocotools.mask "
    "pytorch_lightning pytorch_lightning.cli pytorch_lightning.callbacks pytorch_lightning.loggers rich.progress "
    "scipy.stats scipy.optimize segmentation_models_pytorch sklearn.isotonic sklearn.model_selection tensorboard "
    "torch torch.utils.tensorboard torchmetrics torchvision uvicorn yaml"
)


@pytest.mark.slow
def test_importing_steel_changes_no_setting_of_the_process() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT, THIRD_PARTY], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["modules"] > 80
    assert result["changed"] == []


def test_plotting_changes_no_setting_of_matplotlib() -> None:
    import matplotlib
    import pandas as pd

    from steel import plots

    before = dict.copy(matplotlib.rcParams)
    plots.plot_bars(pd.Series([1], ["$a$"]), "title", ("number", "images"))
    assert dict.copy(matplotlib.rcParams) == before
    assert before["text.parse_math"] is True


@pytest.mark.parametrize(("command", "expected"), [("inspect", "passive"), ("serve", "passive"), ("fit", None)])
def test_threads_sleep_while_they_wait_where_other_programs_run(command: str, expected: str | None) -> None:
    script = f"""
import importlib, os, sys
from steel import cli

imported = importlib.import_module

def stop(name, *args):  # instead of importing the module of the command
    if not name.startswith("steel."):
        return imported(name, *args)
    print(os.environ.get("OMP_WAIT_POLICY"), "torch" in sys.modules)
    raise SystemExit

importlib.import_module = stop
cli.main(["{command}"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    output = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True, timeout=120
    ).stdout
    assert output.split() == [str(expected), "False"]  # torch reads the variable when it is imported
