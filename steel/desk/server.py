"""`steel serve`: the inspection desk as an HTTP service."""

import os
import socket
from dataclasses import replace
from pathlib import Path

from steel.decision import bundle
from steel.devices import choose_device, prepare_process
from steel.errors import InputError, require_at_least, require_positive
from steel.inspection.card import format_card
from steel.inspection.records import unique_class_names

try:
    import uvicorn
    from starlette.types import ASGIApp

    from steel.desk.batching import Batcher
    from steel.desk.desk import Desk, Limits
    from steel.desk.guard import is_loopback
    from steel.desk.service import build_app
    from steel.desk.verdicts import Verdicts
except ModuleNotFoundError as missing:
    raise InputError(
        f"steel serve needs {missing.name}; install it with pip install '.[serve]' in the folder of steel"
    ) from missing


def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    insecure: bool = False,
    mm_per_pixel: float | None = None,
    verdicts: str = "verdicts.sqlite",
    max_images: int = 16,
    max_megabytes: float = 32,
    max_megapixels: float = 4,
    timeout: float = 30,
    queue: int = 64,
    wait_ms: float = 5,
    batch_size: int = 8,
    device: str = "auto",
    digest: str | None = None,
) -> None:
    """Serve an exported file over HTTP, with a web page for the inspectors at the line.

    An exported file contains code. Use only files from sources that you trust, and pass their SHA-256 as --digest.
    The page is at /, and the documentation of the HTTP API at /docs. If the environment variable STEEL_TOKEN is set,
    clients must send it. SIGTERM or Ctrl-C stops the service after it has answered all accepted requests.

    Args:
        model: File written by `steel export`.
        host: Address to listen on; any address other than this machine's own requires STEEL_TOKEN.
        port: Port to listen on; 0 chooses a free port.
        insecure: Listen on another address without a token.
        mm_per_pixel: Side of a pixel in millimetres, for areas in mm².
        verdicts: SQLite file for the inspectors' verdicts; created if it does not exist.
        max_images: Largest number of images per request.
        max_megabytes: Largest size of a request.
        max_megapixels: Largest size of an image.
        timeout: Time limit in seconds for receiving a request, and again for answering it.
        queue: Largest number of images waiting or being inspected; further requests are told to try again.
        wait_ms: Longest time in milliseconds that an image waits to share a batch with others.
        batch_size: Number of images that the networks process at once.
        device: Device to run on: auto, cpu, cuda or cuda:1.
        digest: SHA-256 of the model, as `steel export` prints it; another file is refused.

    Raises:
        InputError: An option is invalid, a file cannot be used, or the address cannot be listened on.

    Example:
        steel serve inspector.pt --mm_per_pixel 0.5
    """
    require_at_least(1, batch_size=batch_size, max_images=max_images)
    require_at_least(max_images, queue=queue)
    require_positive(max_megabytes=max_megabytes, max_megapixels=max_megapixels)
    require_positive(timeout=timeout, mm_per_pixel=mm_per_pixel)
    if not 0 <= wait_ms <= 1000 * timeout:
        raise InputError(f"wait_ms must be between 0 and the timeout ({1000 * timeout:g} ms), got {wait_ms}")
    token = _read_token()
    is_local = is_loopback(host)
    if not (is_local or token or insecure):
        raise InputError(f"anyone could connect to {host}; set the environment variable STEEL_TOKEN or give --insecure")
    torch_device = choose_device(device)
    prepare_process(torch_device)
    module, about = bundle.read(model, torch_device, digest)
    about = replace(about, classes=tuple(unique_class_names(about.classes)))
    with _listen(host, port) as listener:
        kept = Verdicts(verdicts, about.classes)
        batcher = Batcher(module, device=torch_device, batch_size=batch_size, max_wait=wait_ms / 1000, queue_size=queue)
        limits = Limits(max_images, int(max_megapixels * 1e6), int(max_megabytes * 1e6), timeout)
        card = format_card(Path(model), about)
        desk = Desk(batcher, about, kept, limits, mm_per_pixel=mm_per_pixel, card=card)
        app = build_app(desk, token, is_local=is_local and token is None and not insecure)
        address = f"[{host}]" if ":" in host else host
        print(f"inspection desk at http://{address}:{listener.getsockname()[1]}; press Ctrl-C to stop")
        print(f"{model}: SHA-256 {about.sha256}", flush=True)
        build_server(app, timeout).run(sockets=[listener])


def build_server(app: ASGIApp, timeout: float) -> uvicorn.Server:
    """Return a uvicorn server with bounded resources and a graceful shutdown.

    Uvicorn does not limit the time for request headers. A client that sends them slowly holds one of 512 connections
    but does not delay other clients; a reverse proxy keeps it away.

    Args:
        app: Application from `build_app`.
        timeout: Time limit of a request in seconds; a shutdown waits at most twice that for open requests.
    """
    config = uvicorn.Config(
        app,
        http="h11",  # httptools does not limit the size of headers
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=512,  # a process may usually open 1,024 files; further connections get 503
        timeout_graceful_shutdown=int(2 * timeout) + 1,
    )
    return uvicorn.Server(config)


def _read_token() -> str | None:
    """Return the token in the environment, without the blanks at its ends, which HTTP does not transmit."""
    if (value := os.environ.get("STEEL_TOKEN")) is None or not value:
        return None
    if not (token := value.strip()) or not token.isprintable():
        raise InputError("STEEL_TOKEN must be printable characters, got blanks or control characters; set another one")
    return token


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:
        raise InputError(f"port must be in 0 to 65535, got {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=512)
    except (OSError, UnicodeError) as error:  # the latter if the name cannot be a host's
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot listen on {host}:{port} ({reason}); change --host or --port") from error
