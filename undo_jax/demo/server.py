"""The demo's server: its page, and answers to visitors' questions; by Starlette and uvicorn."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from undo_jax.demo.ask import DemoQuestion
from undo_jax.demo.description import reply_json
from undo_jax.demo.desk import ROWS, Desk
from undo_jax.demo.queue import BusyError, Queue
from undo_jax.runtime import signals
from undo_jax.runtime.install import install_command

INSTALL = f"starlette and uvicorn are not installed: {install_command('demo')}"
LARGEST = 2**16  # bytes of a request's body
SLOWEST = 10.0  # seconds that the head of a request, or its body, may take to come
CONNECTIONS = 512
HERE = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::", "")
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise ModuleNotFoundError(INSTALL, name=error.name) from error


def hosts(host: str, allowed: Sequence[str]) -> frozenset[str]:
    """Returns the host names that requests may have: this machine's, `host` and those allowed.

    Raises ValueError if `host` means all addresses and no name is allowed.
    """
    if host in EVERYWHERE and not allowed:
        raise ValueError(
            f"host={host!r} listens on all addresses: give --allowed-hosts with the names by which "
            "visitors call this machine"
        )
    for name in allowed:
        if not name or any(character in name for character in "/@ \t\n"):
            raise ValueError(f"allowed_hosts: {name!r} is no name of a host: give a name, no URL")
    names = {*HERE, *allowed} | ({host} - {*EVERYWHERE})
    return frozenset(name.lower().strip("[]") for name in names)


def app(html: str, desk: Desk, steps: Collection[int], ends: bool, named: Collection[str]) -> Any:
    """Returns the application: the page at /, and replies at /answers.

    A question is a POST of JSON, {"prompt", "answer", "step"}; the response has the reply of every
    model. An error is {"error"} with a status of 4xx or 5xx.

    Args:
        html: the page.
        desk: answers questions.
        steps: the steps of the attack that can be asked for.
        ends: whether documents end after an answer.
        named: the host names that are served.
    """

    def compute(questions: Sequence[DemoQuestion], step: int) -> list[Any]:
        by_question = desk.replies(questions, step)
        return [[reply_json(reply) for reply in replies] for replies in by_question]

    @asynccontextmanager
    async def lifespan(starlette: Starlette) -> AsyncIterator[None]:
        queue = starlette.state.queue = Queue(compute, ROWS)
        queue.start()
        yield
        await queue.stop()

    async def page(_: Request) -> Response:
        return HTMLResponse(html)

    async def answers(request: Request) -> Response:
        question, step = _parse(await _body(request), steps, ends)
        try:
            desk.check(question)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        queue: Queue = request.app.state.queue
        try:
            return JSONResponse({"replies": await queue.answer(question, step)})
        except BusyError as error:
            message = "too many questions are waiting: ask again in a second"
            raise HTTPException(503, message, {"Retry-After": "1"}) from error

    application = Starlette(
        routes=[Route("/", page), Route("/answers", answers, methods=["POST"])],
        lifespan=lifespan,
        exception_handlers={HTTPException: _refuse, Exception: _refuse},
    )
    return _guarded(application, named)


def serve(application: Any, host: str, port: int) -> Iterator[str]:
    """Serves until a signal comes; yields the address once it listens.

    Raises OSError if it cannot listen on the address.
    """
    with _listen(host, port) as listener:
        url_host = f"[{host}]" if ":" in host else host
        yield f"http://{url_host}:{listener.getsockname()[1]}/"
        server = _Server(
            uvicorn.Config(
                application,
                http=_Connection,
                ws="none",
                log_level="error",
                access_log=False,
                limit_concurrency=CONNECTIONS,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=3,
                server_header=False,
            )
        )
        received: list[int] = []

        def stop(number: int) -> bool:
            received.append(number)
            server.should_exit = True
            return True

        with signals.ask_on_signals(stop):
            server.run(sockets=[listener])
    for number in received[:1]:
        signals.raise_stop(KeyboardInterrupt() if number == signal.SIGINT else signals.Preempted())


class _Connection(H11Protocol):
    """Closes if the head of a request comes too late; uvicorn would wait."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(SLOWEST, self._close_if_idle, None)

    def on_response_complete(self) -> None:
        self.loop.call_later(SLOWEST, self._close_if_idle, self.cycle)
        super().on_response_complete()

    def _close_if_idle(self, last_cycle: Any) -> None:
        if self.cycle is last_cycle:  # no request since
            self.transport.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the command."""
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except (OSError, OverflowError) as error:
        raise OSError(
            f"cannot listen on port {port} of {host!r} ({error}): give another --port, 0 for any "
            "free one, or another --host"
        ) from error


def _guarded(application: Any, named: Collection[str]) -> Any:
    """Returns the application, which refuses other host names and requests of other sites' pages.

    So no page of another site can ask by a name that it has pointed to this machine.
    """

    async def guard(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await application(scope, receive, send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        error = None
        if _host_name(f"//{headers.get(b'host', '')}") not in named:
            error = "this host name is not allowed: see --allowed-hosts"
        elif b"origin" in headers and _host_name(headers[b"origin"]) not in named:
            error = "requests of other sites' pages are refused"

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        responder = application if error is None else JSONResponse({"error": error}, 403)
        await responder(scope, receive, send_with_headers)

    return guard


def _host_name(url: str) -> str | None:
    """Returns the host name of a URL in the form of `hosts`; None if it has none."""
    try:
        split = urlsplit(url)
        _ = split.port  # raises ValueError if it is no number
        name = split.hostname
    except ValueError:
        return None
    try:
        return str(ip_address(name or ""))
    except ValueError:
        return name


async def _body(request: Request) -> Any:
    """Returns the JSON of a request. Raises HTTPException if it is too large, slow or no JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "send JSON, as Content-Type: application/json")
    large = HTTPException(413, f"the question is larger than {LARGEST} bytes: make it shorter")
    if int(request.headers.get("content-length", "0")) > LARGEST:
        raise large
    body = bytearray()
    try:
        async with asyncio.timeout(SLOWEST):
            async for part in request.stream():
                body += part
                if len(body) > LARGEST:
                    raise large
    except TimeoutError as error:
        raise HTTPException(408, "the question came too slowly") from error
    except ClientDisconnect as error:  # nobody reads this
        raise HTTPException(400, "the question did not come to its end") from error
    try:
        return json.loads(bytes(body).decode())
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the question is no JSON in UTF-8") from error


