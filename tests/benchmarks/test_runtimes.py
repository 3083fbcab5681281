"""The segmenter that benchmarks.int8 quantises for TorchScript."""

import pytest
import torch

from benchmarks.runtimes import compile_torch, quantise
from steel.training.networks import SegmenterNetwork


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.ao and TorchScript are deprecated
def test_int8_computes_the_same_masks_within_its_resolution() -> None:
    torch.manual_seed(0)
    network = SegmenterNetwork(2, "timm-tf_efficientnet_lite0", decoder_channels=(16, 8, 8, 8)).eval()
    for block in network.unet.decoder.blocks:
        # Beyond 6, where the ReLU6 of the encoder ends, with which the decoder's features are concatenated.
        block.conv2[1].weight.data.fill_(40)
    images = [torch.randint(0, 256, (1, 1, 64, 96), dtype=torch.uint8) for _ in range(2)]
    quantised = quantise(network, images)
    assert "quantized" in type(quantised.unet.decoder.blocks[0].conv1[0]).__module__
    with torch.no_grad():
        expected, found = (torch.cat([run(image) for image in images]) for run in (network, quantised))
        middle = expected.median()
        differs = (expected >= middle) != (found >= middle)
    assert 0 < float((found - expected).abs().max()) < 0.25 * float(expected.std())
    assert float(differs.float().mean()) < 0.02
    assert torch.equal(compile_torch(quantised)(images[0]), found[:1].sigmoid())
