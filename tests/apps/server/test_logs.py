"""What the server tells its operator: a line of JSON for each request, without prompts or tokens; metrics."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from dalle.apps.server.address import check_address
from dalle.apps.server.run import GracefulServer, serve
from dalle.apps.server.settings import ServeConfig
from support.server import running, until

TOKEN = "0123456789abcdef-test"


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The lines of requests; what is told at the start is no JSON."""
    texts = [record.getMessage() for record in caplog.records if record.name == "dalle.server"]
    return [json.loads(text) for text in texts if text.startswith("{")]


@pytest.mark.parametrize("asked", [False, True])
def test_prompts_are_in_the_log_only_if_asked_for(
    asked: bool, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    prompt = "two green stars " * 9  # longer than the model reads, of which a warning could tell
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with (
        caplog.at_level(logging.INFO, logger="dalle.server"),
        running(tiny_model, log_prompts=asked, token_file=tmp_path / "tokens") as served,
        served.http(headers=headers) as http,
    ):
        own = {"prompt": prompt, "n": 2, "user": "ada"}
        assert http.post("/v1/images/generations", json=own).status_code == 200
        assert http.post("/v1/images/generations", json=own | {"n": 0}).status_code == 400
    drawn, refused = lines(caplog)
    assert drawn["status"] == 200 and drawn["images"] == 2 and drawn["user"] == "ada" and drawn["seconds"] > 0
    assert refused["status"] == 400 and drawn["client"] == refused["client"] and drawn["client"].startswith("token ")
    assert (drawn.get("prompt") == prompt) is asked
    assert TOKEN not in caplog.text and ("green" in caplog.text) is asked


def test_metrics_count_requests_images_tokens_and_seconds(tiny_model: Path) -> None:
    with running(tiny_model) as served, served.http() as http:
        for n in (1, 2):
            assert http.post("/v1/images/generations", json={"prompt": "a", "n": n}).status_code == 200
        assert http.post("/v1/images/generations", json={"prompt": "a", "n": 0}).status_code == 400
        text = http.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    path = 'path="/v1/images/generations"'
    assert values[f'dalle_requests_total{{{path},status="200"}}'] == "2"
    assert values[f'dalle_requests_total{{{path},status="400"}}'] == "1"
    assert values[f"dalle_request_seconds_count{{{path}}}"] == "3"
    assert values[f'dalle_request_seconds_bucket{{{path},le="+Inf"}}'] == "3"
    assert values["dalle_images_total"] == "3" and values["dalle_image_tokens_total"] == "48"
    assert {"dalle_queue_images", "dalle_batch_images", "dalle_batch_size_count"} <= values.keys()
    assert float(values["dalle_drawing_seconds_total"]) > 0


def test_wrong_requests_are_one_line_each(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Clients that hang up while they send, forms that are none, what is no HTTP; no other library's word."""
    caplog.set_level(logging.INFO)
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with running(tiny_model) as served, served.http() as http:
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        assert http.post("/v1/images/edits", content=b"--y\r\n", headers=form).status_code == 400
        requests = (
            b"nonsense\r\n\r\n",
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            head + b"Content-Length: 99\r\n\r\n{",
        )
        for number, request in enumerate(requests, 2):
            with socket.create_connection(served.address, timeout=20) as one:
                one.sendall(request)
                if number < 4:
                    assert one.recv(12) == b"HTTP/1.1 400"
                else:
                    until(lambda: bool(served.server.server_state.tasks))
            until(lambda number=number: len(lines(caplog)) >= number)  # type: ignore[misc]
        until(lambda: len(lines(caplog)) == 5)
    statuses = [line["status"] for line in lines(caplog)]
    assert statuses == [400, 400, 400, 499, 499] and lines(caplog)[1]["why"] == "no HTTP"
    others = [record for record in caplog.records if record.name not in ("dalle.server", "httpx")]
    assert not [record.getMessage() for record in others if record.name.startswith(("uvicorn", "python_multipart"))]
    assert "Traceback" not in caplog.text


def test_address_is_logged_once_the_server_listens(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dalle.server")
    with running(tiny_model) as served:
        until(lambda: bool(caplog.text))
        assert f"page: {served.url}/, API: {served.url}/v1;" in caplog.text


def test_taken_port_and_wrong_host_are_refused_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"^port {port} is taken: give another with --port$"):
            serve(ServeConfig(port=port, model="nowhere"))
    for host in ("192.0.2.1", "a..b", "x" * 300):
        with pytest.raises(ValueError, match="give another with --host, such as 127.0.0.1$"):
            serve(ServeConfig(port=0, host=host, model="nowhere"))
    check_address("localhost", 0)


def test_kernels_are_compiled_before_the_server_is_ready(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr("dalle.apps.server.run.prepare", lambda: done.append("compiled"))
    monkeypatch.setattr(GracefulServer, "run", lambda _self: done.append("listening"))
    serve(ServeConfig(model=str(tiny_model), device="cpu", port=0))
    assert done == ["compiled", "listening"]


def test_default_settings_serve_this_machine_only() -> None:
    settings = ServeConfig()
    assert settings.host == "127.0.0.1" and settings.cors == () and not settings.log_prompts
