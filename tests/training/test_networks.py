import re
import time
import urllib.error
from pathlib import Path
from typing import Literal

import pytest
import torch
import torchvision
from torch import nn

from steel.errors import InputError
from steel.training import networks
from steel.training.networks import ClassifierNetwork, SegmenterNetwork

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")

SIZES = [(64, 96), (103, 47), (33, 64)]  # a multiple of 32, odd both ways, just above one


def draw(n: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("decoder", ["unet", "resunet"])
@pytest.mark.parametrize(("scale", "input_size"), [(1.0, None), (0.5, None), (0.3, None), (1.0, (64, 64))])
def test_segmenter_answers_at_the_size_that_came_in(
    decoder: Literal["unet", "resunet"], scale: float, input_size: tuple[int, int] | None
) -> None:
    network = SegmenterNetwork(
        3, "resnet18", decoder=decoder, decoder_channels=(16, 8, 8), scale=scale, input_size=input_size
    ).eval()
    scripted = torch.jit.script(network)
    with torch.inference_mode():
        for size in SIZES:
            images = draw(2, size)
            logits = network(images)
            assert logits.shape == (2, 3, *size)
            assert torch.equal(logits, scripted(images))


@pytest.mark.parametrize(("scale", "input_size"), [(1.0, None), (0.5, None), (1.0, (64, 64))])
def test_classifier_takes_any_size(scale: float, input_size: tuple[int, int] | None) -> None:
    network = ClassifierNetwork(3, scale=scale, input_size=input_size).eval()
    scripted = torch.jit.script(network)
    with torch.inference_mode():
        for size in SIZES:
            assert network(draw(2, size)).shape == (2, 3)
            assert torch.equal(network(draw(2, size)), scripted(draw(2, size)))


def test_the_network_normalises_as_torchvision_does() -> None:
    network = ClassifierNetwork(3, scale=1.0).eval()
    images = draw(2, (64, 96))
    reference = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    expected = network.resnet(reference(images.expand(-1, 3, -1, -1) / 255))
    assert torch.allclose(network(images), expected, atol=1e-4)


def test_an_answer_does_not_depend_on_the_neighbours_in_the_batch() -> None:
    network = SegmenterNetwork(2, "resnet18", decoder_channels=(16, 8, 8)).eval()
    images = draw(3, (40, 72))
    with torch.inference_mode():
        alone = torch.cat([network(images[i : i + 1]) for i in range(3)])
        assert torch.allclose(network(images), alone, atol=1e-5)


def test_half_scale_is_the_mean_of_four_pixels() -> None:
    reduce = networks._Reduce(0.5, None)
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    images[..., 4:] = 200
    reduced = reduce(images) * reduce.std + reduce.mean
    assert reduced[0, 0, :, 0].tolist() == pytest.approx([0] * 4, abs=1e-3)
    assert reduced[0, 0, :, 3].tolist() == pytest.approx([200] * 4, abs=1e-3)


def test_residual_decoder_costs_a_few_per_cent() -> None:
    plain, residual = (
        sum(p.numel() for p in SegmenterNetwork(4, "resnet34", decoder=decoder).parameters())
        for decoder in ("unet", "resunet")
    )
    assert 1.0 < residual / plain < 1.05


def test_weights_from_a_local_file_serve_both_networks(tmp_path: Path) -> None:
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
        ("text", "does not hold weights"),  # not torch's
        ({"a": 3}, "does not hold weights"),  # no tensors
        ({"conv1.weight": torch.zeros(3)}, "of another network"),  # another shape
        (torchvision.models.resnet34().state_dict(), "of another network"),  # another depth
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, content: object, reason: str) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, str):
        path.write_text(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=reason):
        ClassifierNetwork(4, "resnet18", weights=str(path))


def test_torchvision_weights_by_name_come_from_its_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
    raise urllib.error.URLError("at last")


@pytest.mark.parametrize("urlopen", [_refuse_network, _hang])
def test_without_network_a_sentence_comes_soon(
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


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"scale": 0.0}, "model.scale"),
        ({"scale": 1.5}, "model.scale"),
        ({"input_size": (8, 256)}, "model.input_size"),
        ({"encoder": "resnet19"}, 'no encoder "resnet19"'),
        ({"decoder_channels": (8, 8)}, "model.decoder_channels"),
        ({"weights": "imagenet22k"}, 'no weights "imagenet22k"'),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)):
        SegmenterNetwork(4, **arguments)  # type: ignore[arg-type]


