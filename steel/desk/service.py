"""The desk over HTTP: its routes, their OpenAPI, and a sentence for everything that can go wrong."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from importlib import resources
from io import BytesIO
from typing import Annotated, Any

import cv2
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import UploadFile
from starlette.types import ASGIApp

from steel.desk.answers import (
    Digest,
    ImageProblem,
    InspectionAnswer,
    ModelAnswer,
    Probability,
    Problem,
    Shift,
    VerdictAnswer,
    VerdictQuestion,
)
from steel.desk.batching import Full
from steel.desk.desk import Desk, Inspected, Upload
from steel.desk.guard import Guard
from steel.desk.uploads import Refused
from steel.desk.verdicts import NameTaken
from steel.errors import InputError
from steel.inspection.pipeline import draw_decision
from steel.versions import read_version

_RETRY = {"Retry-After": "1"}
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
_KINDS = ("image/jpeg", "image/png", "image/bmp", "image/tiff", "application/octet-stream")
_BINARY = {"type": "string", "format": "binary"}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of one image, or a form with one image or several, whatever its fields are called.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": _BINARY, "minItems": 1}},
                    "required": ["images"],
                }
            },
            **{kind: {"schema": _BINARY} for kind in _KINDS},
        },
    }
}
_ABOUT = """An exported inspector of steel strip. From a shell:

    curl --data-binary @0002cc93b.jpg http://127.0.0.1:8000/v1/inspect
    curl -F images=@0002cc93b.jpg -F images=@00031f466.jpg http://127.0.0.1:8000/v1/inspect
    curl --data-binary @0002cc93b.jpg http://127.0.0.1:8000/v1/inspect?overlay=png -o overlay.png

Where the service was started with STEEL_TOKEN, add -H "Authorization: Bearer $STEEL_TOKEN".
On 503 wait for as many seconds as Retry-After says and ask again.
"""


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    words = {
        400: "The request is malformed.",
        401: "The token is missing or wrong.",
        403: "A page of another site asked.",
        404: "There is none.",
        408: "The request came too slowly.",
        409: "Another image of this name has a verdict.",
        413: "Too many bytes or pixels.",
        415: "Not a JPEG, PNG, BMP or TIFF.",
        421: "The service is not called so.",
        422: "Something given is wrong.",
        503: "The queue is full or the answer took too long; ask again after `Retry-After` seconds.",
    }
    return {status: {"model": Problem, "description": words[status]} for status in (401, 403, 421, *statuses)}


async def _read_uploads(request: Request, name: str, max_images: int) -> list[Upload]:
    """The images of a request: those of a form, or its whole body."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return [Upload(name, await request.body())]
    async with request.form(max_files=max_images, max_fields=0) as form:
        files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if not files:
            raise Refused(422, "a form has at least one image, but none came; send files")
        return [Upload((file.filename or name)[:255], await file.read()) for file in files]


def _draw(inspected: Inspected, classes: Sequence[str]) -> Response:
    name, answer = inspected.upload.name, inspected.answer
    picture = draw_decision(name, inspected.image, inspected.decision, classes, answer.defective)
    png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
    return Response(png, media_type="image/png")


def _tell(uploads: Sequence[Upload], results: Sequence[Inspected | Refused]) -> InspectionAnswer:
    """The answer of several images; where all are refused, the first refusal is that of the request."""
    if isinstance(results[0], Refused) and all(isinstance(result, Refused) for result in results):
        raise results[0]
    return InspectionAnswer(
        images=[
            ImageProblem(name=upload.name, detail=str(result)) if isinstance(result, Refused) else result.answer
            for upload, result in zip(uploads, results, strict=True)
        ]
    )


def _route_inspection(desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["inspection"])
    problems = _problems(400, 408, 413, 415, 422, 503)
    answered = {"description": "The decisions, or with `overlay=png` the picture.", "content": {"image/png": {}}}

    @router.post(
        "/inspect",
        summary="Inspects an image or several",
        response_model=InspectionAnswer,
        responses={200: answered, **problems},
        openapi_extra=_BODY,
    )
    async def inspect(
        request: Request,
        overlay: Annotated[str | None, Query(pattern="^png$", description="`png`: the picture of one image.")] = None,
        gate: Annotated[float | None, Query(ge=0, le=1, description="Instead of the gate of the model.")] = None,
        label: Annotated[
            list[Probability],
            Query(description="Instead of the thresholds of the model: once for each class, in their order."),
        ] = [],  # noqa: B006, FastAPI copies it
        name: Annotated[str, Query(max_length=255, description="What to call an image sent as bytes.")] = "image",
    ) -> InspectionAnswer | Response:
        thresholds = desk.choose(gate, label)
        with ExitStack() as places:
            places.enter_context(desk.batcher.reserve(1))  # before the body takes memory
            uploads = await _read_uploads(request, name, desk.limits.images)
            if overlay and len(uploads) > 1:
                raise Refused(422, f"overlay=png takes one image, but {len(uploads)} came; ask for one after the other")
            places.enter_context(desk.batcher.reserve(len(uploads) - 1))
            async with asyncio.timeout(desk.limits.seconds):
                results = await desk.inspect(uploads, thresholds)
            answer = _tell(uploads, results)
            if overlay and isinstance(results[0], Inspected):
                return await asyncio.to_thread(_draw, results[0], desk.classes)
            return answer

    @router.get("/model", summary="Classes, operating point, what it promises, versions", responses=_problems())
    def model() -> ModelAnswer:
        return desk.model

    return router


