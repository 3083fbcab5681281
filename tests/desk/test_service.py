"""The HTTP API, called in this process without a socket."""

import hashlib
import re
from collections.abc import Iterator
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
from steel.decision.about import About
from steel.decision.drift import build_reference
from steel.decision.measures import measure
from steel.decision.point import OperatingPoint
from steel.decision.tuning import Aim, ChosenOn, NetworkHashes, Tuning
from steel.desk.answers import describe_model
from steel.desk.batching import Thresholds
from steel.desk.desk import Limits
from steel.desk.service import build_app
from steel.pages import POLICY

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


def test_a_gate_just_above_a_probability_gives_no_spots_on_a_clean_image(client: TestClient) -> None:
    """The gate and the masks follow from one comparison in single precision."""
    image = draw(60, (SCALE,))
    probability = inspect(client, image)["gate_probability"]
    assert float(np.float32(probability)) == probability
    halfway = float(np.nextafter(np.float32(probability), np.float32(1)) - np.float32(probability)) / 2
    for gate in (probability, probability * (1 + 1e-12), probability + 0.9 * halfway, probability + 1.1 * halfway):
        found = inspect(client, image, gate=repr(gate))
        assert found["defective"] is bool(np.float32(probability) >= np.float32(gate))
        assert bool(found["spots"]) is found["defective"]
    assert found["defective"] is False


@pytest.mark.parametrize("query", ["gate=1.1", "gate=nan", "gate=x", "label=0.5", "label=0.5&label=-1", "overlay=gif"])
def test_invalid_thresholds_are_refused(client: TestClient, query: str) -> None:
    answer = client.post(f"/v1/inspect?{query}", content=encode(draw()))
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], str)


def test_the_model_is_described(client: TestClient, tmp_path: Path) -> None:
    model = client.get("/v1/model").json()
    assert [entry["name"] for entry in model["classes"]] == CLASSES
    assert [entry["label"] for entry in model["classes"]] == [0, 0]
    assert model["classes"][0]["colour"] == "#ffc800"
    assert model["gate"] == 0.5
    assert model["digest"] == hashlib.sha256((tmp_path / "inspector.pt").read_bytes()).hexdigest()
    assert model["operating_point"]["pixel"] == [0.5, 0.5]
    assert model["mm_per_pixel"] == 0.5


def test_no_path_of_the_training_machine_is_described() -> None:
    chosen_on = ChosenOn("/home/trainer/data", "val", "a" * 16, "b" * 16, 60, 20)
    tuned = Tuning(Aim("cost", (1.0, 1.0), (1.0, 1.0)), chosen_on, NetworkHashes(("c",), ("d",), False))
    about = About(tuple(CLASSES), OperatingPoint.untuned(2), tuned)
    answer = describe_model(about, Thresholds(0.5, (0.0, 0.0)), None).model_dump()
    assert answer["tuned"]["chosen_on"]["num_images"] == 60
    assert "/home" not in str(answer)


def test_the_model_card_is_a_page_with_its_own_style(client: TestClient) -> None:
    response = client.get("/v1/card")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "Model card of inspector.pt" in response.text
    # One policy, which allows the style inside the page but no script of another host.
    assert response.headers.get_list("content-security-policy") == [POLICY]
    assert "default-src 'none'" in POLICY
    assert response.headers["x-content-type-options"] == "nosniff"


def test_health_readiness_and_metrics(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    inspect(client, draw(95, (SCALE,)))
    inspect(client, draw(95))  # passes the gate, but nothing is outlined
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


def test_drift_is_reported_until_a_window_matches_the_reference(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def shoot(level: float) -> np.ndarray:
        return np.clip(rng.normal(level + rng.normal() * 3, 6, (16, 32)), 0, 255).astype(np.uint8)

    usual = [shoot(90) for _ in range(200)]
    reference = build_reference(np.stack([measure(image) for image in usual]), np.full((200, 2), 0.5), np.arange(200))
    assert reference is not None
    # Raise the limits of the classes and remove the charts, so that only the measures of windows can cause a warning.
    sketches = [*reference.sketches[:4], *(replace(sketch, limit=1e9) for sketch in reference.sketches[4:])]
    reference = replace(reference, sketches=tuple(sketches), charts=())
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


@pytest.mark.slow
def test_the_service_conforms_to_its_openapi_schema(tmp_path: Path) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import Phase, given, settings
    from hypothesis import strategies as st
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    app = build_app(build_desk(tmp_path))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "127.0.0.1"})
    held_to = [
        not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
        checks.response_schema_conformance, checks.response_headers_conformance,
    ]  # fmt: skip
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 10

    @settings(max_examples=10 * len(operations), database=None, phases=[Phase.generate], derandomize=True)
    @given(case=st.sampled_from(operations).flatmap(lambda operation: operation.as_strategy()))
    def hold(case: Any) -> None:
        case.call_and_validate(checks=held_to, headers={"Host": "127.0.0.1"})

    hold()