def save_run(network: nn.Module, path: Path) -> Path:
    """A checkpoint of a task with this network."""
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"steel": {"task": "of no matter here"}, "state_dict": state}, path)
    return path


def shuffle(network: nn.Module) -> nn.Module:
    """The network with other numbers everywhere, so that what was taken over is known by them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network


def compare(one: nn.Module, other: nn.Module) -> set[str]:
    """The weights that differ, but for the norms' counters, which nothing reads."""
    theirs = other.state_dict()
    return {
        key
        for key, value in one.state_dict().items()
        if "num_batches" not in key and (theirs[key].shape != value.shape or not torch.equal(theirs[key], value))
    }


SMALL_UNET = {"encoder": "resnet18", "decoder_channels": (16, 8, 8)}


@pytest.mark.parametrize("decoder", ["unet", "resunet"])
def test_a_segmenter_goes_on_from_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], decoder: Literal["unet", "resunet"]
) -> None:
    source = shuffle(SegmenterNetwork(3, **SMALL_UNET, decoder=decoder))  # type: ignore[arg-type]
    path = save_run(source, tmp_path / "run.ckpt")
    network = SegmenterNetwork(3, **SMALL_UNET, decoder=decoder, weights=str(path))  # type: ignore[arg-type]
    assert compare(network, source) == set()
    assert torch.equal(network.eval()(draw(1, (40, 72))), source.eval()(draw(1, (40, 72))))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("before", "now"), [(2, 4), (4, 2)])
def test_of_other_classes_the_rows_of_both_are_taken(tmp_path: Path, before: int, now: int) -> None:
    both = min(before, now)
    path = save_run(shuffle(SegmenterNetwork(before, **SMALL_UNET)), tmp_path / "segmenter.ckpt")  # type: ignore[arg-type]
    theirs = torch.load(path, weights_only=True)["state_dict"]
    torch.manual_seed(5)
    fresh = SegmenterNetwork(now, **SMALL_UNET)  # type: ignore[arg-type]
    torch.manual_seed(5)
    network = SegmenterNetwork(now, **SMALL_UNET, weights=str(path))  # type: ignore[arg-type]
    head = network.unet.segmentation_head[0]
    for name, own in head.named_parameters():
        key = f"unet.segmentation_head.0.{name}"
        assert torch.equal(own[:both], theirs[f"network.{key}"][:both])
        assert torch.equal(own[both:], fresh.state_dict()[key][both:])
    same = {key for key, value in network.state_dict().items() if "head" not in key and "num_batches" not in key}
    assert all(torch.equal(network.state_dict()[key], theirs[f"network.{key}"]) for key in same)

    path = save_run(shuffle(ClassifierNetwork(before)), tmp_path / "classifier.ckpt")
    theirs = torch.load(path, weights_only=True)["state_dict"]
    classifier = ClassifierNetwork(now, weights=str(path))
    assert torch.equal(classifier.resnet.fc[1].weight[:both], theirs["network.resnet.fc.1.weight"][:both])
    assert torch.equal(classifier.resnet.fc[1].bias[:both], theirs["network.resnet.fc.1.bias"][:both])
    assert torch.equal(classifier.resnet.layer4[1].conv2.weight, theirs["network.resnet.layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    ("settings", "fitting"),
    [
        ({"decoder_channels": (32, 8, 8)}, ("unet.decoder.blocks.2", "unet.segmentation_head")),
        ({"decoder": "resunet"}, ("unet.decoder.blocks.0.conv1", "unet.segmentation_head")),
    ],
    ids=["channels", "residual"],
)
def test_what_does_not_fit_of_a_decoder_starts_from_random_and_is_told(
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
            assert torch.equal(value, fresh[key])  # not a part of another tensor
    for part in fitting:
        assert not any(key.startswith(part) for key in random)
    told = capsys.readouterr().out
    assert told.startswith(f"{path}: {len(random)} tensors of the decoder are missing or of another shape there")
    assert random[0] in told


def test_of_the_other_task_the_encoder_alone_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
