"""The HTTP API, called in this process without a socket."""

import hashlib
import io
import re
import socket
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from scipy import ndimage
from starlette.testclient import TestClient

import steel.desk
from served import CLASSES, build_desk, draw, encode, open_client, open_desk, write_inspector
from steel.data import rle
from steel.decision.drift import build_reference, measure
from steel.desk.answers import VerdictQuestion
from steel.desk.desk import Limits
from steel.desk.service import build_app
from steel.desk.verdicts import Verdicts
from steel.errors import InputError

SCALE = (10, 8, 12, 5, 255)
SCRATCH = (40, 20, 30, 3, 150)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with open_client(build_app(build_desk(tmp_path, mm_per_pixel=0.5))) as client:
        yield client


def inspect(client: TestClient, image: np.ndarray | bytes, **params: Any) -> dict[str, Any]:
    data = image if isinstance(image, bytes) else encode(image)
    answer = client.post("/v1/inspect", content=data, params=params)
    assert answer.status_code == 200, answer.text
    (only,) = answer.json()["images"]
    return only


def test_an_answer_agrees_with_an_independent_computation(client: TestClient) -> None:
    image = draw(95, (SCALE, SCRATCH, (80, 40, 2, 2, 255)))
    data = encode(image)
    found = inspect(client, data, name="a.png")
    mean = image.astype(float).mean()
    assert found["name"] == "a.png"
    assert found["digest"] == hashlib.sha256(data).hexdigest()
    assert found["size"] == [64, 96]
    expected = {name: 1 / (1 + np.exp((centre - mean) / 10)) for name, centre in zip(CLASSES, (50, 90), strict=True)}
    assert found["class_probabilities"] == pytest.approx(expected, abs=1e-5)
    assert found["gate_probability"] == pytest.approx(expected["scale"], abs=1e-5)
    assert found["defective"] is True
    masks = {"scale": image > 200, "scratch": (image >= 120) & (image <= 180)}
    for name, mask in masks.items():
        assert np.array_equal(rle.decode(found["codes"][name], image.shape), mask)
        labelled, num = ndimage.label(mask, np.ones((3, 3)))
        spots = [spot for spot in found["spots"] if spot["class"] == name]
        assert len(spots) == num
        for i, (spot, (rows, columns)) in enumerate(zip(spots, ndimage.find_objects(labelled), strict=True), 1):
            area = int((labelled == i).sum())
            assert spot["area_pixels"] == area
            assert spot["area_mm2"] == pytest.approx(area / 4)
            assert spot["box"] == [
                columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start,
            ]  # fmt: skip
            assert spot["centroid"][::-1] == pytest.approx(ndimage.center_of_mass(labelled == i))
            assert np.array_equal(rle.decode(spot["code"], image.shape), labelled == i)


def test_a_clean_image_has_empty_codes(client: TestClient) -> None:
    found = inspect(client, draw(20, (SCALE,)))
    assert found["defective"] is False
    assert found["codes"] == {"scale": "", "scratch": ""}
    assert found["spots"] == []


def test_areas_in_mm2_are_null_without_the_size_of_a_pixel(tmp_path: Path) -> None:
    with open_client(build_app(build_desk(tmp_path))) as client:
        assert inspect(client, draw(95, (SCALE,)))["spots"][0]["area_mm2"] is None


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
def test_every_image_format_is_accepted(client: TestClient, suffix: str) -> None:
    assert inspect(client, encode(draw(95, (SCALE,)), suffix))["defective"] is True


def test_a_damaged_image_does_not_affect_the_others(client: TestClient) -> None:
    good = encode(draw(95, (SCALE,)))
    files = [
        ("images", (name, data))
        for name, data in (("a.png", good), ("b.png", b"no image"), ("c.png", good[:60]), ("d.png", good))
    ]
    answer = client.post("/v1/inspect", files=files)
    assert answer.status_code == 200
    a, b, c, d = answer.json()["images"]
    assert a["defective"]
    assert d["defective"]
    assert (b["name"], c["name"]) == ("b.png", "c.png")
    assert "JPEG, PNG, BMP or TIFF" in b["detail"]
    assert "damaged" in c["detail"]


def test_overlay_is_a_png_of_a_single_image(client: TestClient) -> None:
    answer = client.post("/v1/inspect?overlay=png", content=encode(draw(95, (SCALE,))))
    assert answer.headers["content-type"] == "image/png"
    picture = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (64 + 24, 96, 3)
    left, top, width, height, _ = SCALE
    coloured = (picture.max(2) > picture.min(2))[24:]
    assert coloured[top : top + height, left : left + width].all()
    two = [("images", ("a.png", encode(draw())))] * 2
    assert client.post("/v1/inspect?overlay=png", files=two).status_code == 422


