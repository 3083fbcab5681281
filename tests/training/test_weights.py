import time
import urllib.error
from pathlib import Path
from typing import Literal

import pytest
import torch
import torchvision
from torch import nn

from steel.errors import InputError
from steel.training.networks import ClassifierNetwork, SegmenterNetwork


def test_both_networks_load_weights_from_a_local_file(tmp_path: Path) -> None:
    source = torchvision.models.resnet18()
    path = tmp_path / "resnet18.pth"
    torch.save(source.state_dict(), path)
    classifier = ClassifierNetwork(4, "resnet18", weights=str(path))
    assert torch.equal(classifier.resnet.layer3[0].conv1.weight, source.layer3[0].conv1.weight)
    assert torch.equal(classifier.resnet.bn1.running_var, source.bn1.running_var)
    segmenter = SegmenterNetwork(4, "resnet18", weights=str(path))
    assert torch.equal(segmenter.unet.encoder.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("text", "does not contain weights"),  # not a torch file
        ({"a": 3}, "does not contain weights"),  # no tensors
        ({"conv1.weight": torch.zeros(3)}, "another network.*1 of another shape"),  # another shape
        (torchvision.models.resnet34().state_dict(), "another network"),  # another depth
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, content: object, reason: str) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, str):
        path.write_text(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=reason):
        ClassifierNetwork(4, "resnet18", weights=str(path))


def test_torchvision_weights_are_read_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    state = torchvision.models.resnet18().state_dict()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / Path(weights.url).name).touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **_: state)
    network = ClassifierNetwork(4, "resnet18", weights="IMAGENET1K_V1")
    assert torch.equal(network.resnet.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])


def _refuse_network(*args: object, **kwargs: object) -> None:
    raise urllib.error.URLError("no network")


def _hang(*args: object, **kwargs: object) -> None:
    time.sleep(3)
    raise urllib.error.URLError("timed out")


@pytest.mark.parametrize("urlopen", [_refuse_network, _hang])
def test_unreachable_host_is_reported_within_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, urlopen: object
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for build in (
        lambda: ClassifierNetwork(4, "resnet18", weights="IMAGENET1K_V1"),
        lambda: SegmenterNetwork(4, "resnet34", weights="imagenet"),
    ):
        start = time.monotonic()
        with pytest.raises(InputError, match=r"cannot be reached.*set --model.weights"):
            build()
        assert time.monotonic() - start < 4


def save_run(network: nn.Module, path: Path) -> Path:
    """Write a checkpoint of a task with this network."""
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"steel": {"task": "irrelevant here"}, "state_dict": state}, path)
    return path


