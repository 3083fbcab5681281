"""Tasks are rebuilt from their checkpoints, by Lightning's own methods and for subclasses of users."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from conftest import SMALL, Trained, fit_args
from steel.cli import main
from steel.data.datamodule import SteelDataModule
from steel.errors import InputError
from steel.evaluation.assemble import assemble
from steel.training.checkpoint_files import read_checkpoint
from steel.training.checkpoints import load_task
from steel.training.tasks import DefectClassifier, DefectSegmenter

# Lightning warns about its own calls, and of a loader without worker processes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

TINY: dict[str, Any] = {"encoder": "resnet18", "decoder_channels": (16, 8, 8), "scale": 0.25}
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
IMAGES = torch.randint(0, 256, (3, 1, *SMALL), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

# Tasks of a user, in a module of their own.
MY_TASKS = '''
import torch
from torch import nn

from steel import DefectClassifier, DefectSegmenter


class SquaredError(DefectSegmenter):
    """A segmenter with a loss and an argument of its own."""

    def __init__(self, factor: float = 2.0, **kwargs) -> None:
        """Build it.

        Args:
            factor: Factor of the loss.
            kwargs: Arguments of the segmenter.
        """
        super().__init__(**kwargs)
        self.save_hyperparameters("factor")

    def loss(self, logits, targets):
        return self.hparams["factor"] * (logits.sigmoid() - targets).square().mean()


class Brightness(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(1, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.float().mean(dim=(2, 3)) / 255)


class BrightnessClassifier(DefectClassifier):
    """A classifier with a network and an optimizer of its own."""

    def build_network(self, num_classes: int) -> nn.Module:
        return Brightness(num_classes)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)
'''


def save(path: Path, task: DefectClassifier | DefectSegmenter) -> Path:
    """Write a checkpoint of an untrained task."""
    trainer = Trainer(**QUIET, max_epochs=1)
    trainer.strategy.connect(task)
    task.trainer = trainer
    trainer.save_checkpoint(path)
    return path


def test_load_from_checkpoint_rebuilds_the_network_of_the_run(trained: Trained) -> None:
    for path, cls in ((trained.segmenter, DefectSegmenter), (trained.classifier, DefectClassifier)):
        expected, _ = load_task(path)
        task = cls.load_from_checkpoint(path)
        assert task.init == expected.init
        assert task.training  # as Lightning leaves it, so that it can be trained further
        with torch.inference_mode():
            assert torch.equal(task.eval()(IMAGES), expected(IMAGES))


def test_arguments_that_contradict_the_checkpoint_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", DefectSegmenter(**TINY, num_classes=4))
    # The number of classes agrees, and must not reset the scale to its default.
    assert DefectSegmenter.load_from_checkpoint(path, num_classes=4).network.reduce.scale == 0.25
    assert DefectSegmenter.load_from_checkpoint(path, lr=0.5).lr == 0.5
    for name, value in {"scale": 1.0, "num_classes": 3, "encoder": "resnet34", "weights": "imagenet"}.items():
        with pytest.raises(InputError, match=rf"{name}.*leave {name} out"):
            DefectSegmenter.load_from_checkpoint(path, **{name: value})
    with pytest.raises(InputError, match=r"checkpoint of DefectSegmenter, .*DefectClassifier"):
        DefectClassifier.load_from_checkpoint(path)
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        DefectSegmenter(**TINY, num_classes=4).load_from_checkpoint(path)


def test_a_trainer_refuses_the_checkpoint_of_another_network(tmp_path: Path, root: Path) -> None:
    path = save(tmp_path / "a.ckpt", DefectSegmenter(**TINY, num_classes=4))
    data = SteelDataModule(str(root), num_workers=0)
    with pytest.raises(InputError, match=r"trained with scale 0\.25, but this DefectSegmenter has 1\.0"):
        Trainer(**QUIET).test(DefectSegmenter(**TINY | {"scale": 1.0}), datamodule=data, ckpt_path=path)
    # A task that does not know its number of classes takes it from the checkpoint.
    [first, *_] = Trainer(**QUIET).predict(DefectSegmenter(**TINY), data.test_dataloader(), ckpt_path=path) or []
    expected = DefectSegmenter.load_from_checkpoint(path).eval()
    with torch.inference_mode():
        assert torch.equal(first, expected(next(iter(data.test_dataloader()))["image"]).sigmoid())


def test_predictions_for_new_images_are_in_the_order_of_their_paths(trained: Trained) -> None:
    folder = trained.root / "train_images"
    data = SteelDataModule("nowhere", predict=str(folder), batch_size=16, num_workers=0)
    for path, shape in ((trained.classifier, (40, 4)), (trained.segmenter, (40, 4, *SMALL))):
        task, _ = load_task(path)
        predicted = torch.cat(Trainer(**QUIET).predict(task, datamodule=data) or [])
        assert predicted.shape == shape
        assert [path.name for path in data.predict_paths] == sorted(path.name for path in folder.iterdir())
        table = SteelDataModule(str(trained.root)).annotations
        image = torch.from_numpy(table.read_image(list(table.names).index(data.predict_paths[20].name)))
        with torch.inference_mode():
            assert torch.allclose(predicted[20], task(image[None, None])[0].sigmoid(), atol=1e-5)


def test_predict_takes_other_loaders_and_asks_for_images(trained: Trained) -> None:
    task, _ = load_task(trained.classifier)
    loader = DataLoader(TensorDataset(IMAGES), batch_size=2)
    predicted = torch.cat(Trainer(**QUIET).predict(task, loader) or [])
    with torch.inference_mode():
        assert torch.allclose(predicted, task(IMAGES).sigmoid(), atol=1e-6)
    several = Trainer(**QUIET).predict(task, [loader, loader]) or []
    assert torch.equal(torch.cat(several[0]), torch.cat(several[1]))
    with pytest.raises(InputError, match=r"no images to predict; give SteelDataModule\(\.\.\., predict=FOLDER\)"):
        Trainer(**QUIET).predict(task, datamodule=SteelDataModule(str(trained.root)))


def test_a_network_without_classes_and_float_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"number of classes is unknown.*num_classes"):
        DefectSegmenter(**TINY)(IMAGES)
    task = DefectSegmenter(**TINY, num_classes=4)
    assert task(IMAGES).shape == (3, 4, *SMALL)
    with pytest.raises(ValueError, match=r"must be uint8, grey values from 0 to 255; convert floats from 0 to 1 with"):
        task(IMAGES / 255)
    for images, shape in ((IMAGES.expand(3, 3, *SMALL), r"\[3, 3, 64, 128\]"), (IMAGES[:, 0], r"\[3, 64, 128\]")):
        with pytest.raises(ValueError, match=rf"must have the shape \(N, 1, H, W\), one grey channel, got {shape}"):
            task(images)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_other_loaders_for_training_and_scores_need_the_keys_of_a_batch() -> None:
    task = DefectClassifier(scale=0.25, num_classes=4)
    plain = DataLoader(TensorDataset(IMAGES), batch_size=2)
    with pytest.raises(InputError, match=r"must be a dictionary with image, mask, .* got list; only trainer\.predict"):
        Trainer(**QUIET, max_steps=1).fit(task, plain)
    batch = {"image": IMAGES, "mask": torch.zeros(3, *SMALL, dtype=torch.uint8)}
    with pytest.raises(InputError, match=r"dictionary with image, mask, index, .* got the keys image, mask;"):
        Trainer(**QUIET).test(task, DataLoader([batch], batch_size=None))
    with pytest.raises(InputError, match=r"number of classes is unknown.*num_classes"):
        Trainer(**QUIET, max_steps=1).fit(DefectClassifier(scale=0.25), DataLoader([batch], batch_size=None))
    # All keys, from a loader of the user.
    batch["index"] = torch.arange(3)
    task = DefectClassifier(scale=0.25, num_classes=4)
    Trainer(**QUIET, max_steps=1).fit(task, DataLoader([batch], batch_size=None))
    [scores] = Trainer(**QUIET).test(task, DataLoader([batch], batch_size=None), verbose=False)
    assert scores["test/loss"] > 0


def test_a_tuner_sets_learning_rate_and_batch_size(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the tuner writes a temporary checkpoint
    task, data = DefectClassifier(scale=0.25), SteelDataModule(str(root), batch_size=2, num_workers=0)
    tuner = Tuner(Trainer(**QUIET, max_epochs=2))
    found = tuner.lr_find(task, datamodule=data, num_training=16, early_stop_threshold=None)
    assert found is not None
    assert task.lr == task.hparams["lr"] == found.suggestion() != 3e-4
    size = tuner.scale_batch_size(task, datamodule=data, steps_per_trial=1, max_trials=2, init_val=2)
    assert data.batch_size == size == 4


def test_hparams_are_for_reading_and_not_saved_where_they_would_win_over_the_config(tmp_path: Path) -> None:
    task = DefectSegmenter(**TINY, num_classes=4, lr=0.5)
    task.lr = 0.25
    assert task.hparams["scale"] == 0.25
    assert task.hparams.lr == 0.25  # as found by Lightning's finder
    assert dict(task.hparams) == task.init
    assert "hyper_parameters" not in read_checkpoint(save(tmp_path / "a.ckpt", task))


@pytest.fixture
def my_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "my_tasks.py").write_text(MY_TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_tasks", None)


@pytest.mark.slow  # three runs, tune, evaluate and export
@pytest.mark.usefixtures("my_tasks")
def test_a_subclass_goes_from_fit_to_export(root: Path, tmp_path: Path) -> None:
    conf = Path(__file__).resolve().parents[2] / "conf"

    def fit(task: str, *options: str) -> None:
        args = [arg.replace("=conf/", f"={conf}/") for arg in fit_args(task, root, tmp_path)]
        assert main([*args, *options]) == 0

    fit("segmenter", "--model=my_tasks.SquaredError", "--model.factor=3.0")
    fit("classifier", "--model=my_tasks.BrightnessClassifier")
    fit("classifier", "--model=my_tasks.BrightnessClassifier", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert [path.name for path in (tmp_path / "lightning_logs" / "classifier").iterdir()] == ["version_0"]
    path = tmp_path / "lightning_logs/segmenter/version_0/checkpoints/last.ckpt"
    task, about = load_task(path, DefectSegmenter)
    assert about["task"] == "my_tasks.SquaredError"
    assert type(task).__name__ == "SquaredError"
    assert task.hparams["factor"] == 3.0
    assert float(task.loss(torch.zeros(1), torch.zeros(1))) == 0.75
    both = ["--classifier=last", "--segmenter=best"]
    assert main(["tune", *both, f"--root={root}", "--out=point.yaml", "--num_workers=0"]) == 0
    point = ["--operating_point=point.yaml"]
    assert main(["evaluate", *both, *point, f"--root={root}", "--num_pictures=0", "--num_workers=0"]) == 0
    assert main(["export", *both, *point]) == 0
    assert (tmp_path / "inspector.pt").is_file()


@pytest.mark.usefixtures("my_tasks")
def test_a_subclass_that_cannot_be_imported_is_named_and_can_be_given(tmp_path: Path) -> None:
    import my_tasks

    path = save(tmp_path / "a.ckpt", my_tasks.SquaredError(**TINY, num_classes=4, factor=3.0))
    with pytest.raises(InputError, match=r"checkpoint of my_tasks\.SquaredError, .*DefectSegmenter"):
        DefectSegmenter.load_from_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["steel"]["task"] = "__main__.SquaredError"  # as trained in a notebook
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match=r"__main__\.SquaredError, which cannot be imported .*PYTHONPATH.*load_task"):
        load_task(path)
    task, _ = load_task(path, my_tasks.SquaredError)
    assert task.hparams["factor"] == 3.0
    checkpoint["steel"]["task"] = "pathlib.Path"
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match=r"pathlib\.Path, which is no subclass"):
        load_task(path)


class FixedEncoder(DefectSegmenter):
    """A segmenter whose constructor has fewer arguments than the task."""

    def __init__(self, exponent: object = 1) -> None:
        super().__init__(**TINY)
        self.save_hyperparameters()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits, targets)


@pytest.mark.filterwarnings("ignore:Attribute 'exponent' is an instance of")
def test_a_subclass_may_set_arguments_of_the_task_itself(root: Path, tmp_path: Path) -> None:
    data, trainer = SteelDataModule(str(root), num_workers=0), Trainer(**QUIET, max_epochs=1, limit_train_batches=1)
    trainer.fit(FixedEncoder(2), datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    task = FixedEncoder.load_from_checkpoint(tmp_path / "a.ckpt")
    assert (task.network.reduce.scale, task.hparams["exponent"]) == (0.25, 2)
    with pytest.raises(InputError, match=r"argument exponent of FixedEncoder must be text, a number.*got Linear"):
        trainer.fit(FixedEncoder(nn.Linear(1, 1)), datamodule=data)


def test_a_checkpoint_of_other_loaders_names_the_remedy(trained: Trained, tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", DefectSegmenter(**TINY, num_classes=4))
    with pytest.raises(InputError, match=r"a\.ckpt was not trained with a SteelDataModule.*as datamodule"):
        assemble(str(trained.classifier), str(path))
