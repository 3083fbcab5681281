"""The HTTP API of the desk: routes, OpenAPI schema, and the translation of errors to statuses."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Annotated, Any, TypeVar

import cv2
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import UploadFile
from starlette.types import ASGIApp

from steel.desk import answers, errors
from steel.desk.desk import Desk, Inspected, Upload
from steel.desk.guard import Guard, hung_up
from steel.inspection.pipeline import draw_decision
from steel.pages import POLICY
from steel.versions import read_version

_Result = TypeVar("_Result")
# Attempts to reserve places in a full queue, and the seconds between them.
_NUM_TRIES, _TRY_SECONDS = 10, 0.03
_STATUSES: dict[type[errors.DeskError], int] = {
    errors.NotInspectedError: 404,
    errors.NameTakenError: 409,
    errors.VerdictChangedError: 412,
    errors.ImageTooLargeError: 413,
    errors.UnsupportedImageError: 415,
    errors.InvalidRequestError: 422,
    errors.InspectorError: 503,
    errors.QueueFullError: 503,
}
_STATUS_TEXTS = {
    400: "The request is malformed.",
    401: "The token is missing or wrong.",
    403: "The request comes from a page of another site.",
    404: "There is no verdict for this image, or it has not been inspected.",
    408: "The request did not arrive in time.",
    409: "Another image with the same name has a verdict.",
    412: "The image has another verdict than `replaces`.",
    413: "The request has too many bytes, or the image too many pixels.",
    415: "The image is not a JPEG, PNG, BMP or TIFF.",
    421: "The service does not answer under this host name.",
    422: "A value is invalid or an image is damaged.",
    503: "The service cannot answer at present; try again after `Retry-After` seconds.",
}
_MEDIA_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
_BINARY = {"type": "string", "format": "binary"}
_IMAGES = {"images": {"type": "array", "items": _BINARY, "minItems": 1}}
_IMAGE_TYPES = ("image/jpeg", "image/png", "image/bmp", "image/tiff", "application/octet-stream")
_BODY = {
    "required": True,
    "description": "The bytes of one image, or a form with one or more images in fields of any name.",
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "properties": _IMAGES, "required": ["images"]}},
        **{media_type: {"schema": _BINARY} for media_type in _IMAGE_TYPES},
    },
}
_Replaces = Annotated[
    answers.Revision | None,
    Query(description="Revision of the verdict that may be replaced, 0 for none; 412 if the image has another."),
]
_DESCRIPTION = """Finds and outlines surface defects on images of steel strip. Examples:

    curl --data-binary @0002cc93b.jpg http://127.0.0.1:8000/v1/inspect
    curl -F images=@0002cc93b.jpg -F images=@00031f466.jpg http://127.0.0.1:8000/v1/inspect
    curl --data-binary @0002cc93b.jpg 'http://127.0.0.1:8000/v1/inspect?overlay=png' -o overlay.png

If the service requires a token, add -H "Authorization: Bearer $STEEL_TOKEN".
If it answers 503, wait for the number of seconds in Retry-After and try again.
"""


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    every = (401, 403, 421, *statuses)
    return {status: {"model": answers.Problem, "description": _STATUS_TEXTS[status]} for status in every}


async def _reserve(places: ExitStack, desk: Desk, num_images: int) -> None:
    """Reserve places in the queue until `places` is closed.

    If the queue is full, this waits a moment: after the event loop was busy, the requests of clients that have hung up
    arrive first and their hang-ups only then, so that for a few milliseconds they hold places.

    Raises:
        QueueFullError: Too few places are free after that.
    """
    for _ in range(_NUM_TRIES - 1):
        with suppress(errors.QueueFullError):
            places.enter_context(desk.batcher.reserve(num_images))
            return
        await asyncio.sleep(_TRY_SECONDS)
    places.enter_context(desk.batcher.reserve(num_images))


async def _read_uploads(request: Request, name: str, max_images: int) -> list[Upload]:
    """Return the images of a form, or the whole body as one image."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return [Upload(name, await request.body())]
    async with request.form(max_files=max_images, max_fields=0) as form:
        files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if not files:
            raise errors.InvalidRequestError("the form must contain at least one image file, got none")
        return [Upload((file.filename or name)[:255], await file.read()) for file in files]