def test_thresholds_of_a_request_apply_to_that_request_only(client: TestClient) -> None:
    image = draw(95, (SCALE, SCRATCH))
    before = inspect(client, image)
    assert before["codes"]["scratch"]
    assert not inspect(client, image, gate=1)["defective"]
    only_scale = inspect(client, image, label=[0.5, 0.99])
    assert only_scale["codes"] == before["codes"] | {"scratch": ""}
    assert inspect(client, draw(20, (SCALE,)), gate=0)["codes"]["scale"]
    assert inspect(client, image) == before


@pytest.mark.parametrize("query", ["gate=1.1", "gate=nan", "gate=x", "label=0.5", "label=0.5&label=-1", "overlay=gif"])
def test_invalid_thresholds_are_refused(client: TestClient, query: str) -> None:
    answer = client.post(f"/v1/inspect?{query}", content=encode(draw()))
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], str)


def test_the_model_is_described(client: TestClient) -> None:
    model = client.get("/v1/model").json()
    assert [entry["name"] for entry in model["classes"]] == CLASSES
    assert [entry["label"] for entry in model["classes"]] == [0, 0]
    assert model["classes"][0]["colour"] == "#ffc800"
    assert model["gate"] == 0.5
    assert model["operating_point"]["pixel"] == [0.5, 0.5]
    assert model["mm_per_pixel"] == 0.5


def test_health_readiness_and_metrics(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    inspect(client, draw(95))
    inspect(client, draw(20))
    inspect(client, draw(20), gate=0)  # not at the operating point: not counted
    client.post("/v1/inspect", content=b"")
    client.get("/made/up")
    text = client.get("/metrics").text
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["steel_images_total", "defective"] == 1
    assert samples["steel_images_total", "clean"] == 1
    assert samples["steel_images_total", "refused"] == 1
    assert samples["steel_requests_total", "/v1/inspect", "200"] == 3
    assert samples["steel_requests_total", "/v1/inspect", "415"] == 1
    assert samples["steel_requests_total", "other", "404"] == 1
    assert samples["steel_request_seconds_count", "/v1/inspect"] == 4
    assert samples["steel_batch_images_count",] == 3
    assert samples["steel_queue_images",] == 0


VERDICT = {"image": "a.png", "size": [64, 96], "defective": True, "codes": {"scale": "5 3", "scratch": "100 2"}}


def save(client: TestClient, number: int, **changes: Any) -> Any:
    return client.put(f"/v1/verdicts/{number:064x}", json=VERDICT | {"image": f"{number}.png"} | changes)


def test_verdicts_are_exported_as_csv_and_as_labels(client: TestClient) -> None:
    nothing = {"scale": "", "scratch": ""}
    for number, changes in enumerate(
        [
            {"verdict": "agree", "inspector": "K. L."},
            {"verdict": "agree", "defective": False, "codes": nothing},
            {"verdict": "false_alarm"},
            {"verdict": "false_alarm", "class": "scratch"},
            {"verdict": "missed", "class": "scratch"},
            {"verdict": "missed"},
            {"verdict": "agree", "codes": nothing},  # defective, but nothing was outlined
        ]
    ):
        assert save(client, number, **changes).status_code == 200
    lines = client.get("/v1/verdicts.csv").text.splitlines()
    assert lines[0] == "image,defective,verdict,class,inspector,at,digest"
    assert [line.split(",")[:5] for line in lines[1:3]] == [
        ["0.png", "1", "agree", "", "K. L."],
        ["1.png", "0", "agree", "", ""],
    ]
    archive = zipfile.ZipFile(io.BytesIO(client.get("/v1/labels.zip").content))
    assert archive.read("train.csv").decode().splitlines() == [
        "ImageId_ClassId,EncodedPixels",
        "0.png_1,5 3",
        "0.png_2,100 2",
        "1.png_1,",
        "1.png_2,",
        "2.png_1,",
        "2.png_2,",
        "3.png_1,5 3",
        "3.png_2,",
    ]
    assert archive.read("to_label.csv").decode().splitlines() == ["ImageId,ClassId", "4.png,2", "5.png,", "6.png,"]
    assert archive.read("classes.csv").decode().splitlines() == ["ClassId,name", "1,scale", "2,scratch"]
    shift = client.get("/v1/verdicts").json()
    assert shift["counts"] == {"agree": 3, "missed": 2, "false_alarm": 2}
    assert len(shift["verdicts"]) == 7


def test_labels_are_a_valid_dataset(client: TestClient, tmp_path: Path) -> None:
    from steel.data.annotations import read_annotations

    save(client, 1, verdict="agree")
    save(client, 2, verdict="false_alarm")
    root = tmp_path / "data"
    zipfile.ZipFile(io.BytesIO(client.get("/v1/labels.zip").content)).extractall(root)
    (root / "train_images").mkdir()
    for name in ("1.png", "2.png"):
        (root / "train_images" / name).write_bytes(encode(draw()))
    annotations = read_annotations(root)
    assert annotations.classes == tuple(CLASSES)
    assert annotations.labels.tolist() == [[True, True], [False, False]]


def test_a_verdict_can_be_replaced_and_deleted(client: TestClient) -> None:
    save(client, 1, verdict="agree")
    assert save(client, 1, verdict="missed").json()["verdict"] == "missed"
    assert client.get("/v1/verdicts").json()["counts"] == {"agree": 0, "missed": 1, "false_alarm": 0}
    assert client.delete(f"/v1/verdicts/{1:064x}").status_code == 204
    assert client.delete(f"/v1/verdicts/{1:064x}").status_code == 404


def test_two_images_with_one_name_are_refused(client: TestClient) -> None:
    assert save(client, 1, verdict="agree", image="a.png").status_code == 200
    answer = save(client, 2, verdict="agree", image="a.png")
    assert answer.status_code == 409
    assert "a.png" in answer.json()["detail"]


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": "maybe"},
        {"verdict": "agree", "image": "../a.png"},
        {"verdict": "agree", "image": ""},
        {"verdict": "agree", "image": "a\nb.png"},
        {"verdict": "agree", "size": [0, 96]},
        {"verdict": "agree", "size": [64]},
        {"verdict": "agree", "codes": {"scale": "6144 2"}},  # beyond the image
        {"verdict": "agree", "codes": {"scale": "1 x"}},
        {"verdict": "agree", "codes": {"rust": ""}},
        {"verdict": "missed", "class": "rust"},
        {"verdict": "agree", "more": 1},
    ],
)
def test_invalid_verdicts_are_refused(client: TestClient, changes: dict[str, Any]) -> None:
    answer = save(client, 1, **changes)
    assert answer.status_code == 422, answer.text
    assert client.get("/v1/verdicts").json()["verdicts"] == []


