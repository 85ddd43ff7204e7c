"""What is wrong is refused in OpenAI's shape, with its status and the name of the field; others are served on."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from dalle.apps.server.settings import ServeConfig
from dalle.pipelines.familiarity import unfamiliar_words, word_nats
from dalle.pipelines.text_to_image import TextToImage
from dalle.text_tokenizers import SentencePieceTokenizer
from support.server import Running, running

TOKEN = "0123456789abcdef-test"


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[Running]:
    with running(tiny_model, max_body=2_000_000, max_prompt=1000, header_timeout=0.5, max_connections=64) as one:
        yield one


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose head promises many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9999)) + chunk(b"IEND", b"")
    )


JSON: dict[str, tuple[dict[str, Any], str, str]] = {
    "no prompt": ({}, "prompt", "prompt: field required"),
    "n 0": ({"prompt": "a", "n": 0}, "n", "greater than or equal to 1"),
    "n beyond 64 bits": ({"prompt": "a", "n": 10**400}, "n", "given: 1000"),
    "null": ({"prompt": None}, "prompt", "prompt: field required"),
    "n huge": ({"prompt": "a", "n": 10**9}, "n", "at most 10 images"),
    "n text": ({"prompt": "a", "n": "many"}, "n", "n: "),
    "unknown field": ({"prompt": "a", "gidance": 3}, "gidance", "there is no field gidance"),
    "true n": ({"prompt": "a", "n": True}, "n", "true and false are no value"),
    "true seed": ({"prompt": "a", "seed": False}, "seed", "true and false are no value"),
    "true guidance": ({"prompt": "a", "guidance": True}, "guidance", "true and false are no value"),
    "lines in a field's name": ({"prompt": "a", "x\ny\u202e": 1}, "x\\ny\\u202e", "there is no field x\\ny\\u202e"),
    "size": ({"prompt": "a", "size": "big"}, "size", "size: give WIDTHxHEIGHT"),
    "size in other digits": ({"prompt": "a", "size": "٣٢x٣٢"}, "size", "size: give WIDTHxHEIGHT"),
    "huge size": ({"prompt": "a", "size": "99999x99999"}, "size", "pixels"),
    "zero size": ({"prompt": "a", "size": "0x64"}, "size", "pixels"),
    "top_k": ({"prompt": "a", "top_k": 0}, "top_k", "top_k is 0"),
    "temperature": ({"prompt": "a", "temperature": -1}, "temperature", "temperature is -1"),
    "tiny temperature": ({"prompt": "a", "temperature": 1e-300}, "temperature", "or at least 1e-09"),
    "seed": ({"prompt": "a", "seed": -1}, "seed", "seed: "),
    "seed that was rounded": ({"prompt": "a", "seed": 9007199254740994.0}, "seed", "write all digits"),
    "last seed": ({"prompt": "a", "seed": 2**63 - 1, "n": 2}, "seed", "the last must be"),
    "fewer candidates": ({"prompt": "a", "n": 4, "candidates": 2}, "candidates", "as many at least"),
    "candidates": ({"prompt": "a", "candidates": 10**6}, "candidates", "at most 64"),
    "format": ({"prompt": "a", "output_format": "gif"}, "output_format", "output_format: "),
    "transparent": ({"prompt": "a", "background": "transparent"}, "background", "background: "),
    "partial": ({"prompt": "a", "partial_images": 2}, "partial_images", "goes with stream"),
    "long prompt": ({"prompt": "a" * 1001}, "prompt", "1,001 characters"),
    "negative": ({"prompt": "a", "negative": "blurry"}, "negative", "takes no negative prompt"),
    "long negative": ({"prompt": "a", "negative": "a" * 1001}, "negative", "1,001 characters"),
    "NUL": ({"prompt": "a\0b"}, "prompt", "prompt: it has a NUL character: remove it"),
    "NUL in negative": ({"prompt": "a", "negative": "\0"}, "negative", "NUL character"),
    "prompt list": ({"prompt": ["a"]}, "prompt", "prompt: "),
}


@pytest.mark.parametrize("name", JSON)
def test_wrong_json_fields_are_named(served: Running, name: str) -> None:
    body, param, message = JSON[name]
    with served.http() as http:
        answer = http.post("/v1/images/generations", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and error["type"] == "invalid_request_error"
    assert message.lower() in error["message"].lower() and "\n" not in error["message"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "message"),
    [
        (b"{", "application/json", 400, "no JSON"),
        (b"[" * 100_000, "application/json", 400, "nested too deeply"),
        (b"\xff\xfe", "application/json", 400, "not in UTF-8"),
        (b'{"prompt": "a", "n": ' + b"9" * 6000 + b"}", "application/json", 400, "a number has too many digits"),
        (b'{"prompt": "a", "guidance": NaN}', "application/json", 400, "no JSON"),
        (b'{"prompt": "\\ud83d"}', "application/json", 400, "half of a surrogate pair"),
        (b'{"prompt": "\xed\xa0\xbd"}', "application/json", 400, "no JSON"),
        (b'{"\\udc00": 1}', "application/json", 400, "half of a surrogate pair"),
        ('{"prompt": "a"}'.encode("utf-16"), "application/json", 400, "no JSON"),
        (b'{"prompt": "a", "' + b"x" * 9999 + b'": 1}', "application/json", 400, "there is no field " + "x" * 100),
        (b"[]", "application/json", 400, "no JSON object"),
        (b"null", "application/json", 400, "no JSON object"),
        (b'{"prompt": "a", "n": 1, "prompt": "b"}', "application/json", 400, "prompt is there twice"),
        (b"{}", "text/plain", 415, "text/plain"),
        (b'{"prompt": "' + b"a" * 2_000_000 + b'"}', "application/json", 413, "2,000,000 bytes"),
    ],
)
def test_wrong_bodies_are_refused(served: Running, content: bytes, kind: str, status: int, message: str) -> None:
    with served.http() as http:
        answer = http.post("/v1/images/generations", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status and message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"image": "", "labels": ["a"]}, "labels", "labels: give 2 at least (given: ['a'])"),
        ({"image": "", "labels": {"a": [], "b": [3]}}, "labels.0", "valid string (given: 3)"),
        ({"image": "", "labels": ["a", "b\0"]}, "labels", "labels: it has a NUL character"),
        ({"image": "", "labels": {"a": ["b", "\0"], "c": ["d"]}}, "labels", "labels: it has a NUL character"),
        ({"image": 5, "labels": ["a", "b"]}, "image", "image: Input should be a valid string (given: 5)"),
        ({"image": ["", 3], "labels": ["a", "b"]}, "image.1", "image.1: Input should be a valid string (given: 3)"),
    ],
)
def test_fields_of_several_types_are_named_without_the_types(
    served: Running, body: dict[str, Any], param: str, message: str
) -> None:
    with served.http() as http:
        error = http.post("/v1/classify", json=body).json()["error"]
    assert error["param"] == param and message in error["message"]


def test_forms_that_are_cut_off_are_refused(served: Running) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\na\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with served.http() as http:
        for content in (part % b"prompt" + part % b"seed", part % b"prompt" + (part % b"seed")[:-3]):
            answer = http.post("/v1/images/variations", content=content, headers=headers)
            assert answer.status_code == 400 and "cut off" in answer.json()["error"]["message"]


def multipart(*parts: tuple[bytes, bytes], tail: bytes = b"--x--\r\n") -> bytes:
    """A form of the heads and contents of its parts, between boundaries x."""
    return b"".join(b"--x\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % part for part in parts) + tail


IMAGE = (b'name="image"; filename="a.png"', png(16, 16))
FORMS: dict[str, tuple[bytes, str, int, str]] = {
    "latin": (multipart((b'name="prompt"', b"\xe9"), IMAGE), "", 400, "prompt is not in UTF-8"),
    "name in bytes": (multipart((b'name="\xff"', b"a"), IMAGE), "", 400, "name of a field is not in UTF-8"),
    "UTF-16": (multipart(IMAGE), "; charset=utf-16", 415, "charset is utf-16"),
    "no charset": (multipart(IMAGE), '; charset="a\u0300"', 415, "send it in UTF-8"),
    "ends as a boundary does": (multipart(IMAGE, (b'name="user"', b"a--"), tail=b"")[:-2], "", 400, "cut off"),
    "file name in RFC 5987's form": (
        multipart((b"name=\"image\"; filename*=UTF-8''a.png", png(16, 16))), "", 400, "send it as a file"
    ),
    "no boundary": (multipart(IMAGE), "; boundary=y", 400, "form cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_odd_forms_are_refused(served: Running, name: str) -> None:
    content, more, status, message = FORMS[name]
    headers = {"Content-Type": f"multipart/form-data; boundary=x{more}".encode()}
    with served.http() as http:
        answer = http.post("/v1/images/variations", content=content, headers=headers)
    assert answer.status_code == status and message in answer.json()["error"]["message"], answer.text


@pytest.mark.parametrize(
    ("prompt", "charset"), [("दिल ü".encode(), ""), ("ü".encode("latin-1"), "; charset=ISO-8859-1")]
)
def test_forms_are_read_in_their_charset(served: Running, prompt: bytes, charset: str) -> None:
    """With words after the last boundary, which are no part of a form, and a file whose name turns the text around."""
    file = ('name="image"; filename="\u202eदिल.png"'.encode(), png(16, 16))
    content = multipart((b'name="prompt"', prompt), (b'name="seed"', b"3"), file, tail=b"--x--\r\nand so on" * 20)
    with served.http() as http:
        headers = {"Content-Type": f"multipart/form-data{charset}; boundary=x"}
        answer = http.post("/v1/images/variations", content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    drawn = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
    assert drawn.text["prompt"] == prompt.decode("latin-1" if charset else "utf-8")  # type: ignore[attr-defined]


def test_image_as_text_is_asked_for_as_a_file(served: Running) -> None:
    with served.http() as http:
        answer = http.post("/v1/images/variations", files={"image": (None, "cat.png")})
    assert answer.status_code == 400 and "send it as a file" in answer.json()["error"]["message"]


def test_packed_bodies_are_refused(served: Running) -> None:
    with served.http() as http:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        answer = http.post("/v1/images/generations", content=gzip.compress(b'{"prompt": "a"}'), headers=headers)
    assert answer.status_code == 415 and "gzip" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/docs", "/static/app.js", "/v1/models", "/healthz", "/readyz", "/metrics"])
def test_head_is_get_without_the_body(served: Running, path: str) -> None:
    with served.http() as http:
        head, get = http.head(path), http.get(path)
    assert head.status_code == get.status_code == 200 and head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("HEAD", "/v1/paint", "POST"), ("PUT", "/v1/images/generations", "POST"), ("DELETE", "/v1/models", "GET")],
)
def test_refused_methods_say_what_is_allowed(served: Running, method: str, path: str, allowed: str) -> None:
    with served.http() as http:
        answer = http.request(method, path)
    assert answer.status_code == 405 and answer.headers["allow"] == allowed


def exchange(served: Running, request: str) -> tuple[str, dict[str, Any]]:
    """The head and the JSON that are the answer to the bytes of a request."""
    with socket.create_connection(served.address, timeout=20) as one:
        one.sendall(request.encode())
        answer = b""
        while part := one.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode(), json.loads(body)


def test_targets_may_be_whole_urls(served: Running) -> None:
    """The host of the target counts, not the header's: a name that is not this machine's reads nothing."""
    tail = " HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n"
    head, content = exchange(served, "GET http://localhost:8000/v1/models" + tail.format("example.org"))
    assert head.startswith("HTTP/1.1 200") and content["object"] == "list"
    head, content = exchange(served, "GET HTTP://localhost/v1/models/x%2Fy?a=b" + tail.format("localhost"))
    assert head.startswith("HTTP/1.1 404") and "x/y" in content["error"]["message"]
    head, content = exchange(served, "GET http://example.org/v1/models" + tail.format("localhost"))
    assert head.startswith("HTTP/1.1 403") and content["error"]["code"] == "wrong_host"


@pytest.mark.parametrize("request_", ["nonsense\r\n\r\n", "GET /v1/models\r\n\r\n", "GET / HTTP/1.1\r\n: x\r\n\r\n"])
def test_invalid_http_is_refused_in_the_shape_of_all_errors(served: Running, request_: str) -> None:
    head, content = exchange(served, request_)
    assert head.startswith("HTTP/1.1 400") and "application/json" in head
    assert content["error"]["type"] == "invalid_request_error" and "no HTTP" in content["error"]["message"]


def test_chunked_bodies_are_limited_too(served: Running) -> None:
    with served.http() as http:
        chunks = (b"a" * 500_000 for _ in range(10))
        answer = http.post("/v1/images/generations", content=chunks, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


HALF = Image.new("RGBA", (16, 16))
IMAGES: dict[str, tuple[dict[str, bytes], dict[str, str], str, str]] = {
    "text": ({"image": b"hello"}, {}, "image", "not an image"),
    "nothing": ({"image": b""}, {}, "image", "empty"),
    "postscript": ({"image": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, {}, "image", "not an image"),
    "bomb": ({"image": bomb(60_000, 60_000)}, {}, "image", "more than 16,777,216 pixels"),
    "cut": ({"image": png(16, 16)[:50]}, {}, "image", "decoded"),
    "huge mask": ({"image": png(16, 16), "mask": bomb(20_000, 20_000)}, {}, "mask", "more than 16,777,216 pixels"),
    "opaque mask": ({"image": png(16, 16), "mask": png(16, 16)}, {}, "mask", "no transparent pixel"),
    "opaque image": ({"image": png(16, 16)}, {}, "image", "or send a mask, or keep_rows"),
    "mask of another size": ({"image": png(16, 16), "mask": png(8, 8, "RGBA")}, {}, "mask", "8x8"),
    "all rows": ({"image": png(16, 16)}, {"keep_rows": "4"}, "keep_rows", "keep_rows is 4"),
    "no image": ({"mask": png(16, 16, "RGBA")}, {}, "image", "missing"),
    "another file": ({"image": png(16, 16), "photo": png(16, 16)}, {}, "photo", "no file photo"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_wrong_images_are_refused(served: Running, name: str) -> None:
    files, fields, param, message = IMAGES[name]
    with served.http() as http:
        form = {key: (f"{key}.png", data, "image/png") for key, data in files.items()}
        answer = http.post("/v1/images/edits", files=form, data={"prompt": "a"} | fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and message in error["message"]


def test_wrong_forms_are_refused(served: Running) -> None:
    with served.http() as http:
        answer = http.post("/v1/images/edits", content=b"nothing", headers={"Content-Type": "multipart/form-data"})
        assert answer.status_code == 400 and "form cannot be read" in answer.json()["error"]["message"]
        two = [("image[]", ("a.png", png(16, 16))), ("image[]", ("b.png", png(16, 16)))]
        answer = http.post("/v1/images/edits", files=two, data={"prompt": "a", "keep_rows": "1"})
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"] == "image" and "2 files in image" in error["message"]
        assert http.get("/v1/images/generations").status_code == 405
        assert http.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
        bad = {"image": "####", "labels": ["a", "b"]}
        assert http.post("/v1/classify", json=bad).json()["error"]["param"] == "image"
        eps = base64.b64encode(b"%!PS-Adobe").decode()
        assert http.post("/v1/classify", json=bad | {"image": eps}).status_code == 400
        assert http.post("/v1/embeddings", json={"input": ""}).json()["error"]["param"] == "input"


def test_empty_prompts_are_generated_and_long_ones_noted(served: Running) -> None:
    with served.http() as http:
        assert "notes" not in http.post("/v1/images/generations", json={"prompt": ""}).json()
        note, *_ = http.post("/v1/images/generations", json={"prompt": "a red heart " * 20}).json()["notes"]
    assert "reads the first 12" in note


def test_words_that_the_model_has_hardly_seen_are_noted(
    tiny_model: Path, tiny_pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the answer and in the last events of a stream, for the prompt that has them."""
    tokenizer = tiny_pipe.text_tokenizer
    assert isinstance(tokenizer, SentencePieceTokenizer)
    (scored,) = word_nats(tiny_pipe.model, tokenizer, ["a red heart"])
    word, most = max(scored, key=lambda pair: pair[1])
    below = partial(unfamiliar_words, threshold=most - 1e-3)
    monkeypatch.setattr("dalle.apps.server.batch.unfamiliar_words", below)
    body = {"prompt": "a red heart", "n": 2}
    with running(tiny_model) as one, one.http() as http:
        (note,) = http.post("/v1/images/generations", json=body).json()["notes"]
        assert note.startswith("words that the model has hardly seen") and note.endswith(f": {word}")
        for more in ({}, {"n": 1, "candidates": 2}):
            lines = http.post("/v1/images/generations", json=body | {"stream": True} | more).text.splitlines()
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
            assert events and all(event["notes"] == [note] for event in events)
        assert "notes" not in http.post("/v1/images/generations", json={"prompt": ""}).json()


