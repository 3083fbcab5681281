"""`steel novelty` and its file in `steel export`: the distances, the limit, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Trained
from steel.cli import main
from steel.data.datamodule import SteelDataModule
from steel.decision import bundle
from steel.decision.novelty import read_novelty
from steel.evaluation.novelty import choose_limit, find_clean, fit_gaussian, learn
from steel.training.networks import ClassifierNetwork

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")


def test_distances_are_those_of_mahalanobis_in_a_common_unit() -> None:
    """The features are correlated and of unlike scales; a hundredth of the clean places is above 1."""
    from scipy.spatial.distance import mahalanobis

    rng = np.random.default_rng(0)
    clean = rng.normal(5, 1, (2000, 4)) @ rng.normal(0, 1, (4, 4)) * [1, 2, 5, 3]
    inverse = np.linalg.inv(np.cov(clean.T))
    naive = np.array([mahalanobis(place, clean.mean(0), inverse) for place in clean])
    gaussian = fit_gaussian(torch.from_numpy(clean).float(), 0.99)
    found = gaussian(torch.from_numpy(clean.T).float().view(1, 4, 40, 50)).flatten().numpy()
    assert np.corrcoef(found, naive)[0, 1] > 0.995
    assert (found > 1).mean() == pytest.approx(0.01, abs=0.001)


def test_a_feature_that_is_constant_on_clean_steel_does_not_decide_alone() -> None:
    """Another feature varies; a change of the constant one as large as that counts, but not without limit."""
    clean = torch.cat([torch.randn(1000, 1), torch.zeros(1000, 1)], 1)
    found = fit_gaussian(clean, 0.99)(torch.tensor([[0.0, 1.0], [0.0, 0.0]]).T.view(1, 2, 1, 2)).flatten()
    assert 1 < found[0] < 30
    assert found[1] < 0.1
    assert torch.isfinite(fit_gaussian(torch.ones(50, 3), 0.99)(torch.zeros(1, 3, 2, 2))).all()


def test_three_places_of_a_clean_image_are_beyond_a_distance_of_1_at_each_stage(root: Path) -> None:
    network = ClassifierNetwork(4, scale=0.5).eval()
    data = SteelDataModule(str(root), num_workers=0)
    rows = find_clean(data, "train")
    normal = learn(network, data, rows, torch.device("cpu"))
    with torch.inference_mode():
        described = [network.describe(batch["image"])[1] for batch in data.images_dataloader(rows)]
    for i, stage in enumerate(normal.stages):
        distances = torch.cat([stage(features[i]) for features in described])
        assert len(distances) == len(rows) > 5
        assert float((distances > 1).sum() / len(rows)) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize(("false_alarms", "num_alarms"), [(0.05, 6), (0.02, 1), (0.01, 0)])
def test_the_limit_is_the_lowest_that_keeps_the_false_alarms(false_alarms: float, num_alarms: int) -> None:
    """For 240 independent images; the numbers are those of exact binomial (Clopper-Pearson) bounds at 95 %."""
    from scipy import stats

    distances = np.random.default_rng(0).permutation(np.arange(1, 241)).astype(np.float32)
    limit = choose_limit(distances, np.arange(240), false_alarms, confidence=0.95)
    assert limit.num_alarms == num_alarms == int((distances >= limit.value).sum())
    assert limit.bound == pytest.approx(stats.beta.ppf(0.95, num_alarms + 1, 240 - num_alarms))
    assert (limit.bound <= false_alarms) == (false_alarms > 0.01)
    assert stats.beta.ppf(0.95, num_alarms + 2, 239 - num_alarms) > false_alarms


def test_images_that_are_alike_in_their_groups_allow_fewer_false_alarms() -> None:
    distances = np.repeat(np.arange(60), 4).astype(np.float32)
    independent = choose_limit(distances, np.arange(240), 0.1, confidence=0.95)
    grouped = choose_limit(distances, np.repeat(np.arange(60), 4), 0.1, confidence=0.95)
    assert grouped.num_groups == 60
    assert grouped.num_alarms < independent.num_alarms
    assert grouped.value > independent.value


@pytest.mark.slow
def test_the_promised_share_of_false_alarms_holds_on_new_groups() -> None:
    """In 200 repetitions with groups of unequal level, at most about 5 % of the limits let through too many."""
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(200):
        groups = np.repeat(np.arange(60), 6)
        distances = (rng.normal(0, 1, 60)[groups] + rng.normal(0, 1, 360)).astype(np.float32)
        limit = choose_limit(distances, groups, 0.1, confidence=0.95)
        broken += 1 - _normal_cdf(limit.value / np.sqrt(2)) > limit.bound
    assert broken <= 20  # 10 are expected; more than 20 have a probability of 0.002


def _normal_cdf(x: float) -> float:
    return float(torch.special.ndtr(torch.tensor(x)))


@pytest.fixture
def learnt(trained: Trained, tmp_path: Path) -> Path:
    path = tmp_path / "novelty.pt"
    options = ["--classifier", trained.classifier, "--root", trained.root, "--out", path]
    assert main(["novelty", *map(str, options)]) == 0
    return path


@pytest.mark.slow
def test_novelty_is_learnt_exported_and_measured(trained: Trained, learnt: Path, tmp_path: Path) -> None:
    normal, limit = read_novelty(learnt)
    assert len(normal.stages) == 2
    assert limit.num_trained > limit.num_images >= limit.num_groups > 0
    out = tmp_path / "inspector.pt"
    networks = ["--classifier", trained.classifier, "--segmenter", trained.segmenter]
    assert main(["export", *map(str, [*networks, "--novelty", learnt, "--out", out])]) == 0
    module, about = bundle.read(out)
    assert about.novelty == limit
    found = module(torch.randint(0, 256, (2, 50, 90), dtype=torch.uint8))
    assert found.novelty.shape == (2,)
    assert found.novelty_map.shape == (2, 7, 12)


def test_a_file_for_another_classifier_and_other_formats_are_refused(
    trained: Trained, learnt: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    networks = ["--classifier", trained.classifier, "--segmenter", trained.segmenter, "--novelty", learnt]
    out = ["--out", tmp_path / "inspector.pt"]
    assert "needs --format torchscript" in refused("export", *networks, "--precision", "bf16", *out)
    saved = torch.load(learnt, weights_only=True)
    saved["steel_novelty"]["limit"] = saved["steel_novelty"]["limit"].replace('"classifier": "', '"classifier": "0')
    torch.save(saved, learnt)
    assert "is for the classifier 0" in refused("export", *networks, *out)
    assert not out[1].exists()


def test_options_out_of_range_are_refused(trained: Trained, refused: Callable[..., str]) -> None:
    arguments = ["novelty", "--classifier", trained.classifier, "--root", trained.root]
    for option, value in (("false_alarms", 0), ("confidence", 1), ("batch_size", 0)):
        assert option in refused(*arguments, f"--{option}", value)
    assert "checkpoint of DefectSegmenter" in refused(*arguments, "--classifier", trained.segmenter)
