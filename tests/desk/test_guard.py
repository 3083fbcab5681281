"""The guard: token, host names, cross-site requests and security headers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from served import build_desk, draw, encode, open_client
from steel.desk.service import build_app


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with open_client(build_app(build_desk(tmp_path))) as client:
        yield client


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
        ("127.0.0.2:8000", 200),
        ("10.0.0.1:8000", 421),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:80", 421),
        ("", 421),
    ],
)
def test_requests_for_other_hosts_and_from_other_sites_are_refused(client: TestClient, host: str, status: int) -> None:
    assert client.get("/v1/model", headers={"Host": host}).status_code == status
    assert client.get("/v1/model", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_a_link_from_another_site_opens_the_page_and_nothing_else(client: TestClient) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.get("/", headers=link).status_code == 200
    assert client.get("/docs", headers=link).status_code == 200
    for path, change in (
        ("/v1/verdicts.csv", {}), ("/page/page.js", {}), ("/", {"Sec-Fetch-Dest": "iframe"}),
        ("/", {"Sec-Fetch-Mode": "no-cors"}),
    ):  # fmt: skip
        assert client.get(path, headers=link | change).status_code == 403
    assert client.post("/", headers=link).status_code == 403


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000", 404),
        ("localhost", "http://localhost", 404),
        ("localhost:80", "http://localhost", 404),
        ("127.0.0.1:8000", "http://127.0.0.1:3000", 403),  # another service of this machine
        ("127.0.0.1:8000", "http://localhost:8000", 403),
        ("127.0.0.1:8000", "https://evil.example", 403),
        ("127.0.0.1:8000", "null", 403),
        ("127.0.0.1:8000", "http://[", 403),
    ],
)
def test_requests_that_change_something_must_come_from_the_page(
    client: TestClient, host: str, origin: str, status: int
) -> None:
    path, headers = f"/v1/verdicts/{'0' * 64}", {"Host": host, "Origin": origin}
    assert client.delete(path, headers=headers, params={"inspector": "K. L."}).status_code == status
    assert client.get("/v1/verdicts", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/page/page.js", "/v1/model", "/made/up", "/metrics"])
def test_every_response_has_security_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
