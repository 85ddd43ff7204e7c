"""What one client can make the server hold or do: slow requests, unread answers, other sites' pages, many pixels."""

from __future__ import annotations

import base64
import ctypes
import io
import mmap
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dalle.apps.server.memory import trimmer
from dalle.pipelines.text_to_image import TextToImage
from support.server import Running, running, until

FORM = {"files": {"image": ("a.png", b"", "image/png")}, "data": {"prompt": "a"}}


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[Running]:
    limits: dict[str, Any] = {"header_timeout": 0.5, "body_timeout": 0.5, "max_pixels": 100_000, "max_prompt": 100}
    with running(tiny_model, **limits) as one:
        yield one


def png(side: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


CROSS_SITE = {
    "form": {"Origin": "https://example.org", "Sec-Fetch-Site": "cross-site"},
    "another port": {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"},
    "old browser": {"Origin": "https://example.org"},
    "sandboxed page": {"Origin": "null"},
    "strange origin": {"Origin": "http://[a"},
    "rebound name": {"Host": "example.org", "Origin": "http://example.org", "Sec-Fetch-Site": "same-origin"},
}


@pytest.mark.parametrize("name", CROSS_SITE)
def test_other_sites_pages_cannot_send_requests(served: Running, name: str) -> None:
    with served.http() as http:
        answer = http.post("/v1/images/edits", **FORM, headers=CROSS_SITE[name])
    assert answer.status_code == 403 and answer.json()["error"]["type"] == "permission_error"


def test_own_page_allowed_origins_and_programs_can(served: Running, tiny_model: Path) -> None:
    own = {"Origin": served.url}
    with served.http() as http:
        for headers in ({}, own, own | {"Sec-Fetch-Site": "same-origin"}, {"Host": "localhost:8000"}):
            assert http.post("/v1/images/edits", **FORM, headers=headers).status_code == 400  # the image is empty
    other = {"Origin": "https://example.org", "Sec-Fetch-Site": "cross-site"}
    with running(tiny_model, cors=("https://example.org",)) as told, told.http() as http:
        assert http.post("/v1/images/edits", **FORM, headers=other).status_code == 400
    with running(tiny_model, trust_proxy=True) as behind, behind.http() as http:
        named = {"Host": "images.example.org", "Origin": "https://images.example.org:8443"}
        assert http.post("/v1/images/edits", **FORM, headers=named).status_code == 400


def test_rebound_names_read_nothing(served: Running) -> None:
    with served.http() as http:
        assert http.get("/v1/models", headers={"Host": "example.org"}).status_code == 403
        assert http.get("/v1/models", headers={"Host": "[::1]:8000"}).status_code == 200


def closed(one: socket.socket) -> bytes:
    """What is received until the server closes the connection."""
    one.settimeout(20)
    found = b""
    while part := one.recv(65536):
        found += part
    return found


def test_slow_head_after_a_request_is_closed(served: Running) -> None:
    with socket.create_connection(served.address) as one:
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in one.recv(65536)
        one.sendall(b"GET /hea")
        assert b"HTTP/1.1" not in closed(one)


def answer_with(connection: socket.socket, words: bytes) -> bytes:
    """What is received until it has these words or ends: head and body may come apart."""
    connection.settimeout(20)
    text = b""
    while words not in text and (part := connection.recv(65536)):
        text += part
    return text


def test_body_that_trickles_is_refused(served: Running) -> None:
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 900\r\n"
    )
    with socket.create_connection(served.address) as one:
        one.sendall(head.encode() + b"Content-Length: 900\r\n\r\n{")
        one.settimeout(0.1)
        answer = b""
        for _ in range(100):  # each byte comes sooner than --body-timeout
            try:
                answer = one.recv(65536)
                break
            except TimeoutError:
                one.sendall(b" ")
        answer += answer_with(one, b"slowly") if b"slowly" not in answer else b""
    assert b" 408 " in answer and b"too slowly" in answer


def test_active_request_outlives_the_head_timeout(served: Running) -> None:
    """A second request on a connection takes longer than a head may."""
    go = threading.Event()
    with served.http() as http:
        assert http.get("/healthz").status_code == 200
        served.worker.call(lambda: go.wait(1.2))
        assert http.post("/v1/embeddings", json={"input": "a"}).status_code == 200
    go.set()


MANY = [str(number) for number in range(900)]
SENTENCES = [f"{number} {{}}" for number in range(12)]
BODIES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "pixels together": ("embeddings", {"input": [png(250), png(250)]}, "input", "100,000 pixels together"),
    "sentences": ("classify", {"image": png(8), "labels": MANY, "templates": SENTENCES}, "labels", "10,800"),
    "synonyms": (
        "classify",
        {"image": png(8), "labels": {"a": MANY * 12, "c": ["d"]}},
        "labels",
        "at most 10,000",
    ),
    "long synonym": ("classify", {"image": png(8), "labels": {"a": ["b" * 101], "c": ["d"]}}, "labels", "101 char"),
    "long template": ("classify", {"image": png(8), "labels": ["a", "b"], "templates": "{}" * 99}, "templates", "198"),
    "sizes": ("images/generations", {"prompt": "a", "n": 10, "size": "300x300"}, "size", "of 10 images"),
    "previews": (
        "images/generations",
        {"prompt": "a", "stream": True, "partial_images": 4, "size": "300x300"},
        "size",
        "5 images with previews",
    ),
    "ten megabytes": ("images/generations", {"prompt": "a" * 10_000_000}, "prompt", "10,000,000 characters"),
    "infinite": ("images/generations", {"prompt": "a", "guidance": "inf"}, "guidance", "finite"),
}