def _parse(content: Any, steps: Collection[int], ends: bool) -> tuple[DemoQuestion, int]:
    """Returns the question and its step. Raises HTTPException for what is no question."""
    if not isinstance(content, dict) or not content.keys() <= {"prompt", "answer", "step"}:
        raise HTTPException(400, 'send {"prompt": TEXT, "answer": TEXT, "step": NUMBER}')
    prompt, answer, step = content.get("prompt"), content.get("answer", ""), content.get("step", 0)
    if not (isinstance(prompt, str) and isinstance(answer, str)):
        raise HTTPException(400, "prompt and answer: give texts")
    if any(0xD800 <= ord(character) < 0xE000 for character in prompt + answer):
        raise HTTPException(400, "prompt and answer: half of a surrogate pair is no text")
    if not prompt.strip():
        raise HTTPException(400, "the prompt is empty: write one")
    if type(step) is not int or step not in steps:
        raise HTTPException(400, f"step: choose one of {', '.join(map(str, sorted(steps)))}")
    return DemoQuestion(prompt, answer, ends), step


async def _refuse(_: Request, error: Any) -> Response:
    """Responds with the status of an HTTPException; any other error is one of the server."""
    if not isinstance(error, HTTPException):
        error = HTTPException(500, "the models could not answer; see the server's output")
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
