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
