"""`steel serve`: the inspection desk as a process of the line's computer."""

import os
import socket
from dataclasses import replace
from ipaddress import ip_address

from steel.decision import bundle
from steel.devices import choose_device, prepare_process
from steel.errors import InputError, require_at_least
from steel.inspection.records import tell_apart

try:
    import uvicorn
    from starlette.types import ASGIApp

    from steel.desk.desk import Desk, Limits
    from steel.desk.guard import build_protocol
    from steel.desk.service import build_app
    from steel.desk.verdicts import Verdicts
except ModuleNotFoundError as missing:
    raise InputError(f"serving needs {missing.name}; pip install 'steel-inspector[serve]'") from missing


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
) -> None:
    """Serves an exported file over HTTP, with a page for the people at the line.

    The page is at /, what programs can ask at /docs. Where the environment variable STEEL_TOKEN is set, who asks has to
    send it. SIGTERM or Ctrl-C stops the service after it has answered what it took.

    Args:
        model: File that `steel export` wrote.
        host: Address to listen on; any but this machine's own needs STEEL_TOKEN.
        port: Port to listen on; 0 takes a free one.
        insecure: Listen on another address without a token.
        mm_per_pixel: Side of a pixel in millimetres, for areas in mm².
        verdicts: SQLite file for what inspectors say of images; made where it is not there.
        max_images: Images in one request.
        max_megabytes: Size of one request.
        max_megapixels: Size of one image.
        timeout: Seconds in which a request has to be here, and then its answer.
        queue: Images that may be on their way at once; beyond that, clients are told to come again.
        wait_ms: Milliseconds that an image waits for others to share a batch with.
        batch_size: Images that the networks see at once.
        device: Where to run: auto, cpu, cuda or cuda:1.

    Example:
        steel serve inspector.pt --mm_per_pixel 0.5
    """
    require_at_least(1, batch_size=batch_size, max_images=max_images)
    require_at_least(max_images, queue=queue)
    for name, value in (("max_megabytes", max_megabytes), ("max_megapixels", max_megapixels), ("timeout", timeout)):
        if not 0 < value < float("inf"):
            raise InputError(f"{name} is above 0, but {value} came")
    if mm_per_pixel is not None and not 0 < mm_per_pixel < float("inf"):
        raise InputError(f"mm_per_pixel is above 0, but {mm_per_pixel} came")
    token = os.environ.get("STEEL_TOKEN") or None
    is_own = _is_own(host)
    if not (is_own or token or insecure):
        raise InputError(
            f"whoever reaches {host} could ask; set the environment variable STEEL_TOKEN to a secret, or say --insecure"
        )
    where = choose_device(device)
    prepare_process(where)
    module, about = bundle.read(model, where)
    about = replace(about, classes=tuple(tell_apart(about.classes)))
    limits = Limits(max_images, int(max_megapixels * 1e6), int(max_megabytes * 1e6), timeout)
    with _listen(host, port) as listening:
        kept = Verdicts(verdicts, about.classes)
        desk = Desk(module, about, kept, where, limits, mm_per_pixel, batch_size, wait_ms / 1000, queue)
        app = build_app(desk, token, is_local=is_own and token is None and not insecure)
        address = f"[{host}]" if ":" in host else host
        print(f"the inspection desk is at http://{address}:{listening.getsockname()[1]}; Ctrl-C closes it", flush=True)
        build_server(app, timeout).run(sockets=[listening])


def build_server(app: ASGIApp, timeout: float) -> uvicorn.Server:
    """Uvicorn, so that it bears slow clients and stops when it has answered.

    Args:
        app: From `build_app`.
        timeout: Seconds for the headers of a request; twice that is left for what is being answered at the end.
    """
    config = uvicorn.Config(
        app,
        http=build_protocol(timeout),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=512,  # below the 1,024 files that a process may usually open
        timeout_graceful_shutdown=int(2 * timeout) + 1,
    )
    return uvicorn.Server(config)


def _is_own(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:
        raise InputError(f"a port is 0 to 65535, but {port} came")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=512)
    except OSError as error:
        raise InputError(f"cannot listen on {host}, port {port} ({error.strerror}); name others") from error
