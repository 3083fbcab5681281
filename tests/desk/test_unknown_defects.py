"""Images unlike any clean steel: the answer of the service, verdicts on them, and the labels that they become."""

import hashlib
import io
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from bright import NOVELTY_LIMIT, draw_places, write_novel_model
from served import build_desk, encode, open_client, open_desk
from steel import overlays
from steel.data import rle
from steel.desk.service import build_app

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")

CLEAN, UNKNOWN, BRIGHTER = (encode(image) for image in draw_places()[:, 0].numpy())


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    model = write_novel_model(tmp_path / "inspector.pt", limit=1.0)
    with open_client(build_app(open_desk(model))) as client:
        yield client


def inspect(client: TestClient, content: bytes, **thresholds: float) -> dict[str, Any]:
    return client.post("/v1/inspect", content=content, params=thresholds).json()["images"][0]


def save(client: TestClient, name: str, verdict: str, **changes: Any) -> Any:
    """Inspect a variant of the unknown image and save a verdict on it."""
    content = encode(draw_places()[1, 0].numpy()) + name.encode()  # PNG readers ignore what follows the image
    answer = inspect(client, content)
    found = {key: answer[key] for key in ("size", "defective", "codes", "unknown_code")}
    body = {"image": name, "verdict": verdict, "inspector": "K. L."} | found | changes
    return client.put(f"/v1/verdicts/{hashlib.sha256(content).hexdigest()}", json=body)


def read_labels(client: TestClient) -> dict[str, list[str]]:
    archive = zipfile.ZipFile(io.BytesIO(client.get("/v1/labels.zip").content))
    return {name: archive.read(name).decode().splitlines()[1:] for name in archive.namelist()}


def test_the_answer_names_the_unusual_places_of_images_without_a_class(client: TestClient) -> None:
    clean, unknown, brighter = (inspect(client, content) for content in (CLEAN, UNKNOWN, BRIGHTER))
    assert [answer["novelty"] >= 1 for answer in (clean, unknown, brighter)] == [False, True, False]
    assert [bool(answer["unknown_code"]) for answer in (clean, unknown, brighter)] == [False, True, False]
    region = rle.decode(unknown["unknown_code"], (32, 48))
    assert region[8:16, 24:32].all()
    assert not region[:, :16].any()
    found = inspect(client, UNKNOWN, gate=0)
    assert any(found["codes"].values())
    assert found["unknown_code"] == ""  # a class was outlined
    model = client.get("/v1/model").json()["novelty"]
    assert model == {"colour": overlays.format_colour(overlays.UNKNOWN), "promise": NOVELTY_LIMIT.promise}
    counted = client.get("/metrics").text
    for decision, num in (("clean", 2), ("unknown", 1), ("defective", 0)):
        assert f'steel_images_total{{decision="{decision}"}} {num}.0' in counted


def test_a_model_without_novelty_finds_no_unknown_defects(tmp_path: Path) -> None:
    with open_client(build_app(build_desk(tmp_path))) as client:
        answer = inspect(client, UNKNOWN)
        assert (answer["novelty"], answer["unknown_code"]) == (None, "")
        assert client.get("/v1/model").json()["novelty"] is None