def test_formulas_in_csv_cells_are_escaped(client: TestClient) -> None:
    save(client, 1, verdict="agree", image="=HYPERLINK(1).png")
    assert client.get("/v1/verdicts.csv").text.splitlines()[1].startswith("'=HYPERLINK(1).png,")


def test_verdicts_survive_a_restart(tmp_path: Path) -> None:
    for counts in ({"agree": 0}, {"agree": 1}):
        with open_client(build_app(build_desk(tmp_path))) as client:
            assert client.get("/v1/verdicts").json()["counts"].items() >= counts.items()
            save(client, 1, verdict="agree")


def test_the_token_is_required(tmp_path: Path) -> None:
    with open_client(build_app(build_desk(tmp_path), token="secret", is_local=False), "desk.example") as client:
        for path in ("/v1/model", "/v1/verdicts", "/v1/verdicts.csv", "/v1/labels.zip", "/metrics", "/made/up"):
            for header in ("", "Bearer", "Bearer wrong", "Basic secret", "Bearer secre", "Bearer secrets"):
                answer = client.get(path, headers={"Authorization": header})
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
            assert client.get(path, headers={"Authorization": "Bearer secret"}).status_code != 401
        assert client.post("/v1/inspect", content=encode(draw())).status_code == 401
        for path in ("/", "/page/page.js", "/docs", "/openapi.json", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:80", 421),
        ("", 421),
    ],
)
def test_requests_for_other_hosts_and_from_other_sites_are_refused(client: TestClient, host: str, status: int) -> None:
    assert client.get("/v1/model", headers={"Host": host}).status_code == status
    assert client.get("/v1/model", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


@pytest.mark.parametrize("path", ["/", "/docs", "/page/page.js", "/v1/model", "/made/up", "/metrics"])
def test_every_response_has_security_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"


def test_pages_load_nothing_from_other_hosts_and_have_no_inline_script() -> None:
    for file in (Path(steel.desk.__file__).parent / "page").iterdir():
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"https?://|[\"'(]//", text), file.name
        assert not re.search(r"<script>|\son[a-z]+=|style=|javascript:", text) or file.suffix != ".html", file.name


