"""`steel serve` over real sockets: its options, malformed and hostile requests, load, and shutdown."""

import gc
import json
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
import torch
from starlette.types import Receive, Scope, Send

from hostile import draw_scans, pack_tiff
from served import build_desk, draw, encode, open_desk, open_server, write_inspector
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.inspector import Inspector
from steel.decision.point import OperatingPoint
from steel.desk import server
from steel.desk.batching import _Job
from steel.desk.desk import Limits
from steel.desk.service import build_app
from steel.training.tasks import DefectClassifier, DefectSegmenter

TOKEN = "secret"
SLOW = Limits(timeout=200)  # for a busy machine


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 8, 0, 0, 0, 0, 0, 0)


def list_bodies() -> Iterator[bytes]:
    """Yield files that are not valid images; many have the signature of one."""
    rng = np.random.default_rng(0)
    good = {suffix: encode(draw(95, [(10, 8, 12, 5, 255)]), suffix) for suffix in (".jpg", ".png", ".bmp", ".tif")}
    for suffix, data in good.items():
        for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9):
            cut = data[: max(4, int(share * len(data)))]
            yield cut
            if suffix in (".jpg", ".png"):
                yield cut[:8] + rng.bytes(len(cut))
    for start in (
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"BM",
        b"II*\0",
        b"MM\0*",
        b"GIF89a",
        b"RIFF0000WEBPVP8 ",
        b"%PDF-1.7",
        b"PK\3\4",
        b"\x7fELF",
        b"<svg onload=alert(1)>",
        b"<?xml version='1.0'?><!DOCTYPE x SYSTEM 'file:///etc/passwd'>",
        b"\x76\x2f\x31\x01",
        b"#?RADIANCE",
        b"P5 9999 9999 255\n",
        b"\0\0\0\x0cjP  ",
        b"\x59\xa6\x6a\x95",
    ):
        yield start
        yield start + rng.bytes(500)
        yield start + bytes(5000)
    for width, height in (
        (2**31 - 1, 2**31 - 1),
        (65_500, 65_500),
        (30_000, 30_000),
        (0, 5),
        (5, 0),
        (2**31, 1),
        (3000, 3000),
    ):
        yield png(width, height)
        yield png(width, height, bytes(100_000))
        yield bmp(min(width, 2**31 - 1), min(height, 2**31 - 1))
    yield bmp(-5, 5)
    yield bmp(5, -(2**31))
    yield good[".png"][:40] + good[".jpg"]  # two formats in one
    yield good[".png"].replace(b"IHDR", b"IHDX")
    yield png(10, 10, bytes(3))  # fewer pixels than the header states
    yield encode(np.zeros((8, 8), np.uint16))  # 16 bits
    yield draw_scans(101, num_components=1)
    yield b"\xff\xd8" + b"\xff\xe0\0\2" * 100_000
    yield pack_tiff((500, 500), 32773, [(0, 1000)] * 500, bytes(1000), rows=1)
    yield b""
    yield b"../../../../etc/passwd"


