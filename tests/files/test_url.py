"""URLs that are given in place of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from dalle.files import missing_path, url_of


@pytest.mark.parametrize("url", ["https://example.org/a.png", "http://example.org", "HTTPS://example.org/a?b=c&d"])
def test_a_url_is_found_as_text_and_as_path(url: str) -> None:
    assert url_of(url) == url_of(Path(url)) == url
    message = f"{url} is a URL, which is not fetched: download it and give the file"
    assert missing_path(Path(url), "no such image") == message


@pytest.mark.parametrize("path", ["a.png", "https", "https:", "a/https://b", "/https:/b", "httpsx://a", ""])
def test_paths_are_no_urls(path: str) -> None:
    assert url_of(path) is None
    assert missing_path(path, "no such image") == "no such image"