async def _unless_client_hangs_up(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Return the result of a coroutine, which is cancelled if the client hangs up.

    Raises:
        HTTPException: The client hung up.
    """

    async def wait_for_hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = working, hang_up = asyncio.create_task(work), asyncio.create_task(wait_for_hang_up())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise hung_up()
        return await working
    finally:
        working.cancel()
        hang_up.cancel()


def _draw(inspected: Inspected, classes: Sequence[str]) -> Response:
    image, decision, answer = inspected
    picture = draw_decision(answer.name, image, decision, classes=classes)
    png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
    return Response(png, media_type="image/png")


def _describe(upload: Upload, result: Inspected | errors.DeskError) -> answers.ImageAnswer | answers.ImageProblem:
    if isinstance(result, Inspected):
        return result.answer
    return answers.ImageProblem(name=upload.name, detail=str(result))


def _route_inspection(desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["inspection"])
    success = {"description": "The decisions; with `overlay=png`, a picture.", "content": {"image/png": {}}}

    @router.post(
        "/inspect",
        summary="Inspect one or more images",
        response_model=answers.InspectionAnswer,
        responses={200: success, **_problems(400, 408, 413, 415, 422, 503)},
        openapi_extra={"requestBody": _BODY},
    )
    async def inspect(
        request: Request,
        overlay: Annotated[str | None, Query(pattern="^png$", description="`png`: draw one image's masks.")] = None,
        gate: Annotated[float | None, Query(ge=0, le=1, description="Gate to use instead of the model's.")] = None,
        label: Annotated[
            list[answers.Probability],
            Query(description="Label thresholds to use instead of the model's: one per class, in the model's order."),
        ] = [],  # noqa: B006, FastAPI copies it
        name: Annotated[str, Query(max_length=255, description="Name of an image sent as bytes.")] = "image",
    ) -> answers.InspectionAnswer | Response:
        thresholds = desk.choose_thresholds(gate, label)
        with ExitStack() as places:
            await _reserve(places, desk, 1)  # before the body is read into memory
            uploads = await _read_uploads(request, name, desk.limits.max_images)
            if overlay and len(uploads) > 1:
                raise errors.InvalidRequestError(f"overlay=png draws a single image, got {len(uploads)}; send only one")
            await _reserve(places, desk, len(uploads) - 1)
            async with asyncio.timeout(desk.limits.timeout):
                results = await _unless_client_hangs_up(request, desk.inspect(uploads, thresholds))
            if overlay and isinstance(results[0], Inspected):
                return await asyncio.to_thread(_draw, results[0], desk.classes)
            return answers.InspectionAnswer(images=list(map(_describe, uploads, results)))

    @router.get("/model", summary="Describe the model and its operating point", responses=_problems())
    def model() -> answers.ModelAnswer:
        return desk.model

    @router.get(
        "/card",
        summary="Read the model card",
        response_class=HTMLResponse,
        responses={200: {"content": {"text/html": {}}}, **_problems()},
    )
    def card() -> HTMLResponse:
        # The page has its style inside, which the policy of the service would block.
        return HTMLResponse(desk.card, headers={"Content-Security-Policy": POLICY})

    return router


def _route_verdicts(desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["verdicts"])

    def describe_file(media_type: str) -> dict[str, Any]:
        return {"response_class": Response, "responses": {200: {"content": {media_type: {}}}, **_problems(503)}}

    @router.get("/verdicts", summary="List the verdicts of the last hours", responses=_problems(422, 503))
    def list_verdicts(hours: Annotated[float, Query(gt=0, le=24 * 366)] = 8) -> answers.Shift:
        return desk.verdicts.list_since(datetime.now(UTC) - timedelta(hours=hours))

    @router.get("/verdicts/{digest}", summary="List all verdicts on an image", responses=_problems(422, 503))
    def list_history(digest: answers.Digest) -> answers.History:
        return answers.History(entries=desk.verdicts.list_history(digest))

    @router.put(
        "/verdicts/{digest}",
        summary="Save a verdict",
        responses=_problems(400, 404, 408, 409, 412, 413, 422, 503),
    )
    def save(
        digest: answers.Digest, question: answers.VerdictQuestion, replaces: _Replaces = None
    ) -> answers.VerdictAnswer:
        return desk.save_verdict(digest, question, replaces)

    @router.delete(
        "/verdicts/{digest}", status_code=204, summary="Delete a verdict", responses=_problems(404, 412, 422, 503)
    )
    def delete(digest: answers.Digest, inspector: answers.Inspector, replaces: _Replaces = None) -> None:
        if not desk.verdicts.delete(digest, inspector, replaces):
            raise HTTPException(404, "there is no verdict for this image")

    @router.get("/verdicts.csv", summary="Download all verdicts as CSV", **describe_file("text/csv"))
    def write_csv() -> Response:
        return _download(desk.verdicts.format_csv().encode(), "text/csv; charset=utf-8", "verdicts.csv")

    @router.get("/labels.zip", summary="Download all verdicts as training labels", **describe_file("application/zip"))
    def write_labels() -> Response:
        return _download(desk.verdicts.pack_labels(), "application/zip", "labels.zip")

    return router


def _download(content: bytes, media_type: str, name: str) -> Response:
    return Response(content, media_type=media_type, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _route_pages() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    # Read once at the start: a name sent by a client is never looked up on disk.
    files = {file.name: file.read_bytes() for file in (resources.files("steel.desk") / "page").iterdir()}

    def show(name: str) -> Response:
        media_type = _MEDIA_TYPES.get(name.rpartition(".")[2])
        if media_type is None or name not in files:
            raise HTTPException(404, "there is no such page")
        return Response(files[name], media_type=f"{media_type}; charset=utf-8")

    router.add_api_route("/", lambda: show("index.html"))
    router.add_api_route("/docs", lambda: show("docs.html"))
    router.add_api_route("/page/{name}", show)
    return router


def _route_operation(desk: Desk) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/healthz", summary="Check that the process is alive")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz", summary="Check that images are accepted", responses={503: {"model": answers.Problem}})
    def readyz() -> dict[str, str]:
        if not desk.is_ready:
            raise errors.QueueFullError
        return {"status": "ready"}

    @router.get("/metrics", summary="Read the metrics in Prometheus format", response_class=Response)
    def metrics() -> Response:
        return Response(generate_latest(desk.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def _add_error_handlers(app: FastAPI, timeout: float) -> None:
    """Translate every expected exception to a status and one sentence."""

    def add(kind: type[Exception], describe: Callable[[Any], tuple[int, str]]) -> None:
        def answer(request: Request, error: Exception) -> JSONResponse:
            status, sentence = describe(error)
            return JSONResponse({"detail": sentence}, status, {"Retry-After": "1"} if status == 503 else None)

        app.add_exception_handler(kind, answer)

    add(errors.DeskError, lambda error: (_STATUSES[type(error)], str(error)))
    add(RequestValidationError, lambda error: (422, _describe_invalid(error)))
    add(TimeoutError, lambda error: (503, f"the request took more than {timeout:g} seconds; try again later"))
    add(sqlite3.Error, lambda error: (503, "cannot read or write the verdicts file; check whether its disk is full"))


def _describe_invalid(error: RequestValidationError) -> str:
    # Without the value that was sent, which may be anything and long.
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))[:200]}: {first['msg'][:200]}; see /docs for the accepted values"


def build_app(desk: Desk, token: str | None = None, is_local: bool = True) -> ASGIApp:
    """Return the service as an ASGI application, which closes the desk at shutdown; for the options see `Guard`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(desk.close)

    app = FastAPI(
        title="Inspection desk",
        description=_DESCRIPTION,
        version=read_version(),
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load scripts from another host
        redoc_url=None,
        redirect_slashes=False,
    )
    bearer = HTTPBearer(auto_error=False, description="The value of STEEL_TOKEN, if the service was started with it.")
    for router in (_route_inspection(desk), _route_verdicts(desk)):
        app.include_router(router, dependencies=[Depends(bearer)])
    app.include_router(_route_pages())
    app.include_router(_route_operation(desk))
    limits = desk.limits
    _add_error_handlers(app, limits.timeout)
    guard = Guard(app, token=token, is_local=is_local, max_bytes=limits.max_bytes, timeout=limits.timeout)
    return desk.metrics.watch(guard)
