"""The demo's server: who is answered, what is refused, and how many questions wait. No model."""

import asyncio
import json
import os
import signal
import socket
from threading import Thread
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette", reason="pip install '.[demo]'")
pytest.importorskip("uvicorn", reason="pip install '.[demo]'")

from starlette.testclient import TestClient  # noqa: E402

from undo_jax.demo import server  # noqa: E402
from undo_jax.demo.ask import DemoQuestion, Reply  # noqa: E402
from undo_jax.demo.queue import BusyError, Queue  # noqa: E402
from undo_jax.demo.server import app, hosts  # noqa: E402
from undo_jax.runtime import signals  # noqa: E402

URL = "http://127.0.0.1:8000"
JSON = {"Content-Type": "application/json"}
ASKED = {"prompt": "1+1=", "answer": "2", "step": 5}


class Desk:
    """Says what it is asked."""

    def check(self, question):
        if "<" in question.prompt:
            raise ValueError("character '<' is not in the alphabet")

    def replies(self, questions, step):
        if any(question.prompt == "broken" for question in questions):
            raise RuntimeError("a fault")
        return [[Reply(f"{question.prompt} at {step}", 0.5, (("2", 0.5), (None, 0.1))), None]
                for question in questions]  # fmt: skip


@pytest.fixture(scope="module")
def client():
    application = app("<p>page", Desk(), (0, 5), True, hosts("127.0.0.1", ()))
    with TestClient(application, base_url=URL, raise_server_exceptions=False) as running:
        yield running


def _refused(response, status, message):
    assert response.status_code == status
    assert list(response.json()) == ["error"] and message in response.json()["error"]
    assert response.headers["content-type"] == "application/json"


def test_a_question_is_answered_by_every_model(client):
    response = client.post("/answers", json=ASKED)
    assert response.status_code == 200
    top = [["2", 0.5], [None, 0.1]]
    expected = {"text": "1+1= at 5", "probability": 0.5, "top": top}
    assert response.json() == {"replies": [expected, None]}
    page = client.get("/")
    assert page.text == "<p>page" and page.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "no JSON"),
        (b"\xff\xfe\x00", 400, "no JSON"),
        (b"[" * 60_000, 400, "no JSON"),
        (b"[]", 400, '{"prompt": TEXT'),
        (b'{"prompt": "1", "other": 1}', 400, '{"prompt": TEXT'),
        (b'{"step": 0}', 400, "give texts"),
        (b'{"prompt": 1}', 400, "give texts"),
        (b'{"prompt": "1", "answer": null}', 400, "give texts"),
        (rb'{"prompt": "\ud800"}', 400, "surrogate"),
        (b'{"prompt": "  "}', 400, "empty"),
        (b'{"prompt": "1", "step": 4}', 400, "choose one of 0, 5"),
        (b'{"prompt": "1", "step": false}', 400, "choose one of 0, 5"),
        (b'{"prompt": "1", "step": NaN}', 400, "choose one of 0, 5"),
        (b'{"prompt": "<script>alert(1)</script>"}', 422, "'<' is not in the alphabet"),
        (json.dumps({"prompt": "1" * 10**6}).encode(), 413, "larger than 65536 bytes"),
    ],
)
def test_what_is_no_question_is_refused(client, body, status, message):
    _refused(client.post("/answers", content=body, headers=JSON), status, message)


def test_a_body_of_no_stated_length_is_bounded_and_must_be_json(client):
    def parts():
        for _ in range(100):
            yield b"1" * 1000

    _refused(client.post("/answers", content=parts(), headers=JSON), 413, "larger than")
    _refused(
        client.post("/answers", content=b"{}", headers={"Content-Type": "text/plain"}), 415, ""
    )
    _refused(client.get("/answers"), 405, "")
    _refused(client.get("/other"), 404, "")


def test_a_visitor_who_leaves_within_a_question_is_no_fault():
    came = iter([{"type": "http.request", "body": b"{", "more_body": True},
                 {"type": "http.disconnect"}])  # fmt: skip
    sent = []

    async def receive():
        return next(came)

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/answers", "headers": headers}
    application = app("", Desk(), (0, 5), True, hosts("127.0.0.1", ()))
    asyncio.run(application(scope, receive, send))
    assert sent[0]["status"] == 400