def list_requests() -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    """Yield method, path, headers and body of requests that must be refused."""
    form = "multipart/form-data; boundary=x"
    for body in list_bodies():
        yield "POST", "/v1/inspect", {}, body
    for body in (
        b"",
        b"--x",
        b"--x--",
        b"--x\r\n\r\n\r\n--x--",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\ntext\r\n--x--',
        b'--x\r\nContent-Disposition: form-data; name="a"; filename="../../etc/passwd"\r\n\r\nroot\r\n--x--',
        b'--x\r\nContent-Disposition: form-data; name="a"; filename="\xff\xfe"\r\n\r\nroot\r\n--x--',
        b'--x\r\nContent-Disposition: form-data; filename="a"\r\n\r\nroot\r\n--x--',
        b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n\r\n' * 50 + b"--x--",
        b"--x\r\n" + b"A: b\r\n" * 5000 + b"\r\n\r\n--x--",
    ):
        for kind in (
            form,
            "multipart/form-data",
            "multipart/form-data; boundary=" + "y" * 300,
            form + "; charset=klingon",
        ):
            yield "POST", "/v1/inspect", {"Content-Type": kind}, body
    for path in (
        "/page/..%2f..%2fserver.py",
        "/page/%2e%2e/server.py",
        "/page//etc/passwd",
        "/page/page.js%00",
        "/etc/passwd",
        "/..//..//etc/passwd",
        "/v1",
        "/v1/",
        "/v1/inspect/",
        "/V1/MODEL",
        "/%ff%fe",
        "/page/inspector.pt",
        "/docs/x",
    ):
        yield "GET", path, {}, b""
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "GET"):
        yield method, "/v1/inspect", {}, b""
    for query in (
        "gate=nan",
        "gate=inf",
        "gate=-1",
        "gate=1e999",
        "label=1",
        "label=&label=",
        "overlay=../../x",
        "overlay=png&overlay=gif",
        "gate=%00",
        "label=" + "9" * 5000,
        "name=" + "a" * 300,
    ):
        yield "POST", f"/v1/inspect?{query}", {}, encode(draw())
    digest = "0" * 64
    for path in ("x", "0" * 63, "0" * 65, "G" * 64, "..%2f", "%00" * 64, digest + "%0a"):
        yield "DELETE", f"/v1/verdicts/{path}", {}, b""
    good = {"image": "a.png", "size": [4, 4], "verdict": "agree", "defective": True, "codes": {}, "inspector": "K. L."}
    for change in (
        {"image": "../a"},
        {"image": "a" * 256},
        {"image": 5},
        {"image": None},
        {"image": "\ud800"},
        {"size": [4]},
        {"size": [-4, 4]},
        {"size": [10**30, 4]},
        {"size": "4x4"},
        {"verdict": "'; DROP TABLE verdicts; --"},
        {"defective": "maybe"},
        {"codes": {"scale": "1 -1"}},
        {"codes": {"scale": "9" * 400 + " 1"}},
        {"codes": {"scale": "1 1 1 1"}},
        {"codes": {"scale": "١ ٢"}},
        {"codes": {"__proto__": ""}},
        {"codes": []},
        {"class": "rust"},
        {"inspector": "x" * 81},
        {"inspector": "\0"},
        {"extra": 1},
    ):
        body = json.dumps(good | change).encode()
        yield "PUT", f"/v1/verdicts/{digest}", {"Content-Type": "application/json"}, body
    for body in (
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 100_000,
        b"\xff",
        b"NaN",
        b'{"size": [NaN, Infinity]}',
        b'{"a":' * 5000,
    ):
        yield "PUT", f"/v1/verdicts/{digest}", {"Content-Type": "application/json"}, body
    for hours in ("0", "-1", "nan", "inf", "1e300", "x"):
        yield "GET", f"/v1/verdicts?hours={hours}", {}, b""
    for token in (
        "",
        "Bearer",
        "Bearer wrong",
        f"Basic {TOKEN}",
        f"bearer {TOKEN}x",
        TOKEN,
        "Bearer " + "x" * 10_000,
    ):
        yield "GET", "/v1/model", {"Authorization": token}, b""