def shuffle(network: nn.Module) -> nn.Module:
    """Replace all weights by random ones, so that loaded weights can be told from initial ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network


def compare(one: nn.Module, other: nn.Module) -> set[str]:
    """Return the keys of the weights that differ, except the counters of the norms, which are unused."""
    theirs = other.state_dict()
    return {
        key
        for key, value in one.state_dict().items()
        if "num_batches" not in key and (theirs[key].shape != value.shape or not torch.equal(theirs[key], value))
    }


SMALL_UNET = {"encoder": "resnet18", "decoder_channels": (16, 8, 8)}


@pytest.mark.parametrize("decoder", ["unet", "resunet"])
def test_segmenter_loads_a_checkpoint_of_a_segmenter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], decoder: Literal["unet", "resunet"]
) -> None:
    source = shuffle(SegmenterNetwork(3, **SMALL_UNET, decoder=decoder))  # type: ignore[arg-type]
    path = save_run(source, tmp_path / "run.ckpt")
    network = SegmenterNetwork(3, **SMALL_UNET, decoder=decoder, weights=str(path))  # type: ignore[arg-type]
    assert compare(network, source) == set()
    images = torch.randint(0, 256, (1, 1, 40, 72), dtype=torch.uint8)
    assert torch.equal(network.eval()(images), source.eval()(images))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("num_saved", "num_classes"), [(2, 4), (4, 2)])
def test_last_layer_takes_the_rows_of_common_classes(tmp_path: Path, num_saved: int, num_classes: int) -> None:
    num_common = min(num_saved, num_classes)
    path = save_run(shuffle(SegmenterNetwork(num_saved, **SMALL_UNET)), tmp_path / "segmenter.ckpt")  # type: ignore[arg-type]
    theirs = torch.load(path, weights_only=True)["state_dict"]
    torch.manual_seed(5)
    fresh = SegmenterNetwork(num_classes, **SMALL_UNET)  # type: ignore[arg-type]
    torch.manual_seed(5)
    network = SegmenterNetwork(num_classes, **SMALL_UNET, weights=str(path))  # type: ignore[arg-type]
    head = network.unet.segmentation_head[0]
    for name, own in head.named_parameters():
        key = f"unet.segmentation_head.0.{name}"
        assert torch.equal(own[:num_common], theirs[f"network.{key}"][:num_common])
        assert torch.equal(own[num_common:], fresh.state_dict()[key][num_common:])
    same = {key for key, value in network.state_dict().items() if "head" not in key and "num_batches" not in key}
    assert all(torch.equal(network.state_dict()[key], theirs[f"network.{key}"]) for key in same)

    path = save_run(shuffle(ClassifierNetwork(num_saved)), tmp_path / "classifier.ckpt")
    theirs = torch.load(path, weights_only=True)["state_dict"]
    classifier = ClassifierNetwork(num_classes, weights=str(path))
    assert torch.equal(classifier.resnet.fc[1].weight[:num_common], theirs["network.resnet.fc.1.weight"][:num_common])
    assert torch.equal(classifier.resnet.fc[1].bias[:num_common], theirs["network.resnet.fc.1.bias"][:num_common])
    assert torch.equal(classifier.resnet.layer4[1].conv2.weight, theirs["network.resnet.layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    ("settings", "fitting"),
    [
        ({"decoder_channels": (32, 8, 8)}, ("unet.decoder.blocks.2", "unet.segmentation_head")),
        ({"decoder": "resunet"}, ("unet.decoder.blocks.0.conv1", "unet.segmentation_head")),
    ],
    ids=["channels", "residual"],
)
def test_decoder_tensors_that_do_not_fit_stay_random_and_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, object], fitting: tuple[str, ...]
) -> None:
    source = shuffle(SegmenterNetwork(3, **SMALL_UNET))  # type: ignore[arg-type]
    path = save_run(source, tmp_path / "run.ckpt")
    torch.manual_seed(5)
    fresh = SegmenterNetwork(3, **(SMALL_UNET | settings)).state_dict()  # type: ignore[arg-type]
    torch.manual_seed(5)
    network = SegmenterNetwork(3, **(SMALL_UNET | settings), weights=str(path))  # type: ignore[arg-type]
    theirs, random = source.state_dict(), []
    for key, value in network.state_dict().items():
        if key in theirs and theirs[key].shape == value.shape:
            assert torch.equal(value, theirs[key]) or "num_batches" in key
        else:
            random.append(key)
            assert torch.equal(value, fresh[key])  # not partly copied
    for part in fitting:
        assert not any(key.startswith(part) for key in random)
    output = capsys.readouterr().out
    assert output.startswith(f"{path}: {len(random)} tensors of the decoder")
    assert random[0] in output


def test_only_the_encoder_is_loaded_from_the_other_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier = shuffle(ClassifierNetwork(3))
    segmenter = shuffle(SegmenterNetwork(3, **SMALL_UNET))  # type: ignore[arg-type]
    to_classifier = ClassifierNetwork(3, weights=str(save_run(segmenter, tmp_path / "segmenter.ckpt")))
    to_segmenter = SegmenterNetwork(3, **SMALL_UNET, weights=str(save_run(classifier, tmp_path / "c.ckpt")))  # type: ignore[arg-type]
    encoder = segmenter.unet.encoder.state_dict()  # type: ignore[union-attr]
    assert compare(to_classifier, classifier) >= {"resnet.fc.1.weight", "resnet.fc.1.bias"}
    taken = to_classifier.resnet.state_dict()
    assert all(torch.equal(taken[key], value) for key, value in encoder.items() if "num_batches" not in key)
    encoder = classifier.resnet.state_dict()  # type: ignore[union-attr]
    taken = to_segmenter.unet.encoder.state_dict()
    assert all(torch.equal(value, encoder[key]) for key, value in taken.items() if "num_batches" not in key)
    assert capsys.readouterr().out == ""
