"""The page: its files and headers; and, slow, what it does in a browser."""

from __future__ import annotations

import re
from pathlib import Path

from support.server import running
from support.tiny_model import make_tiny_model


def test_page_refers_to_no_other_host(tmp_path: Path) -> None:
    with running(make_tiny_model(tmp_path)) as served, served.http() as http:
        page = http.get("/")
        assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
        links = re.findall(r'(?:src|href)="([^"]*)"', page.text)
        files = [link for link in links if not link.startswith("data:")]
        assert sorted(files) == ["/static/app.js", "/static/style.css"]
        for answer in [page, *(http.get(file) for file in files)]:
            assert answer.status_code == 200 and not re.search(r"https?://|\burl\(|@import", answer.text)
            policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
            assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
            assert policy["connect-src"] == "'self'" and policy["img-src"] == "'self' data: blob:"
        assert http.get("/static/../app.py").status_code == 404