def test_limits_are_enforced(tmp_path: Path) -> None:
    limits = Limits(max_images=2, max_pixels=64 * 96, max_bytes=20_000)
    with open_client(build_app(build_desk(tmp_path, limits=limits))) as client:
        assert client.post("/v1/inspect", content=bytes(20_001)).status_code == 413
        assert client.post("/v1/inspect", content=iter([bytes(15_000)] * 2)).status_code == 413
        assert client.post("/v1/inspect", content=encode(draw(size=(65, 96)))).status_code == 413
        one = ("images", ("a.png", encode(draw())))
        assert client.post("/v1/inspect", files=[one] * 3).status_code == 400
        assert client.post("/v1/inspect", files=[one] * 2).status_code == 200


def test_a_full_queue_is_503_with_retry_after(tmp_path: Path) -> None:
    with open_client(build_app(build_desk(tmp_path, queue_size=1))) as client:
        two = [("images", ("a.png", encode(draw())))] * 2
        answer = client.post("/v1/inspect", files=two)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert client.post("/v1/inspect", files=two[:1]).status_code == 200


def test_invalid_options_end_with_one_sentence(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_inspector(tmp_path / "inspector.pt")
    monkeypatch.delenv("STEEL_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen on 127.0.0.1" in refused("serve", model, f"--port={taken.getsockname()[1]}")
    assert "STEEL_TOKEN" in refused("serve", model, "--host=0.0.0.0")
    assert re.search("queue.* 16.* 8", refused("serve", model, "--queue=8"))
    assert re.search("mm_per_pixel .*above 0, got 0", refused("serve", model, "--mm_per_pixel=0"))
    assert re.search("port .*65535, got 70000", refused("serve", model, "--port=70000"))
    (tmp_path / "other.sqlite").write_text("a text file that is longer than the header of a database" * 9)
    assert "other.sqlite" in refused("serve", model, "--port=0", f"--verdicts={tmp_path / 'other.sqlite'}")


def test_drift_is_reported_until_a_window_matches_the_reference(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def shoot(level: float) -> np.ndarray:
        return np.clip(rng.normal(level + rng.normal() * 3, 6, (16, 32)), 0, 255).astype(np.uint8)

    usual = [shoot(90) for _ in range(200)]
    reference = build_reference(np.stack([measure(image) for image in usual]), np.full((200, 2), 0.5), np.arange(200))
    assert reference is not None
    # Raise the limits of the classes, so that only the measures of the images can cause a warning.
    sketches = [*reference.sketches[:4], *(replace(sketch, limit=1e9) for sketch in reference.sketches[4:])]
    reference = replace(reference, sketches=tuple(sketches))
    desk = open_desk(write_inspector(tmp_path / "inspector.pt", reference=reference), Limits(max_images=200))
    with open_client(build_app(desk)) as client:

        def send(level: float, **params: float) -> str | None:
            for _ in range(20):
                images = [("images", (f"{i}.png", encode(shoot(level)), "image/png")) for i in range(10)]
                assert client.post("/v1/inspect", files=images, params=params).status_code == 200
            return client.get("/v1/model").json()["drift"]

        assert send(90) is None
        assert send(45, gate=0.3) is None  # not at the operating point: not watched
        sentence = send(45)
        assert sentence is not None
        assert "images are darker" in sentence
        assert "steel_drift_warnings_total 1.0" in client.get("/metrics").text
        assert send(90) is None


def test_a_file_with_verdicts_on_other_classes_is_refused(tmp_path: Path) -> None:
    """Labels written from it would have other classes than the inspector meant."""
    path = tmp_path / "verdicts.sqlite"
    Verdicts(path, ["other"]).close()  # no verdicts yet, so other classes may take over
    kept = Verdicts(path, CLASSES)
    verdict = {"image": "a.png", "size": [4, 4], "verdict": "agree", "defective": True, "codes": {"scale": "1 2"}}
    kept.save("0" * 64, VerdictQuestion.model_validate(verdict))
    kept.close()
    with pytest.raises(InputError, match=r"classes scale, scratch, but .* scratch, scale; .*--verdicts"):
        Verdicts(path, CLASSES[::-1])
    again = Verdicts(path, CLASSES)
    assert "a.png" in again.format_csv()
    again.close()
