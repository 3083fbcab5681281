"""Verdicts: saving, replacing and deleting them, and their export as CSV and as labels."""

import hashlib
import io
import json
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from served import CLASSES, build_desk, draw, encode, open_client
from steel.desk import verdicts
from steel.desk.answers import VerdictQuestion
from steel.desk.service import build_app
from steel.desk.verdicts import Verdicts
from steel.errors import InputError

VERDICT = {
    "image": "a.png", "size": [64, 96], "defective": True, "codes": {"scale": "5 3", "scratch": "100 2"},
    "inspector": "M. N.",
}  # fmt: skip


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with open_client(build_app(build_desk(tmp_path))) as client:
        yield client


def draw_numbered(number: int) -> bytes:
    return encode(draw(number))


def get_digest(number: int) -> str:
    return hashlib.sha256(draw_numbered(number)).hexdigest()


def save(client: TestClient, number: int, **changes: Any) -> Any:
    """Inspect an image and save a verdict on it."""
    assert client.post("/v1/inspect", content=draw_numbered(number)).status_code == 200
    return client.put(f"/v1/verdicts/{get_digest(number)}", json=VERDICT | {"image": f"{number}.png"} | changes)


def delete(client: TestClient, number: int, **query: Any) -> int:
    """Delete the verdict on an image and return the status."""
    params = {"inspector": "M. N."} | query
    return client.delete(f"/v1/verdicts/{get_digest(number)}", params=params).status_code


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
    assert lines[0] == "image,defective,verdict,class,inspector,at,digest,comment"
    assert [line.split(",")[:5] for line in lines[1:3]] == [
        ["0.png", "1", "agree", "", "K. L."],
        ["1.png", "0", "agree", "", "M. N."],
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
    assert shift["counts"] == {"agree": 3, "missed": 2, "false_alarm": 2, "unknown": 0}
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
    counts = client.get("/v1/verdicts").json()["counts"]
    assert counts == {"agree": 0, "missed": 1, "false_alarm": 0, "unknown": 0}
    assert delete(client, 1) == 204
    assert delete(client, 1) == 404


def test_a_verdict_that_the_client_has_not_seen_is_not_replaced(client: TestClient) -> None:
    assert client.post("/v1/inspect", content=draw_numbered(1)).status_code == 200

    def save_over(replaces: int, verdict: str) -> Any:
        body = VERDICT | {"verdict": verdict}
        return client.put(f"/v1/verdicts/{get_digest(1)}", json=body, params={"replaces": replaces})

    first = save_over(0, "agree").json()
    assert save_over(0, "missed").status_code == 412
    assert save_over(first["revision"] + 1, "missed").status_code == 412
    second = save_over(first["revision"], "missed").json()
    assert second["revision"] > first["revision"]
    assert delete(client, 1, replaces=first["revision"]) == 412
    assert delete(client, 1, replaces=second["revision"]) == 204
    assert save_over(second["revision"], "agree").status_code == 412
    assert save_over(0, "agree").status_code == 200


def test_the_history_keeps_replaced_and_deleted_verdicts(client: TestClient) -> None:
    save(client, 1, verdict="agree", inspector="K. L.", comment="scale, not a scratch")
    save(client, 2, verdict="agree")
    save(client, 1, verdict="missed", inspector="M. N.", **{"class": "scratch"})
    delete(client, 1, inspector="O. P.")
    entries = client.get(f"/v1/verdicts/{get_digest(1)}").json()["entries"]
    assert [(entry["verdict"], entry["class"], entry["inspector"], entry["comment"]) for entry in entries] == [
        (None, "scratch", "O. P.", ""),
        ("missed", "scratch", "M. N.", ""),
        ("agree", None, "K. L.", "scale, not a scratch"),
    ]
    assert client.get(f"/v1/verdicts/{get_digest(3)}").json() == {"entries": []}
    assert [entry["image"] for entry in client.get("/v1/verdicts").json()["verdicts"]] == ["2.png"]
    save(client, 4, verdict="agree", image="1.png")  # the name of a deleted verdict is free again


def test_marks_of_a_missed_defect_are_added_to_the_label(client: TestClient) -> None:
    marks = {"scratch": "101 3 200 1"}
    assert save(client, 1, verdict="missed", marks=marks, comment="=1+1").json()["marks"] == {"scale": ""} | marks
    archive = zipfile.ZipFile(io.BytesIO(client.get("/v1/labels.zip").content))
    rows = archive.read("train.csv").decode().splitlines()[1:]
    assert rows == ["1.png_1,5 3", "1.png_2,100 4 200 1"]
    assert archive.read("to_label.csv").decode().splitlines() == ["ImageId,ClassId"]
    assert client.get("/v1/verdicts.csv").text.splitlines()[1].endswith(",'=1+1")


def test_a_file_of_an_earlier_version_opens_with_its_verdicts(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    with sqlite3.connect(path) as earlier:
        earlier.executescript(f"""
            PRAGMA application_id={0x57EE1};
            CREATE TABLE verdicts (
                digest TEXT PRIMARY KEY, image TEXT NOT NULL UNIQUE, verdict TEXT NOT NULL, class TEXT,
                defective INTEGER NOT NULL, inspector TEXT NOT NULL, at TEXT NOT NULL, codes TEXT NOT NULL
            ) STRICT;
            CREATE INDEX verdicts_at ON verdicts (at);
            CREATE TABLE classes (number INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
            INSERT INTO classes VALUES (1, 'scale'), (2, 'scratch');
        """)
        rows = [
            (get_digest(1), "1.png", "agree", None, 1, "K. L.", "2026-01-02T03:04:05+00:00", json.dumps(["5 3", ""])),
            (get_digest(2), "2.png", "missed", "scratch", 0, "", "2026-01-01T03:04:05+00:00", json.dumps(["", ""])),
        ]
        earlier.executemany("INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    earlier.close()
    for _ in range(2):  # converted once
        with open_client(build_app(build_desk(tmp_path))) as client:
            assert client.get("/v1/verdicts.csv").text.splitlines()[1:] == [
                f"2.png,0,missed,scratch,,2026-01-01T03:04:05+00:00,{get_digest(2)},",
                f"1.png,1,agree,,K. L.,2026-01-02T03:04:05+00:00,{get_digest(1)},",
            ]
            archive = zipfile.ZipFile(io.BytesIO(client.get("/v1/labels.zip").content))
            assert archive.read("train.csv").decode().splitlines()[1:] == ["1.png_1,5 3", "1.png_2,"]
            assert archive.read("to_label.csv").decode().splitlines()[1:] == ["2.png,2"]
            (entry,) = client.get(f"/v1/verdicts/{get_digest(1)}").json()["entries"]
            assert entry["marks"] == {}
    assert save_in(tmp_path, entry["revision"]) == 200


def save_in(folder: Path, replaces: int) -> int:
    with open_client(build_app(build_desk(folder))) as client:
        client.post("/v1/inspect", content=draw_numbered(1))
        body = VERDICT | {"image": "1.png", "verdict": "false_alarm"}
        return client.put(f"/v1/verdicts/{get_digest(1)}", json=body, params={"replaces": replaces}).status_code


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
        {"verdict": "agree", "marks": {"scale": "5 3"}},  # only a missed defect is marked
        {"verdict": "missed", "marks": {"scale": "6144 2"}},
        {"verdict": "missed", "marks": {"rust": "5 3"}},
        {"verdict": "agree", "comment": "x" * 501},
        {"verdict": "agree", "comment": "two\nlines"},
        {"verdict": "agree", "image": "."},
        {"verdict": "agree", "image": ".."},
        {"verdict": "agree", "image": "gpj.\u202ea.png"},  # shown as "gnp.a.jpg"
        {"verdict": "agree", "inspector": "\u2066K. L."},
        {"verdict": "agree", "size": [True, True]},
        {"verdict": "agree", "size": [64.0, "96"]},
        {"verdict": "agree", "defective": 1},
        {"verdict": "agree", "defective": False},  # but it has codes
        {"verdict": "agree", "codes": {"scale": "1 1 " * 260_000}},
    ],
)
def test_invalid_verdicts_are_refused(client: TestClient, changes: dict[str, Any]) -> None:
    answer = save(client, 1, **changes)
    assert answer.status_code == 422, answer.text
    assert client.get("/v1/verdicts").json()["verdicts"] == []


@pytest.mark.parametrize("name", [None, "", " ", "\u00a0"])
def test_a_verdict_needs_the_name_of_an_inspector(client: TestClient, name: str | None) -> None:
    named = {} if name is None else {"inspector": name}
    question = {key: value for key, value in VERDICT.items() if key != "inspector"} | {"verdict": "agree"} | named
    assert save(client, 1, verdict="agree").status_code == 200
    address = f"/v1/verdicts/{get_digest(1)}"
    for answer in (client.put(address, json=question), client.delete(address, params=named)):
        assert answer.status_code == 422
        assert "inspector" in answer.json()["detail"]
    (entry,) = client.get(address).json()["entries"]
    assert entry["inspector"] == "M. N."


@pytest.mark.parametrize("name", [".a", "a.", "ä b.png", "\u0646\u200c\u0645.png"])
def test_unusual_names_are_accepted(client: TestClient, name: str) -> None:
    assert save(client, 1, verdict="agree", image=name).status_code == 200


def test_verdicts_on_images_that_were_not_inspected_are_refused(client: TestClient) -> None:
    verdict = VERDICT | {"verdict": "agree"}
    for digest, changes in ((get_digest(1), {}), (get_digest(2), {"size": [96, 64]})):
        assert client.post("/v1/inspect", content=draw_numbered(2)).status_code == 200
        answer = client.put(f"/v1/verdicts/{digest}", json=verdict | changes)
        assert answer.status_code == 404
        assert "inspect it first" in answer.json()["detail"]
    assert client.get("/v1/verdicts").json()["verdicts"] == []


def test_the_latest_verdict_is_first_after_the_clock_was_set_back(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    clock = [now, now + timedelta(hours=3), now - timedelta(hours=2)]
    for number, time in enumerate(clock):
        monkeypatch.setattr(verdicts, "_format_now", lambda time=time: time.isoformat(timespec="seconds"))
        assert save(client, number, verdict="agree").status_code == 200
    assert save(client, 0, verdict="missed").status_code == 200
    assert [entry["image"] for entry in client.get("/v1/verdicts").json()["verdicts"]] == ["0.png", "2.png", "1.png"]
    lines = client.get("/v1/verdicts.csv").text.splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == ["1.png", "2.png", "0.png"]
    history = client.get(f"/v1/verdicts/{get_digest(0)}").json()["entries"]
    assert [entry["verdict"] for entry in history] == ["missed", "agree"]


@pytest.mark.parametrize("start", "=+-@")
def test_formulas_in_csv_cells_are_escaped(client: TestClient, tmp_path: Path, start: str) -> None:
    from steel.data.annotations import read_annotations

    name = f"{start}HYPERLINK(1).png"
    save(client, 1, verdict="agree", image=name)
    save(client, 2, verdict="missed", image=f"{start}2.png")
    lines = client.get("/v1/verdicts.csv").text.splitlines()
    assert {line.split(",")[0] for line in lines[1:]} == {f"'{name}", f"'{start}2.png"}
    root = tmp_path / "data"
    zipfile.ZipFile(io.BytesIO(client.get("/v1/labels.zip").content)).extractall(root)
    assert (root / "to_label.csv").read_text().splitlines()[1] == f"'{start}2.png,"
    assert (root / "train.csv").read_text().splitlines()[1] == f"'{name}_1,5 3"
    (root / "train_images").mkdir()
    (root / "train_images" / name).write_bytes(draw_numbered(1))
    assert read_annotations(root).labels.tolist() == [[True, True]]


FULL_DISK = """
import os, sqlite3, sys
from pathlib import Path
from steel.desk import verdicts
from steel.desk.answers import VerdictQuestion
from steel.desk.verdicts import Verdicts

folder = Path(sys.argv[1])
verdicts = Verdicts(folder / "v.sqlite", ["a"])

def save(i):
    question = {
        "image": f"{i}.png", "size": [64, 96], "verdict": "agree", "defective": True, "codes": {"a": "5 3"},
        "inspector": "K. L.",
    }
    verdicts.save(f"{i:064x}", VerdictQuestion.model_validate(question))

for i in range(10):
    save(i)
other = os.open(folder / "other", os.O_CREAT | os.O_WRONLY)
try:
    while True:
        os.write(other, bytes(1024))
except OSError:
    pass
try:
    for i in range(10, 1000):
        save(i)
except sqlite3.OperationalError:
    print("full")
for i in range(10):
    assert verdicts.delete(f"{i:064x}", "K. L.")
verdicts.close()
print("deleted")
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a file system of its own")
def test_verdicts_can_be_deleted_on_a_full_disk(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=3m tmpfs {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a file system")
    command = f'{mount} && exec "$0" -c "$1" {tmp_path}'
    run = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, sys.executable, FULL_DISK], capture_output=True, text=True, check=False
    )
    assert run.stdout.split() == ["full", "deleted"], run.stderr


def test_verdicts_survive_a_restart(tmp_path: Path) -> None:
    for counts in ({"agree": 0}, {"agree": 1}):
        with open_client(build_app(build_desk(tmp_path))) as client:
            assert client.get("/v1/verdicts").json()["counts"].items() >= counts.items()
            save(client, 1, verdict="agree")


def test_a_file_with_verdicts_on_other_classes_is_refused(tmp_path: Path) -> None:
    """Labels written from it would have other classes than the inspector meant."""
    path = tmp_path / "verdicts.sqlite"
    Verdicts(path, ["other"]).close()  # no verdicts yet, so other classes may take over
    kept = Verdicts(path, CLASSES)
    verdict = VERDICT | {"verdict": "agree", "codes": {"scale": "1 2"}}
    kept.save("0" * 64, VerdictQuestion.model_validate(verdict))
    kept.close()
    with pytest.raises(InputError, match=r"classes scale, scratch, but .* scratch, scale; .*--verdicts"):
        Verdicts(path, CLASSES[::-1])
    again = Verdicts(path, CLASSES)
    assert "a.png" in again.format_csv()
    again.close()
