"""The segmenter that benchmarks.int8 quantises for TorchScript."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.runtimes import quantise
from steel.training.networks import SegmenterNetwork

# torch.ao and TorchScript are deprecated.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


@pytest.fixture
def network() -> SegmenterNetwork:
    """A U-Net whose decoder has features beyond 6, where the ReLU6 of its encoder ends."""
    torch.manual_seed(0)
    network = SegmenterNetwork(2, "timm-tf_efficientnet_lite0", decoder_channels=(16, 8, 8, 8)).eval()
    for block in network.unet.decoder.blocks:
        block.conv2[1].weight.data.fill_(20)
    return network


@pytest.fixture
def images() -> list[torch.Tensor]:
    return [torch.randint(0, 256, (1, 1, 64, 96), dtype=torch.uint8) for _ in range(2)]


def test_ranges_are_measured_on_the_same_network(
    network: SegmenterNetwork, images: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep: Callable[[Any], Any] = lambda prepared: prepared  # noqa: E731
    monkeypatch.setattr("torch.ao.quantization.quantize_fx.convert_fx", keep)
    prepared = quantise(network, images)
    with torch.no_grad():
        for image in images:
            expected = network(image)
            assert torch.allclose(prepared(image), expected, atol=1e-4 * float(expected.abs().max()))


def test_all_but_the_first_and_the_last_layer_compute_in_int8(
    network: SegmenterNetwork, images: list[torch.Tensor]
) -> None:
    quantised = quantise(network, images)
    names = [name for name, module in quantised.named_modules() if type(module) is torch.nn.Conv2d]
    assert names == ["unet.encoder.conv_stem", "unet.segmentation_head.0"]
    with torch.no_grad():
        assert torch.equal(torch.jit.script(quantised)(images[0]), quantised(images[0]))