def test_connections_without_a_request_are_closed(monkeypatch):
    monkeypatch.setattr(server, "SLOWEST", 0.3)
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    ends = []

    def visit(port):
        try:
            for sent in (
                request + request[:5],
                b"",
                request[:-2],
            ):  # first one that waits for the server
                with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                    connection.sendall(sent)
                    received = b""
                    while part := connection.recv(4096):
                        received += part
                    ends.append(
                        received.endswith(b"<p>page") if len(sent) > len(request) else not received
                    )
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    application = app("<p>page", Desk(), (0, 5), True, hosts("127.0.0.1", ()))
    with pytest.raises(KeyboardInterrupt), signals.raise_on_signals(*signals.EXIT_STATUSES):
        for url in server.serve(application, "127.0.0.1", 0):
            visitor = Thread(target=visit, args=(urlsplit(url).port,))
            visitor.start()
    visitor.join()
    assert ends == [True, True, True]


def test_a_fault_of_the_models_is_told_without_its_text(client):
    response = client.post("/answers", json={**ASKED, "prompt": "broken"})
    _refused(response, 500, "could not answer")
    assert "a fault" not in response.text
    assert client.post("/answers", json=ASKED).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "evil.example@127.0.0.1"}, 200),  # a user's name; no browser sends one
        ({"Host": "127.0.0.1:x"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://localhost:8000"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1.evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
    ],
)
def test_other_hosts_and_other_sites_pages_are_refused(client, headers, status):
    for response in (client.get("/", headers=headers),
                     client.post("/answers", json=ASKED, headers=headers)):  # fmt: skip
        assert response.status_code == status
        if status == 403:
            assert list(response.json()) == ["error"]


def test_names_of_this_machine_are_to_be_given():
    assert hosts("10.0.0.7", ("Demo.Example",)) >= {"10.0.0.7", "demo.example", "localhost"}
    for everywhere in ("0.0.0.0", "::", ""):
        with pytest.raises(ValueError, match="give --allowed-hosts"):
            hosts(everywhere, ())
        assert "demo" in hosts(everywhere, ("demo",)) and everywhere not in hosts(
            everywhere, ("demo",)
        )
    for name in ("http://demo/", "a b", ""):
        with pytest.raises(ValueError, match="is no name of a host"):
            hosts("127.0.0.1", (name,))


def _questions(count):
    return [DemoQuestion(str(i)) for i in range(count)]


def _run(work, compute, **options):
    """The result of `work(queue)` on a queue that computes so."""

    async def inside():
        queue = Queue(compute, 4, **options)
        queue.start()
        try:
            return await work(queue)
        finally:
            await queue.stop()

    return asyncio.run(inside())


def test_questions_of_one_step_are_answered_together_and_equal_ones_once():
    batches = []

    def compute(questions, step):
        batches.append((step, [question.prompt for question in questions]))
        return [f"{question.prompt} at {step}" for question in questions]

    async def work(queue):
        keys = [(question, step) for question in _questions(5) for step in (0, 7)] * 2
        return keys, await asyncio.gather(*(queue.answer(*question) for question in keys))

    keys, answers = _run(work, compute)
    assert answers == [f"{question.prompt} at {step}" for question, step in keys]
    assert batches == [(0, list("0123")), (7, list("0123")), (0, ["4"]), (7, ["4"])]


def test_answers_are_remembered_up_to_a_number():
    count = 0

    def compute(questions, step):
        nonlocal count
        count += len(questions)
        return [question.prompt for question in questions]

    async def work(queue):
        for prompt in ("0", "1", "0", "2", "0", "1"):  # 1 is the oldest when 2 comes
            assert await queue.answer(DemoQuestion(prompt), 0) == prompt

    _run(work, compute, remembered=2)
    assert count == 4


def test_too_many_questions_are_refused_and_the_others_answered():
    async def work(queue):
        tasks = [queue.answer(question, 0) for question in _questions(10)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = _run(
        work, lambda questions, step: [question.prompt for question in questions], waiting=6
    )
    assert answers[:6] == list("012345")
    assert all(isinstance(question, BusyError) for question in answers[6:]) and len(answers) == 10


def test_a_visitor_who_leaves_takes_nobody_along():
    async def work(queue):
        first = asyncio.create_task(queue.answer(DemoQuestion("a"), 0))
        second = asyncio.create_task(queue.answer(DemoQuestion("a"), 0))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert _run(work, lambda questions, step: ["b"] * len(questions)) == "b"


def test_the_busy_server_says_when_to_come_again(monkeypatch):
    async def busy(*_):
        raise BusyError

    monkeypatch.setattr(Queue, "answer", busy)
    application = app("", Desk(), (0, 5), True, hosts("127.0.0.1", ()))
    with TestClient(application, base_url=URL) as client:
        response = client.post("/answers", json=ASKED)
    _refused(response, 503, "ask again")
    assert response.headers["retry-after"] == "1"
