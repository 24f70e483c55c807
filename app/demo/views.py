"""The demo's page and its JSON API."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse, UnreadablePostError
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views.decorators.csrf import csrf_exempt
from django.views.generic import View

from boiler.settings import get

from . import bench, dyno, live, orders
from .models import Job
from .orders import UNREACHABLE, Refusal

logger = logging.getLogger(__name__)

MAX_BODY = 10_000  # bytes; an order takes a hundred
CHUNK, DRAINED = 65_536, 128  # read and drop up to 8 MB of a body that is too large
MAX_IDS = 400  # of nine digits each they still fit into gunicorn's request line of 4,094 bytes
RECENT = 12  # jobs on the page
ROOM = 100  # connections of a gunicorn worker that streams leave to requests
KINDS = (
    (Job.Kind.SLEEP, "only waits"),
    (Job.Kind.CPU, "burns processor time"),
    (Job.Kind.IO, "waits for the database"),
)
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)


def answer(data: dict[str, Any], status: int = 200, retry_after: int | None = None) -> JsonResponse:
    """A JSON response that no cache keeps; `retry_after` in seconds."""
    headers = {"Cache-Control": "no-store"}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    return JsonResponse(data, status=status, headers=headers)


@contextmanager
def reaching_out(request: HttpRequest) -> Iterator[None]:
    """Turn the errors of a database or broker that can't be reached into a Refusal."""
    try:
        yield
    except UNREACHABLE as error:
        logger.warning("%s %s: %s", request.method, request.path, error)
        raise Refusal(503, "The database can't be reached: try again in some seconds.", 5) from None


# No CSRF token: such a token protects what a browser may do in its user's name, and here nobody has
# one. Any client may order jobs, as any visitor may.
@method_decorator(csrf_exempt, name="dispatch")
class Api(View):
    """A view that answers in JSON whatever happens."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Answer; a Refusal becomes its status and sentence."""
        try:
            with reaching_out(request):
                return super().dispatch(request, *args, **kwargs)
        except Refusal as refusal:
            return answer({"error": str(refusal)}, refusal.status, refusal.retry_after)

    def http_method_not_allowed(self, request: HttpRequest, *_args: Any, **_kwargs: Any) -> HttpResponse:
        """405 with the methods that are allowed."""
        allowed = ", ".join(self._allowed_methods())
        response = answer({"error": f"{request.method} is not possible here: use {allowed}."}, 405)
        response.headers["Allow"] = allowed
        return response


class Jobs(Api):
    """`POST /jobs` orders jobs; `GET /jobs?ids=1,2` follows several."""

    def get(self, request: HttpRequest) -> HttpResponse:
        """The jobs of these ids, in order; those that are unknown, or pruned since, are left out."""
        ids = [job_id(text) for text in request.GET.get("ids", "").split(",")]
        if None in ids or len(ids) > MAX_IDS:
            raise Refusal(400, f"ids must be up to {MAX_IDS} whole numbers with commas between.")
        jobs = Job.objects.filter(pk__in=ids).order_by("pk")
        return answer({"jobs": [job.as_json() for job in jobs]})

    def post(self, request: HttpRequest) -> HttpResponse:
        """202 and the new jobs' ids, or a refusal and no job."""
        return answer({"ids": orders.place(orders.parse(body(request)))}, 202)


class OneJob(Api):
    """`GET /jobs/ID`."""

    def get(self, _request: HttpRequest, text: str) -> HttpResponse:
        """The job, or 404."""
        job = Job.objects.filter(pk=job_id(text)).first()
        if job is None:
            raise Refusal(404, "There is no such job: it may have been cleared away after its end.")
        return answer(job.as_json())


class Status(Api):
    """`GET /status`."""

    def get(self, _request: HttpRequest) -> HttpResponse:
        """What runs inside this dyno: see dyno.look(); 503 if the boiler doesn't answer."""
        try:
            return answer(dyno.look())
        except OSError as error:
            logger.warning("The boiler doesn't answer: %s", error)
            raise Refusal(503, "The boiler doesn't answer: try again in some seconds.", 5) from None