def test_unknown_defects_become_labels_of_new_classes_or_remain_unlabelled(client: TestClient, tmp_path: Path) -> None:
    from steel.data.annotations import read_annotations

    code = inspect(client, UNKNOWN)["unknown_code"]
    for name, verdict, changes in (
        ("d.png", "unknown", {"class": "roll mark"}),
        ("a.png", "unknown", {"class": "=oil"}),
        ("b.png", "unknown", {}),
        ("c.png", "agree", {}),
        ("e.png", "false_alarm", {}),
        ("f.png", "missed", {"marks": {"never": "1 2"}}),
        ("g.png", "missed", {"class": "spot"}),
    ):
        answer = save(client, name, verdict, **changes)
        assert answer.status_code == 200, answer.text
    labels = read_labels(client)
    # New classes are numbered in the order in which they were named.
    assert labels["classes.csv"] == ["1,spot", "2,never", "3,roll mark", "4,'=oil"]
    assert labels["unknown.csv"] == [f"b.png,{code}", f"c.png,{code}"]
    assert labels["to_label.csv"] == ["g.png,1"]
    codes = dict(row.split(",") for row in labels["train.csv"])
    assert {key: value for key, value in codes.items() if value} == {"d.png_3": code, "a.png_4": code, "f.png_2": "1 2"}
    assert len(codes) == 4 * 6
    assert client.get("/v1/verdicts").json()["counts"] == {"agree": 1, "missed": 2, "false_alarm": 1, "unknown": 3}

    zipfile.ZipFile(io.BytesIO(client.get("/v1/labels.zip").content)).extractall(tmp_path / "data")
    (images := tmp_path / "data" / "train_images").mkdir()
    for name in "abcdef":
        (images / f"{name}.png").write_bytes(UNKNOWN)
    table = read_annotations(tmp_path / "data")
    assert table.classes == ("spot", "never", "roll mark", "=oil")
    assert table.labels.any(1).tolist() == [True, False, False, True, False, True]
    assert table.has_unknown.tolist() == [False, True, True, False, False, False]


def test_the_number_of_a_new_class_stays_when_a_verdict_changes(client: TestClient) -> None:
    for name, label in (("a.png", "oil"), ("b.png", "oil"), ("c.png", "scale"), ("a.png", None), ("d.png", "gone")):
        assert save(client, name, "unknown", **{"class": label}).status_code == 200
    assert save(client, "d.png", "false_alarm").status_code == 200
    assert read_labels(client)["classes.csv"][2:] == ["3,oil", "4,scale"]


def test_there_are_at_most_eight_classes(client: TestClient) -> None:
    """With eight classes a mask has no bit for unlabelled regions, so these images are listed for someone to label."""
    save(client, "bare.png", "unknown")
    for i in range(6):
        assert save(client, f"{i}.png", "unknown", **{"class": f"new {i}"}).status_code == 200
    refused = save(client, "more.png", "unknown", **{"class": "new 6"})
    assert refused.status_code == 422
    assert "at most 8 classes, and the new ones are new 0, new 1" in refused.json()["detail"]
    assert save(client, "more.png", "unknown", **{"class": "new 5"}).status_code == 200
    labels = read_labels(client)
    assert "unknown.csv" not in labels
    assert labels["to_label.csv"] == ["bare.png,"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"unknown_code": ""}, "needs unknown_code"),
        ({"unknown_code": "1536 2"}, "unknown_code: the run of 2 pixels"),  # beyond the image
        ({"class": "Spot"}, "is not new"),
        ({"class": " oil"}, "1 to 40 printable characters"),
        ({"class": "a\u202eb"}, "1 to 40 printable characters"),
        ({"class": "x" * 41}, "1 to 40 printable characters"),
        ({"verdict": "missed", "class": "oil"}, "class must be one of"),
        ({"defective": True, "codes": {"spot": "1 2"}}, "must be empty if codes are not"),
    ],
)
def test_invalid_verdicts_on_unknown_defects_are_refused(
    client: TestClient, changes: dict[str, Any], reason: str
) -> None:
    answer = save(client, "a.png", **({"verdict": "unknown"} | changes))
    assert answer.status_code == 422
    assert reason in answer.json()["detail"]
    assert client.get("/v1/verdicts").json()["verdicts"] == []


def test_a_file_of_verdicts_from_before_unknown_defects_opens(tmp_path: Path) -> None:
    model = write_novel_model(tmp_path / "inspector.pt", limit=1.0)
    with open_client(build_app(open_desk(model))) as client:
        save(client, "a.png", "agree", unknown_code="")
    with sqlite3.connect(tmp_path / "verdicts.sqlite") as earlier:
        earlier.executescript("ALTER TABLE history DROP COLUMN unknown_code")
    earlier.close()
    for verdict in ("unknown", "agree"):  # converted once
        with open_client(build_app(open_desk(model))) as client:
            assert read_labels(client)["train.csv"][:2] == ["a.png_1,", "a.png_2,"]
            assert save(client, "b.png", verdict).status_code == 200
            assert [row.split(",")[0] for row in read_labels(client)["unknown.csv"]] == ["b.png"]