def _route_verdicts(desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["verdicts"])

    def describe_file(kind: str) -> dict[int | str, dict[str, Any]]:
        return {200: {"content": {kind: {}}}, **_problems(503)}

    @router.get("/verdicts", summary="The verdicts of the last hours", responses=_problems(422, 503))
    def list_verdicts(hours: Annotated[float, Query(gt=0, le=24 * 366)] = 8) -> Shift:
        return desk.verdicts.list_since(datetime.now(UTC) - timedelta(hours=hours))

    @router.put("/verdicts/{digest}", summary="Keeps a verdict", responses=_problems(400, 408, 409, 413, 422, 503))
    def save(digest: Digest, question: VerdictQuestion) -> VerdictAnswer:
        return desk.verdicts.save(digest, question)

    @router.delete("/verdicts/{digest}", status_code=204, summary="Takes one back", responses=_problems(404, 422, 503))
    def delete(digest: Digest) -> None:
        if not desk.verdicts.delete(digest):
            raise HTTPException(404, "this image has no verdict")

    @router.get(
        "/verdicts.csv", summary="All verdicts as a table", response_class=Response, responses=describe_file("text/csv")
    )
    def write_csv() -> Response:
        return _download(desk.verdicts.write_csv().encode(), "text/csv; charset=utf-8", "verdicts.csv")

    @router.get(
        "/labels.zip",
        summary="All verdicts as labels to train with",
        response_class=Response,
        responses=describe_file("application/zip"),
    )
    def write_labels() -> Response:
        file = BytesIO()
        desk.verdicts.write_labels(file)
        return _download(file.getvalue(), "application/zip", "labels.zip")

    return router


def _download(content: bytes, kind: str, name: str) -> Response:
    return Response(content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _route_rest(desk: Desk) -> APIRouter:
    router = APIRouter()
    # Read once: no name that a client sends is ever looked for on the disk.
    files = {file.name: file.read_bytes() for file in (resources.files("steel.desk") / "page").iterdir()}

    def show(name: str) -> Response:
        kind = _TYPES.get(name.rpartition(".")[2])
        if kind is None or name not in files:
            raise HTTPException(404, "there is no such page")
        return Response(files[name], media_type=f"{kind}; charset=utf-8")

    router.add_api_route("/", lambda: show("index.html"), include_in_schema=False)
    router.add_api_route("/docs", lambda: show("docs.html"), include_in_schema=False)
    router.add_api_route("/page/{name}", show, include_in_schema=False)

    @router.get("/healthz", tags=["operation"], summary="Whether the process is alive")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz", tags=["operation"], summary="Whether it takes images", responses={503: {"model": Problem}})
    def readyz() -> dict[str, str]:
        if not desk.batcher.is_ready:
            raise HTTPException(503, "the queue is full or the service stops", _RETRY)
        return {"status": "ready"}

    @router.get("/metrics", tags=["operation"], summary="What is measured, for Prometheus", response_class=Response)
    def metrics() -> Response:
        return Response(generate_latest(desk.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def _answer_problems(app: FastAPI, seconds: float) -> None:
    """Every failure is a status and one sentence."""

    def answer(status: int, sentence: str) -> JSONResponse:
        return JSONResponse({"detail": sentence}, status, _RETRY if status == 503 else None)

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> JSONResponse:
        return answer(error.status, str(error))

    @app.exception_handler(InputError)
    def wrong(request: Request, error: InputError) -> JSONResponse:
        return answer(422, str(error))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # What came is not said again: it may be anything, and long.
        first = error.errors()[0]
        return answer(422, f"{'.'.join(map(str, first['loc']))[:200]}: {first['msg'][:200]}; /docs says what is taken")

    @app.exception_handler(Full)
    def full(request: Request, error: Full) -> JSONResponse:
        return answer(503, "the queue is full; ask again in a second")

    @app.exception_handler(TimeoutError)
    def late(request: Request, error: TimeoutError) -> JSONResponse:
        return answer(503, f"the answer took more than {seconds:g} seconds; ask again later")

    @app.exception_handler(NameTaken)
    def taken(request: Request, error: NameTaken) -> JSONResponse:
        return answer(409, f"another image named {error} has a verdict, and labels know images by name; rename one")

    @app.exception_handler(sqlite3.Error)
    def broken(request: Request, error: sqlite3.Error) -> JSONResponse:
        return answer(503, "the file of verdicts cannot be used now; see whether its disk is full")


def build_app(desk: Desk, token: str | None = None, is_local: bool = True) -> ASGIApp:
    """The service as an ASGI application.

    Args:
        desk: What it serves; closed with it.
        token: As `Guard` takes it.
        is_local: As `Guard` takes it.
    """

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(desk.close)

    app = FastAPI(
        title="Inspection desk",
        description=_ABOUT,
        version=read_version(),
        lifespan=live,
        docs_url=None,  # FastAPI's own loads from a host of others
        redoc_url=None,
        redirect_slashes=False,
    )
    bearer = [Depends(HTTPBearer(auto_error=False, description="STEEL_TOKEN, where the service was started with it."))]
    for router in (_route_inspection(desk), _route_verdicts(desk)):
        app.include_router(router, dependencies=bearer)
    app.include_router(_route_rest(desk))
    _answer_problems(app, desk.limits.seconds)
    return desk.metrics.watch(Guard(app, token, is_local, desk.limits.num_bytes, desk.limits.seconds))