class Events(Api):
    """`GET /events`: what happens in the dyno, as server-sent events without end."""

    def get(self, _request: HttpRequest) -> StreamingHttpResponse:
        """The feed. Refused where a stream would keep a thread or a process busy, or leave no room for requests."""
        if not settings.GREENLETS:
            raise Refusal(501, "This gunicorn can't stream: ask for /now.")
        connections = get("WEB_CONNECTIONS")
        if live.feed.watching >= max(connections // 2, connections - ROOM):
            raise Refusal(503, "Too many are watching: ask for /now.", 10)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would keep it back
        return StreamingHttpResponse(live.feed.watch(), content_type="text/event-stream", headers=headers)


class Now(Api):
    """`GET /now`: one frame of the feed."""

    def get(self, request: HttpRequest) -> HttpResponse:
        """What has happened since `?after=`, which the frame before told."""
        after = None
        if "after" in request.GET:
            try:
                after = float(request.GET["after"])
            except ValueError:
                after = -1.0
            if not 0 <= after < 1e10:
                raise Refusal(400, "after must be the number that the answer before had.")
        return answer(live.Look(after).frame())


class BenchTurn(Api):
    """`POST /bench`: a turn for the benchmark."""

    def post(self, _request: HttpRequest) -> HttpResponse:
        """201 and the course, or a refusal that says when."""
        return answer(bench.begin(), 201)


def hello(_request: HttpRequest) -> HttpResponse:
    """`GET /hello`: what a request costs that needs neither the database nor the queue."""
    return HttpResponse("hello\n", content_type="text/plain", headers={"Cache-Control": "no-store"})


class Page(View):
    """`GET /` shows the dyno and the latest jobs; `POST /` orders one without JavaScript."""

    def get(self, request: HttpRequest) -> HttpResponse:
        """The page."""
        return self.page(request)

    def post(self, request: HttpRequest) -> HttpResponse:
        """Order a job and show the page anew, or with the reason why there is no job."""
        try:
            with reaching_out(request):
                orders.place(form_order(request))
        except Refusal as refusal:
            return self.page(request, refusal)
        return redirect("demo:page")

    def page(self, request: HttpRequest, refusal: Refusal | None = None) -> HttpResponse:
        """The page, with what went wrong if something did."""
        try:
            with reaching_out(request):
                jobs = list(Job.objects.order_by("-pk")[:RECENT])
        except Refusal as unreachable:
            jobs, refusal = [], refusal or unreachable
        try:
            inside = dyno.look()
        except OSError:
            inside = None
        context = {
            "inside": inside,
            "jobs": jobs,
            "error": refusal,
            "kinds": KINDS,
            "rows": RECENT,
            "jobs_url": request.build_absolute_uri(reverse("demo:jobs")),
            "kind": request.POST.get("kind", Job.Kind.SLEEP),
            "seconds": request.POST.get("seconds", "0.1"),
            "streams": settings.GREENLETS,
            "stages": bench.COURSE,
            "course_seconds": bench.STAGE * len(bench.COURSE),
            "max_seconds": orders.MAX_SECONDS,
        }
        response = render(request, "demo/page.html", context, status=refusal.status if refusal else 200)
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        response.headers["Cache-Control"] = "no-store"
        if refusal and refusal.retry_after is not None:
            response.headers["Retry-After"] = str(refusal.retry_after)
        return response


def body(request: HttpRequest) -> bytes:
    """The request's body. Raises Refusal if it is longer than any order."""
    if int(request.META.get("CONTENT_LENGTH") or 0) <= MAX_BODY:
        try:
            return request.body
        except UnreadablePostError:
            raise Refusal(400, "The body ended early.") from None
    # A client that is still sending when the connection closes may never see the answer.
    for _ in range(DRAINED):
        if not request.read(CHUNK):
            break
    raise Refusal(413, f"The body is too large: an order has at most {MAX_BODY} bytes.")


def job_id(text: str) -> int | None:
    """The id in a URL; None if this can be no job's."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def form_order(request: HttpRequest) -> orders.Order:
    """The order of the page's form. Raises Refusal if it isn't a good one."""
    try:
        seconds = float(request.POST.get("seconds", ""))
    except ValueError:
        seconds = None
    return orders.check({"kind": request.POST.get("kind"), "seconds": seconds})