def test_requests_need_a_token_of_the_token_file(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"# ours\n{TOKEN} # Ada's\n")
    with running(tiny_model, token_file=tmp_path / "tokens") as served:
        assert served.openai(TOKEN).images.generate(prompt="a").data
        with pytest.raises(openai.AuthenticationError):
            served.openai("wrong").images.generate(prompt="a")
        with served.http() as http:
            answer = http.post("/v1/images/generations", json={"prompt": "a"})
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
            assert http.get("/metrics").status_code == 401 and http.get("/healthz").status_code == 200
    (tmp_path / "tokens").write_text("short\n")
    with pytest.raises(ValueError, match="fewer than 16"), running(tiny_model, token_file=tmp_path / "tokens"):
        pass


@pytest.mark.parametrize("trusted", [False, True])
def test_clients_behind_a_proxy_are_distinguished(tiny_model: Path, trusted: bool) -> None:
    """By what the proxy adds, the last entry; what a client writes before it counts for nothing."""
    with running(tiny_model, trust_proxy=trusted, max_per_client=2) as served, served.http() as http:
        seen: list[str] = []
        add = served.worker.queue.add
        served.worker.queue.add = lambda job: (seen.append(job.client), add(job))[1]  # type: ignore[method-assign]
        for address in ("10.0.0.1, 203.0.113.7", "203.0.113.8"):
            headers = {"X-Forwarded-For": address}
            assert http.post("/v1/images/generations", json={"prompt": "a"}, headers=headers).status_code == 200
    assert seen == (["203.0.113.7", "203.0.113.8"] if trusted else ["127.0.0.1"] * 2)


