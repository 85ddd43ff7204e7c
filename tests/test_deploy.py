"""What deploys the server (deploy/): its commands parse, its files exist, its times fit together."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from dalle.__main__ import _parse as parse
from dalle.apps.server.settings import ServeConfig

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions and their arguments, without comments and line ends."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the checkout out of the build."""
    patterns = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert not any(pattern.startswith("!") for pattern in patterns)  # which this does not know
    parents = ["/".join(path.split("/")[: i + 1]) for i in range(path.count("/") + 1)]
    anywhere = [pattern.removeprefix("**/") for pattern in patterns if pattern.startswith("**/")]
    names = [(one, patterns) for one in parents] + [(part, anywhere) for part in path.split("/")]
    return any(fnmatch.fnmatch(name, pattern) for name, those in names for pattern in those)


def test_dockerfile_copies_what_is_there_and_what_the_wheel_needs() -> None:
    stages = [rest.split(" AS ")[1] for word, rest in dockerfile() if word == "FROM" and " AS " in rest]
    copied: list[str] = []
    for word, rest in dockerfile():
        if word not in ("COPY", "ADD"):
            continue
        options = [part for part in rest.split() if part.startswith("--")]
        *sources, _ = [part for part in rest.split() if not part.startswith("--")]
        if options:
            assert [option.removeprefix("--from=") for option in options] == stages
        else:
            assert all((ROOT / source).exists() for source in sources)
            copied += sources
    assert copied == ["."]
    config = (ROOT / "pyproject.toml").read_text("utf-8")
    needed = ["pyproject.toml", "constraints.txt", "README.md", "LICENSE", "dalle/apps/server/page/index.html"]
    needed += ["train.py", "sample.py", "configs", "tokenizers/emoji-bpe", "models/emoji/model.safetensors"]
    for path in needed:
        assert (ROOT / path).exists() and not ignored(path), path
    assert all(f'"{name}"' in config for name in ("train.py", "sample.py", "configs", "tokenizers", "models"))
    assert ignored(".git") and ignored("data/emoji/train.parquet") and ignored("dalle/__pycache__")


def serve(arguments: list[str]) -> ServeConfig:
    """The settings of a command `dalle serve`."""
    assert arguments[:2] == ["dalle", "serve"]
    found = vars(parse(arguments[1:]))
    names = ServeConfig.__dataclass_fields__
    return ServeConfig(**{name: value for name, value in found.items() if name in names})


def test_container_serves_all_interfaces_as_no_root() -> None:
    steps = dockerfile()
    (entry,), (user,), (port,) = (
        [rest for word, rest in steps if word == key] for key in ("ENTRYPOINT", "USER", "EXPOSE")
    )
    settings = serve(json.loads(entry))
    assert settings.host == "0.0.0.0" and settings.port == int(port) and int(user) > 0
    (check,) = [rest for word, rest in steps if word == "HEALTHCHECK"]
    assert f"http://127.0.0.1:{port}/healthz" in check


def test_kubernetes_waits_for_running_requests() -> None:
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8"))
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    settings = serve(["dalle", "serve", *container["args"]])
    assert spec["terminationGracePeriodSeconds"] > settings.stop_timeout and settings.trust_proxy
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": settings.port}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": settings.port}
    assert container["securityContext"]["readOnlyRootFilesystem"] and spec["securityContext"]["runAsNonRoot"]
    assert service["spec"]["ports"][0]["targetPort"] == settings.port
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_systemd_unit_waits_for_running_requests() -> None:
    lines = (DEPLOY / "dalle.service").read_text("utf-8").splitlines()
    values = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))
    program, *arguments = shlex.split(values["ExecStart"])
    settings = serve([Path(program).name, *arguments])
    assert int(values["TimeoutStopSec"]) > settings.stop_timeout and values["DynamicUser"] == "yes"
    assert settings.token_file is not None and settings.host == "127.0.0.1"


def test_nginx_waits_longer_than_the_server_and_takes_as_much() -> None:
    text = (DEPLOY / "nginx.conf").read_text("utf-8")

    def value(name: str) -> int:
        found = re.search(rf"{name} (\d+)[a-z]*;", text)
        assert found is not None
        return int(found[1])

    settings = ServeConfig()
    assert value("proxy_read_timeout") > settings.request_timeout
    assert value("client_max_body_size") * 10**6 >= settings.max_body
    assert f"server 127.0.0.1:{settings.port};" in text and "proxy_buffering off" in text


@pytest.mark.parametrize("name", ["Dockerfile", "dalle.service", "kubernetes.yaml", "nginx.conf", "ray_serve.py"])
def test_documentation_names_every_file(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs/serve.md").read_text("utf-8")
