"""Processes that decode: their answers, and that one that hangs or crashes costs only its own file."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hostile import draw_scans
from served import build_desk, draw, encode, open_client
from steel.desk.decoders import Decoders
from steel.desk.desk import Limits
from steel.desk.errors import ImageTooLargeError, InvalidRequestError, QueueFullError, UnsupportedImageError
from steel.desk.service import build_app


def list_pids(decoders: Decoders) -> list[int]:
    return [decoder._process.pid or 0 for decoder in decoders._decoders]


def wait_for_start(decoders: Decoders) -> None:
    """Wait until each process has reported that it is up; a process that is stopped before that would not be timed."""
    assert all(decoder._pipe.poll(60) for decoder in decoders._decoders)


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    decoders = Decoders(max_pixels=64 * 96, seconds=2)
    yield decoders
    decoders.close()


def test_images_and_refusals_are_passed_on(decoders: Decoders) -> None:
    image = draw(95, [(10, 8, 12, 5, 255)])
    np.testing.assert_array_equal(asyncio.run(decoders.decode(encode(image))), image)
    for kind, data in (
        (UnsupportedImageError, b"GIF89a"),
        (ImageTooLargeError, encode(draw(size=(65, 96)))),
        (InvalidRequestError, encode(image)[:60]),
        (InvalidRequestError, draw_scans(101, (64, 96), 1)),
    ):
        with pytest.raises(kind, match="image"):
            asyncio.run(decoders.decode(data))


@pytest.mark.parametrize("num_bytes", [100, 4 << 20])
def test_a_decoder_that_stops_reading_does_not_block_the_service(decoders: Decoders, num_bytes: int) -> None:
    """More than fits into a pipe cannot be sent to a process that does not read."""
    asyncio.run(decoders.decode(encode(draw())))
    for decoder in decoders._decoders:
        assert decoder._is_up or decoder._pipe.poll(60)
        os.kill(decoder._process.pid or 0, signal.SIGSTOP)
    with pytest.raises(InvalidRequestError, match="more than 2 seconds"):
        asyncio.run(decoders.decode(bytes(num_bytes)))


def test_a_decoder_that_never_starts_is_replaced(decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped before its first message, as by a computer that has run out of memory."""
    stuck = decoders._decoders[0]
    os.kill(stuck._process.pid or 0, signal.SIGSTOP)
    while stuck._pipe.poll():
        stuck._pipe.recv_bytes()
    monkeypatch.setattr("steel.desk.decoders._START_SECONDS", 0.5)
    with pytest.raises(QueueFullError):
        stuck.decode(encode(draw()))
    monkeypatch.undo()
    assert stuck.decode(encode(draw())).shape == (64, 96)


@pytest.mark.parametrize(("blow", "reason"), [(signal.SIGSTOP, "more than 2 seconds"), (signal.SIGKILL, "crash")])
def test_a_decoder_that_hangs_or_crashes_is_replaced(decoders: Decoders, blow: int, reason: str) -> None:
    before = list_pids(decoders)
    wait_for_start(decoders)
    for pid in before:
        os.kill(pid, blow)

    async def send_all() -> list[object]:
        files = (decoders.decode(encode(draw(i))) for i in range(2 * len(before)))
        return await asyncio.gather(*files, return_exceptions=True)

    answers = asyncio.run(send_all())
    failures = [answer for answer in answers if isinstance(answer, InvalidRequestError)]
    assert len(failures) == len(before)  # the others were decoded afterwards
    assert all(reason in str(failure) for failure in failures)
    assert not {*before} & {*list_pids(decoders)}
    for pid in before:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_ctrl_c_and_sigterm_end_the_service_before_its_decoders(decoders: Decoders) -> None:
    """Both signals reach all processes of a terminal or a systemd unit, while accepted images wait to be decoded."""
    asyncio.run(decoders.decode(encode(draw())))
    before = list_pids(decoders)
    for pid in before:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert asyncio.run(decoders.decode(encode(draw()))).shape == (64, 96)
    assert list_pids(decoders) == before


def test_readiness_is_refused_while_slow_files_occupy_all_decoders(tmp_path: Path) -> None:
    desk = build_desk(tmp_path, limits=Limits(decode_seconds=4))
    pids = list_pids(desk._decoders)
    wait_for_start(desk._decoders)
    with open_client(build_app(desk)) as client, ThreadPoolExecutor(len(pids)) as clients:
        assert client.get("/readyz").status_code == 200
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        post = lambda i: client.post("/v1/inspect", content=encode(draw(i))).status_code  # noqa: E731
        slow = [clients.submit(post, i) for i in range(len(pids))]
        seen = set()
        while not all(answer.done() for answer in slow):
            seen.add(client.get("/readyz").status_code)
            time.sleep(0.05)
        assert seen == {200, 503}
        assert [answer.result() for answer in slow] == [422] * len(pids)
        assert client.get("/readyz").status_code == 200
        assert post(95) == 200


def test_readiness_is_refused_while_the_inspector_is_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, unblock = build_desk(tmp_path, limits=Limits(timeout=2)), threading.Event()
    resolve = desk.batcher._resolve
    monkeypatch.setattr(desk.batcher, "_resolve", lambda jobs: unblock.wait(20) and resolve(jobs))
    with open_client(build_app(desk)) as client:

        def wait_for(status: int) -> None:
            for _ in range(200):
                if client.get("/readyz").status_code == status:
                    return
                time.sleep(0.05)
            pytest.fail(f"/readyz does not answer {status}")

        assert client.post("/v1/inspect", content=encode(draw())).status_code == 503
        wait_for(503)
        unblock.set()
        wait_for(200)
        assert client.post("/v1/inspect", content=encode(draw())).status_code == 200
