import io
import re
from typing import Literal

import numpy as np
import pytest
import torch
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor

from steel.errors import InputError
from steel.training import networks
from steel.training.networks import ClassifierNetwork, SegmenterNetwork

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")

SIZES = [(64, 96), (103, 47), (33, 64)]  # multiples of 32, odd, just above a multiple


def draw(n: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("decoder", ["unet", "resunet"])
@pytest.mark.parametrize(("scale", "input_size"), [(1.0, None), (0.5, None), (0.3, None), (1.0, (64, 64))])
def test_segmenter_logits_have_the_size_of_the_input(
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


@pytest.mark.parametrize("size", [(103, 47), (33, 64), (9, 5), (64, 1)])
def test_segmenter_extends_images_by_reflection_like_training_crops(size: tuple[int, int]) -> None:
    network = SegmenterNetwork(3, "resnet18", decoder_channels=(16, 8, 8)).eval()
    images = draw(2, size)
    margins = [(0, -side % 32) for side in size]
    extended = torch.from_numpy(np.pad(images.numpy(), [(0, 0), (0, 0), *margins], mode="reflect"))
    with torch.inference_mode():
        assert torch.equal(network(images), network(extended)[:, :, : size[0], : size[1]])


@pytest.mark.parametrize("backbone", ["resnet18", "timm-tf_efficientnet_lite0"])
@pytest.mark.parametrize(("scale", "input_size"), [(1.0, None), (0.5, None), (1.0, (64, 64))])
def test_classifier_accepts_any_size(backbone: str, scale: float, input_size: tuple[int, int] | None) -> None:
    network = ClassifierNetwork(3, backbone, scale=scale, input_size=input_size).eval()
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


def test_the_logits_of_an_smp_encoder_are_the_largest_of_all_places() -> None:
    images = draw(2, (64, 96))
    for arguments in ({"backbone": "mobilenet_v2"}, {"encoder": "mobilenet_v2"}, {"encoder": "resnet18"}):
        network = ClassifierNetwork(3, **arguments, dropout=0.5).eval()  # type: ignore[arg-type]
        assert network.pooled is not None
        features = network.pooled.encoder(network.reduce(images))[-1]
        places = torch.nn.functional.linear(features.flatten(2).mT, *network.pooled.fc[1].parameters())
        expected = places.amax(1)
        assert torch.allclose(network(images), expected, atol=1e-5)
        assert network.encoder() == [network.pooled.encoder]
        assert network.pooled.fc[0].p == 0.5


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "mobilenet_v2", "timm-tf_efficientnet_lite0"])
def test_places_are_described_by_two_stages_in_the_pass_that_classifies(backbone: str) -> None:
    network = ClassifierNetwork(3, backbone, scale=0.5).eval()
    images = draw(2, (130, 250))
    with torch.inference_mode():
        if network.resnet is not None:
            extract = create_feature_extractor(network.resnet, ["layer2", "layer3"])
            fine, coarse = extract(network.reduce(images)).values()
        else:
            fine, coarse = network.pooled.encoder(network.reduce(images))[3:]  # type: ignore[union-attr]
        logits, stages = network.describe(images)
        assert torch.equal(logits, network(images))
        assert [stage.shape[2:] for stage in stages] == [(9, 16), (5, 8)]  # squares of 8 and 16 pixels at 65 x 125
        assert torch.equal(stages[0], fine)
        assert torch.equal(stages[1], coarse)
        scripted = torch.jit.script(_Describe(network))(images)
        for ours, theirs in zip((logits, *stages), (scripted[0], *scripted[1]), strict=True):
            assert torch.equal(ours, theirs)


class _Describe(torch.nn.Module):
    """Scripts the method `describe`, which `forward` does not call."""

    def __init__(self, network: ClassifierNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        described: tuple[torch.Tensor, list[torch.Tensor]] = self.network.describe(images)
        return described


def test_a_script_keeps_the_normalisation_of_the_weights() -> None:
    network = ClassifierNetwork(3, scale=1.0).eval()
    network.reduce.mean.fill_(127.5)
    network.reduce.std.fill_(127.5)
    images = draw(2, (64, 96))
    file = io.BytesIO()
    torch.jit.save(torch.jit.freeze(torch.jit.script(network)), file)
    file.seek(0)
    expected = network.resnet((images.expand(-1, 3, -1, -1) - 127.5) / 127.5)  # type: ignore[misc]
    assert torch.allclose(torch.jit.load(file)(images), expected, atol=1e-4)


def test_logits_do_not_depend_on_other_images_in_the_batch() -> None:
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


def test_residual_decoder_adds_a_few_per_cent_of_parameters() -> None:
    plain, residual = (
        sum(p.numel() for p in SegmenterNetwork(4, "resnet34", decoder=decoder).parameters())
        for decoder in ("unet", "resunet")
    )
    assert 1.0 < residual / plain < 1.05


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"scale": 0.0}, "model.scale must be in (0, 1], got 0.0"),
        ({"scale": 1.5}, "got 1.5"),
        ({"input_size": (8, 256)}, "[8, 256]"),
        ({"encoder": "resnet19"}, '"resnet19"'),
        ({"decoder_channels": (8, 8)}, "model.decoder_channels must list 3 to 5 values, got 2"),
        ({"weights": "imagenet22k"}, 'no weights "imagenet22k"'),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)):
        SegmenterNetwork(4, **arguments)  # type: ignore[arg-type]


def test_an_unknown_encoder_is_refused_by_the_option_that_was_given() -> None:
    with pytest.raises(
        InputError, match=r'^model\.backbone must be .*ResNet \(resnet18.* got "resnet99"; did you mean res'
    ):
        ClassifierNetwork(4, backbone="resnet99")
    with pytest.raises(
        InputError, match=r'^model\.encoder must be the name of an SMP encoder, got "resnet19"; did you'
    ):
        ClassifierNetwork(4, encoder="resnet19")
    with pytest.raises(InputError, match=r'got "yolo"; SMP has densenet121, '):
        ClassifierNetwork(4, backbone="yolo")