@pytest.mark.parametrize("name", BODIES)
def test_one_request_cannot_ask_for_too_much(served: Running, name: str) -> None:
    path, body, param, message = BODIES[name]
    with served.http() as http:
        answer = http.post(f"/v1/{path}", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and message in error["message"], error


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("path", ["edits", "variations"])
@pytest.mark.parametrize(
    ("fields", "message"), [({"size": "999x999"}, "at most 100,000"), ({"size": "300x300", "n": "5"}, "of 5 images")]
)
def test_a_size_is_refused_before_the_image_is_read(
    path: str, draws: bool, fields: dict[str, str], message: str, served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the model draws it: an image of which a part is kept has the model's own."""
    monkeypatch.setattr(served.worker.pipe, "draws", lambda size: draws)
    files = {"image": ("a.png", b"no image", "image/png")}
    with served.http() as http:
        answer = http.post(f"/v1/images/{path}", files=files, data={"prompt": "a"} | fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == "size" and message in error["message"]


def test_overflowing_number_is_refused(served: Running) -> None:
    with served.http() as http:
        content = b'{"prompt": "a", "temperature": 1e999}'
        answer = http.post("/v1/images/generations", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "temperature"


def test_connections_that_send_nothing_keep_nobody_out(tiny_model: Path) -> None:
    """One that sends a request takes the place of the one that has been silent longest, not of one that is served."""
    go = threading.Event()
    with running(tiny_model, max_connections=4, header_timeout=60) as served, served.http() as http:
        assert http.get("/healthz").status_code == 200  # kept open, and not given up before those that sent nothing
        silent = [socket.create_connection(served.address) for _ in range(9)]
        with served.http() as other, socket.create_connection(served.address) as waiting:
            served.worker.call(lambda: go.wait(60))
            body = b'{"input": "a"}'
            head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            waiting.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert other.get("/healthz").status_code == 200
            silent += [socket.create_connection(served.address) for _ in range(9)]
            assert http.get("/healthz").status_code == 200
            go.set()
            assert waiting.recv(12) == b"HTTP/1.1 200"
        assert all(closed(one) == b"" for one in silent[:12])
        for one in silent:
            one.close()


def test_one_client_cannot_hold_all_requests(tiny_model: Path, tmp_path: Path) -> None:
    """Those whose bodies never come: two of four; another client's go on."""
    (tmp_path / "tokens").write_text("0123456789abcdef-ada\n0123456789abcdef-bob\n")
    head = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
    tokens = {"token_file": tmp_path / "tokens"}
    with running(tiny_model, max_requests=4, **tokens) as served, served.http() as http:
        held = [socket.create_connection(served.address) for _ in range(3)]
        for one in held:
            one.sendall(f"{head}Authorization: Bearer 0123456789abcdef-ada\r\n\r\n".encode())
        (refused,), _, _ = select.select(held, [], [], 20)
        text = answer_with(refused, b"yours")
        assert b" 429 " in text and b"2 requests of yours" in text
        own, other = ({"Authorization": f"Bearer 0123456789abcdef-{name}"} for name in ("ada", "bob"))
        assert http.get("/v1/models", headers=own).status_code == 429
        assert http.post("/v1/embeddings", json={"input": "a"}, headers=other).status_code == 200
        for one in held:
            one.close()


@pytest.mark.slow
def test_ten_thousand_silent_connections_change_nothing_for_others(tiny_model: Path, tiny_pipe: TextToImage) -> None:
    """They give way to one another and to requests; images drawn meanwhile are the same as ever."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 15_000:
        pytest.skip(f"at most {hard} files may be open here, and 15,000 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (15_000, hard))
    silent: list[socket.socket] = []
    try:
        with running(tiny_model, header_timeout=2.0) as served:
            (alone,) = tiny_pipe("a red heart", seed=7)
            for number in range(10_000):
                silent.append(socket.create_connection(served.address))
                if number % 2500 == 2499:
                    (one,) = served.openai().images.generate(prompt="a red heart", extra_body={"seed": 7}).data or ()
                    file = io.BytesIO(base64.b64decode(one.b64_json or ""))
                    assert Image.open(file).convert("RGB").tobytes() == alone.images[0].tobytes()
            end = time.monotonic() + 60
            while served.server.server_state.connections and time.monotonic() < end:
                time.sleep(0.05)
            assert not served.server.server_state.connections
    finally:
        for connection in silent:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_unread_answers_are_dropped(tiny_model: Path) -> None:
    with running(tiny_model, send_timeout=0.3) as served, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect(served.address)
        slow.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 400)
        until(lambda: bool(served.server.server_state.connections))
        until(lambda: not served.server.server_state.connections)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_freed_memory_is_given_back() -> None:
    """Blocks too small to be mapped one by one, freed but for the last, which keeps the heap from shrinking."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    blocks = [b"a" * 50_000 for _ in range(2000)]
    last = blocks[-1]
    del blocks
    before = resident()
    trimmer()()
    assert before - resident() > 50_000_000 and last