def send_raw(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send bytes over a socket and return the first answer; empty if the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except OSError:
            pass  # the server closed the connection, perhaps after an answer
        try:
            return connection.recv(65536)
        except ConnectionError:
            return b""


def send_image(port: int, image: bytes) -> socket.socket:
    """Send a whole request and return the connection, on which the answer arrives."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    head = b"POST /v1/inspect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(image)
    connection.sendall(head + image)
    return connection


@pytest.mark.slow
def test_hostile_requests_are_refused_and_do_not_affect_other_clients(tmp_path: Path) -> None:
    limits = Limits(max_images=4, max_pixels=1_000_000, max_bytes=1_000_000, timeout=2)
    with open_server(build_app(build_desk(tmp_path, limits=limits), TOKEN, is_local=False), timeout=2) as port:
        url, token = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {TOKEN}"}
        requests = list(list_requests())
        assert len(requests) >= 200
        with httpx.Client(base_url=url, timeout=10) as client:
            for method, path, headers, body in requests:
                began = time.monotonic()
                answer = client.request(method, path, headers=token | headers, content=body)
                assert 400 <= answer.status_code < 500 or answer.status_code == 503, (method, path, headers, body[:80])
                assert "Traceback" not in answer.text
                assert "/steel/" not in answer.text
                assert time.monotonic() - began < 5, (method, path, body[:80])
        head = b"POST /v1/inspect HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n"
        for parts, pause, status in (
            ([b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100_000 + b"\r\n\r\n"], 0, b"400|431"),
            ([b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 5_000_000 + b"\r\n\r\n"], 0, b"400"),
            ([b"NONSENSE\r\n\r\n"], 0, b"400"),
            ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], 0, b"400"),  # TLS
            ([head + b"Content-Length: 1000\r\n\r\nabc"], 0, b"408"),
            ([head + b"Content-Length: 1000\r\n\r\n", *[b"a"] * 30], 0.1, b"408"),
            ([head + b"Content-Length: 99999999999999\r\n\r\n"], 0, b"413"),
            ([head + b"Content-Length: -1\r\n\r\n"], 0, b"400"),
            ([head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde"], 0, b"400"),
            ([head + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFF\r\nabc"], 0, b"408"),
            ([head + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"], 0, b"400"),
        ):
            began = time.monotonic()
            answer = send_raw(port, *parts, pause=pause)
            assert re.match(rb"HTTP/1.1 (%s)" % status, answer), (parts[0][:80], answer[:80])
            assert time.monotonic() - began < 8
        # Clients that disconnect, send nothing, or send their headers slowly do not block other clients.
        connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(150)]
        for connection in connections[:50]:
            connection.sendall(head + b"Content-Length: 1000\r\n\r\nabc")
            connection.close()
        for connection in connections[100:]:
            connection.sendall(head)
        answer = httpx.post(f"{url}/v1/inspect", content=encode(draw(95, ((10, 8, 12, 5, 255),))), headers=token)
        assert answer.json()["images"][0]["defective"]
        # The server also stops, at the end of the `with`, while the slow clients are connected.
    for connection in connections[50:]:
        connection.close()


# Starlette before 1 leaves the file of an unfinished part to the garbage collector, of which Python 3.12 warns.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*SpooledTemporaryFile")
def test_a_client_that_hangs_up_in_its_body_is_no_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    form = b"Content-Type: multipart/form-data; boundary=x\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\nabc'
    starts = [
        (b"POST /v1/inspect HTTP/1.1\r\n", b"abc"),
        (b"POST /v1/inspect HTTP/1.1\r\n" + form, part),
        (b"PUT /v1/verdicts/" + b"0" * 64 + b" HTTP/1.1\r\nContent-Type: application/json\r\n", b'{"image": '),
    ]
    with open_server(build_app(build_desk(tmp_path))) as port:
        for start, body in starts * 5:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(start + b"Host: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n" + body)
        url = f"http://127.0.0.1:{port}"
        for _ in range(100):
            text = httpx.get(f"{url}/metrics").text
            counts = re.findall(r'^steel_requests_total{path="(/v1/\S+)",status="(\d+)"} (\S+)', text, re.MULTILINE)
            if sum(float(count) for *_, count in counts) == 15:
                break
            time.sleep(0.05)
        assert {(path, status) for path, status, _ in counts} == {
            ("/v1/inspect", "499"), ("/v1/verdicts/{digest}", "499"),
        }  # fmt: skip
        assert "steel_queue_images 0.0" in text
    assert "Traceback" not in capfd.readouterr().err


def test_images_of_clients_that_hang_up_free_their_places_and_are_not_computed(tmp_path: Path) -> None:
    desk = build_desk(tmp_path, limits=SLOW, queue_size=4)
    is_busy, unblock, sizes = threading.Event(), threading.Event(), list[int]()
    body = encode(draw(95))
    with open_server(build_app(desk)) as port, ThreadPoolExecutor(2) as clients:

        def wait_until_queued(num: int) -> None:
            for _ in range(5000):  # 100 seconds, for a busy machine
                if desk.batcher.num_reserved == num and len(desk.batcher._jobs) == num - 1:
                    return
                time.sleep(0.02)
            unblock.set()
            pytest.fail(f"{desk.batcher.num_reserved} places are taken, {len(desk.batcher._jobs)} images queued")

        def notice(num_images: int) -> None:
            sizes.append(num_images)
            is_busy.set()
            unblock.wait(SLOW.timeout)

        desk.batcher.on_batch = notice
        post = lambda: httpx.post(f"http://127.0.0.1:{port}/v1/inspect", content=body, timeout=SLOW.timeout)  # noqa: E731
        first = clients.submit(post)
        assert is_busy.wait(60)
        for _ in range(5):
            connections = [send_image(port, body) for _ in range(3)]
            wait_until_queued(4)
            for connection in connections:
                connection.close()
            wait_until_queued(1)
        last = clients.submit(post)
        wait_until_queued(2)
        unblock.set()
        assert (first.result().status_code, last.result().status_code) == (200, 200)
    assert sizes == [1, 1]


def test_clients_that_hung_up_while_the_service_was_busy_take_no_places(tmp_path: Path) -> None:
    """The service sees 100 requests at once, all of them abandoned, before the request of a client that waits."""
    app = build_app(build_desk(tmp_path, queue_size=20))
    is_busy = threading.Event()

    async def busy_app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == "/busy":
            is_busy.set()
            time.sleep(2)  # blocks the event loop
        await app(scope, receive, send)

    body = encode(draw(95))
    with open_server(busy_app) as port, ThreadPoolExecutor(2) as clients:
        busy = clients.submit(httpx.get, f"http://127.0.0.1:{port}/busy", timeout=60)
        assert is_busy.wait(30)
        for _ in range(100):
            send_image(port, body).close()
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/inspect", content=body, timeout=60)
        busy.result(60)
    assert answer.status_code == 200, answer.text


def measure_memory() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_sixteen_clients_get_their_own_answers_in_constant_memory(tmp_path: Path) -> None:
    """Every image has a spot of a different area, and one of three sizes."""
    num_clients, num_each = 16, 150
    sizes = [(32, 64), (48, 64), (32, 96)]
    memory: list[int] = []

    def ask(client_number: int) -> int:
        num_asked = 0
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            while num_asked < num_each:
                number = client_number * num_each + num_asked
                width, height = 1 + number % 50, 1 + number // 50 % 25
                image = draw(95, [(0, 0, width, height, 255)], sizes[number % 3])
                answer = client.post("/v1/inspect", content=encode(image), params={"name": str(number)})
                if answer.status_code == 503:
                    time.sleep(0.01)
                    continue
                assert answer.status_code == 200, answer.text
                (found,) = answer.json()["images"]
                assert found["name"] == str(number)
                assert found["size"] == list(image.shape)
                assert [spot["area_pixels"] for spot in found["spots"] if spot["class"] == "scale"] == [
                    int((image > 200).sum())
                ]
                num_asked += 1
                if client_number == 0 and num_asked % 30 == 0:
                    memory.append(measure_memory())
        return num_asked

    with open_server(build_app(build_desk(tmp_path))) as port:
        with ThreadPoolExecutor(num_clients) as clients:
            assert sum(clients.map(ask, range(num_clients))) == num_clients * num_each >= 2000
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    num_batches = float(re.search(r"^steel_batch_images_count (\S+)", text, re.MULTILINE)[1])
    assert num_batches < num_clients * num_each  # some images shared a batch
    # The first measurement, after a fifth of the requests, is past all one-time allocations.
    assert memory[-1] - memory[0] < 32e6, memory


def write_large_inspector(path: Path) -> Path:
    """Export the default networks, with random weights, so that every image is segmented."""
    networks = DefectClassifier(num_classes=2).network, DefectSegmenter(num_classes=2).network
    point = replace(OperatingPoint.untuned(2), gate=0.0, pixel=(0.99, 0.99))
    example = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 128, 256), np.uint8))
    program = bundle.Program(Inspector(*networks, point).eval(), example, tolerance=1e-3)
    bundle.write(program, About(("scale", "scratch"), point, versions={"steel": "0.1.0"}), path)
    return path


def count_images_held() -> int:
    """Return how many requested images are still referred to by anything, even in cycles."""
    # Not by the size of the process, which differs by more than all these images from one forward pass to the next.
    return sum(type(thing) is _Job for thing in gc.get_objects())  # isinstance would run code of lazy modules


@pytest.mark.slow
@pytest.mark.parametrize(("write", "num_each"), [(write_inspector, 40), (write_large_inspector, 2)])
def test_abandoned_requests_leave_nothing_behind_and_delay_no_others(
    tmp_path: Path, write: Callable[[Path], Path], num_each: int
) -> None:
    """Eight clients keep hanging up after 0 to 300 ms, while eight others each send `num_each` images."""
    desk = open_desk(write(tmp_path / "inspector.pt"), SLOW, queue_size=32)
    is_over, num_abandoned = threading.Event(), []
    body = encode(draw(95, [(10, 8, 12, 5, 255)], (128, 256)))

    def abandon(number: int) -> None:
        chance = random.Random(number)
        while not is_over.is_set():
            with send_image(port, body):
                time.sleep(chance.uniform(0, 0.3))
            num_abandoned.append(number)

    def ask(number: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SLOW.timeout) as client:
            for _ in range(num_each):
                answer = client.post("/v1/inspect", content=body)
                assert answer.status_code == 200, answer.text

    with open_server(build_app(desk)) as port, ThreadPoolExecutor(16) as clients:
        httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=60)
        abandoning = [clients.submit(abandon, number) for number in range(8)]
        try:
            for future in [clients.submit(ask, number) for number in range(8)]:
                future.result(300)
        finally:
            is_over.set()
        for future in abandoning:
            future.result(60)
        for _ in range(200):
            if desk.batcher.num_reserved == 0 and count_images_held() == 0:
                break
            time.sleep(0.1)
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
        assert httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=60).status_code == 200
    assert len(num_abandoned) >= 8
    assert "steel_queue_images 0.0" in text
    assert desk.batcher._jobs == []
    assert count_images_held() == 0
    counts = dict(re.findall(r'^steel_requests_total{path="/v1/inspect",status="(\d+)"} (\S+)', text, re.MULTILINE))
    assert set(counts) <= {"200", "499"}
    assert float(counts["200"]) >= 8 * num_each


@pytest.mark.slow
def test_sigterm_answers_accepted_requests(tmp_path: Path) -> None:
    model = write_inspector(tmp_path / "inspector.pt")
    command = [
        sys.executable,
        "-m",
        "steel",
        "serve",
        str(model),
        "--port=0",
        "--wait_ms=1500",
        f"--verdicts={tmp_path / 'v.sqlite'}",
    ]
    environment = {key: value for key, value in os.environ.items() if key != "STEEL_TOKEN"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as service:
        assert service.stdout is not None
        url = re.search(r"http://127\.0\.0\.1:\d+", service.stdout.readline())[0]
        answers: list[httpx.Response] = []
        asked = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/inspect", content=encode(draw(95)), timeout=30))
        )
        asked.start()
        for _ in range(200):
            if "steel_queue_images 1.0" in httpx.get(f"{url}/metrics", timeout=30).text:
                break
            time.sleep(0.005)
        service.send_signal(signal.SIGTERM)
        asked.join(30)
        assert service.wait(30) in (0, -signal.SIGTERM)
    assert answers[0].status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_invalid_options_end_with_one_sentence(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_inspector(tmp_path / "inspector.pt")
    monkeypatch.delenv("STEEL_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen on 127.0.0.1" in refused("serve", model, f"--port={taken.getsockname()[1]}")
    assert "STEEL_TOKEN" in refused("serve", model, "--host=0.0.0.0")
    for token in (" ", "a\nb"):
        monkeypatch.setenv("STEEL_TOKEN", token)
        assert "STEEL_TOKEN must be printable" in refused("serve", model, "--host=0.0.0.0")
    monkeypatch.setenv("STEEL_TOKEN", "secret \n")
    assert server._read_token() == "secret"
    monkeypatch.delenv("STEEL_TOKEN")
    assert re.search("queue.* 16.* 8", refused("serve", model, "--queue=8"))
    assert re.search("mm_per_pixel .*above 0 .*, got 0", refused("serve", model, "--mm_per_pixel=0"))
    assert re.search("port .*65535, got 70000", refused("serve", model, "--port=70000"))
    assert f"cannot listen on {'a' * 64}.com:0" in refused(
        "serve", model, f"--host={'a' * 64}.com", "--insecure", "--port=0"
    )
    for name in ("timeout", "mm_per_pixel", "max_megabytes", "max_megapixels"):
        for number in (-1.0, 1e10):
            assert f"{name} must be a number above 0 and at most 1e9, got {number}" in refused(
                "serve", model, f"--{name}={number}"
            )
    for number in (-1.0, 30_001.0):
        assert f"wait_ms must be between 0 and the timeout (30000 ms), got {number}" in refused(
            "serve", model, f"--wait_ms={number}"
        )
    (tmp_path / "other.sqlite").write_text("a text file that is longer than the header of a database" * 9)
    assert "other.sqlite" in refused("serve", model, "--port=0", f"--verdicts={tmp_path / 'other.sqlite'}")