def test_cross_origin_requests_are_refused_unless_allowed(tiny_model: Path, served: Running) -> None:
    origin = {"Origin": "https://example.org"}
    with served.http() as http:
        assert "access-control-allow-origin" not in http.get("/v1/models", headers=origin).headers
    with running(tiny_model, cors=("https://example.org",)) as told, told.http() as http:
        assert http.get("/v1/models", headers=origin).headers["access-control-allow-origin"] == origin["Origin"]


def test_silent_and_too_many_connections_are_closed(served: Running) -> None:
    silent = [socket.create_connection(served.address) for _ in range(80)]
    slow = socket.create_connection(served.address)
    try:
        for one in silent:
            one.settimeout(20)
            with contextlib.suppress(ConnectionError):  # closed at once
                assert one.recv(1) == b""
        with served.http() as http:
            assert http.get("/healthz").status_code == 200
    finally:
        for one in (*silent, slow):
            one.close()


def test_clients_that_do_not_read_are_disconnected(tiny_model: Path) -> None:
    with running(tiny_model, send_timeout=0.3) as served, socket.socket() as slow:
        with served.http() as http:
            assert http.get("/healthz").status_code == 200
        # Buffers of the system that an image does not fit into
        served.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect(served.address)
        body = b'{"prompt": "a", "size": "1000x1000"}'
        head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        with served.openai() as other:
            assert other.images.generate(prompt="b").data
        deadline = time.monotonic() + 60
        while served.server.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not served.server.server_state.connections
        received = b""
        with contextlib.suppress(ConnectionError):
            while part := slow.recv(65536):
                received += part
        assert received.startswith(b"HTTP/1.1 200") and len(received) < 65536


def test_settings_out_of_range_are_refused() -> None:
    for wrong, message in (({"max_batch": 0}, "max_batch is 0"), ({"port": 70_000}, "port is 70000")):
        with pytest.raises(ValueError, match=message):
            ServeConfig(**wrong)  # type: ignore[arg-type]
