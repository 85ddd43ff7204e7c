"""report.html: curves, sample images, config and versions of a run in one self-contained file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

from dalle.config import read_yaml, renamed
from dalle.files import write_text
from dalle.images.read import UnreadableImage, decode_image
from dalle.images.transforms import to_rgb
from dalle.training.checkpoint.folders import folders, step_of
from dalle.training.metrics_log import Curve, MetricsLog, charts, read_metrics
from dalle.training.report.svg import can_be_log, color, svg

NAME = "report.html"
_POINTS = 800  # maximum number of points per curve
_IMAGES = 6  # the newest, and earlier ones evenly spaced
_WIDTH = 720  # maximum width of an image in pixels
_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.4 sans-serif;margin:2em auto;max-width:1460px;padding:0 1em}
main,.images{display:flex;flex-wrap:wrap;gap:16px}
.chart{width:460px;margin:0}.chart svg{width:100%;display:block}
.chart h3{font-size:14px;margin:0 0 4px}.key{font-size:12px;margin:0 0 0 58px}
.key span{display:inline-block;margin-right:1em}.key i{display:inline-block;width:14px;height:3px;margin-right:4px;
vertical-align:middle}
polyline{fill:none;stroke-width:1.5}.axis{fill:none;stroke:currentColor}.grid{stroke:currentColor;opacity:.13}
text{font:10px sans-serif;fill:currentColor}
svg.log,#log:checked~main .both svg.linear{display:none}#log:checked~main .both svg.log{display:block}
.images figure{margin:0}.images img{max-width:100%;display:block}figcaption{font-size:13px}
table{border-collapse:collapse;font-size:13px}td,th{padding:2px 12px 2px 0;text-align:right}
td:first-child,th:first-child{text-align:left}
pre{font-size:12px;overflow-x:auto;border:1px solid #8884;padding:8px}.note{opacity:.75}
"""


def write_report(run: Path) -> Path:
    """Write RUN/report.html atomically; returns its path.

    The run may be in progress, and its log empty or incomplete.

    Raises:
        ValueError: `run` is not a run folder, or its config.yaml cannot be read.
        OSError: the file cannot be written.
    """
    config = _config(run)
    metrics = read_metrics(run / "metrics.jsonl")
    body = "\n".join([_head(run, config, metrics), _curves(metrics), _images(run, config), *_origins(run)])
    page = (
        '<!DOCTYPE html>\n<html>\n<head><meta charset="utf-8"/>'
        f"<title>{escape(run.absolute().name)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    write_text(run / NAME, page)
    return run / NAME


def _config(run: Path) -> dict[str, Any]:
    """config.yaml of a run's folder; the folders of models and tokenizers have one too, without `run:`."""
    file = run / "config.yaml"
    config = renamed(read_yaml(file)) if file.is_file() else {}
    if not isinstance(config.get("run"), dict):
        raise ValueError(f"{run}: not the folder of a run (run.dir of a training), which has a config.yaml with `run:`")
    return config


def _head(run: Path, config: dict[str, Any], metrics: MetricsLog) -> str:
    """The heading of the report: stage, folder and progress of the run."""
    status = [f"Stage {config.get('stage')}, step {metrics.last} of {config['run'].get('steps')}"]
    log = run / "metrics.jsonl"
    if log.exists():
        written = datetime.fromtimestamp(log.stat().st_mtime, timezone.utc)
        status.append(f"last logged {written:%Y-%m-%d %H:%M} UTC")
    saved = folders(run)
    status.append(f"newest checkpoint: step {step_of(saved[-1])}" if saved else "no checkpoint yet")
    lines = [f"<h1>{escape(run.absolute().name)}</h1>", f"<p>{escape('; '.join(status))}.</p>"]
    if metrics.unreadable:
        lines.append(_note(f"Lines of metrics.jsonl that cannot be read and are left out: {metrics.unreadable}."))
    if metrics.not_finite:
        lines.append(_note(f"Values that are not finite and are not drawn: {metrics.not_finite}."))
    return "\n".join(lines)


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _curves(metrics: MetricsLog) -> str:
    if not metrics.curves:
        return _note("Nothing is logged yet.")
    downsampled = [curve.downsampled(_POINTS) for curve in metrics.curves.values()]
    drawn = "\n".join(_chart(title, curves, metrics.last) for title, curves in charts(downsampled))
    rows = "\n".join(_row(curve) for curve in downsampled)
    return (
        '<input type="checkbox" id="log"/> <label for="log">logarithmic scale, where all values are positive</label>\n'
        f"<main>\n{drawn}\n</main>\n<h2>Metrics</h2>\n<table>\n"
        "<tr><th>metric</th><th>last</th><th>lowest</th><th>at step</th><th>highest</th><th>at step</th></tr>\n"
        f"{rows}\n</table>"
    )


def _chart(title: str, curves: Sequence[Curve], last: int) -> str:
    key = "".join(
        f'<span><i style="background:{color(number)}"></i>{escape(curve.name)}</span>'
        for number, curve in enumerate(curves)
    )
    both = can_be_log(curves)
    drawings = svg(title, curves, last) + (svg(title, curves, last, log=True) if both else "")
    kind = "chart both" if both else "chart"
    return f'<section class="{kind}"><h3>{escape(title)}</h3>{drawings}<p class="key">{key}</p></section>'


def _row(curve: Curve) -> str:
    cells = [f"{curve.values[-1]:.6g}"]
    for value in (min(curve.values), max(curve.values)):
        cells += [f"{value:.6g}", str(curve.steps[curve.values.index(value)])]
    return f"<tr><td>{escape(curve.name)}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _images(run: Path, config: dict[str, Any]) -> str:
    """Sample images, newest first, with the prompts of their rows."""
    files = sorted((run / "samples").glob("[!.]*.png"), reverse=True)  # atomic_file names unfinished files .part-*
    if not files:
        return ""
    count = min(_IMAGES, len(files))
    # The newest and the oldest included
    chosen = dict.fromkeys(files[round(n * (len(files) - 1) / max(1, count - 1))] for n in range(count))
    metrics = "\n".join(_image(file) for file in chosen)
    prompts = [str(prompt) for prompt in config.get("prompts") or ()]
    if prompts:
        items = "".join(f"<li>{escape(prompt)}</li>" for prompt in prompts)
        explanation = f"<p>A row for each prompt, from the top, with the same seeds each time:</p>\n<ol>{items}</ol>"
    else:
        explanation = "<p>Rows in turn: images of the validation split, and below them their reconstructions.</p>"
    return f'<h2>Samples</h2>\n{explanation}\n<div class="images">\n{metrics}\n</div>'


def _image(file: Path) -> str:
    title = f"step {int(file.stem)}" if file.stem.isdecimal() else file.name
    try:
        small = to_rgb(decode_image(file.read_bytes()))
    except (OSError, UnreadableImage) as error:  # truncated, or not an image
        return f"<figure>{_note(f'{title}: {file.name} cannot be read ({error})')}</figure>"
    small.thumbnail((_WIDTH, 10 * _WIDTH))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    data = base64.b64encode(buffer.getvalue()).decode()
    image = f'<img alt="{escape(title)}" src="data:image/jpeg;base64,{data}"/>'
    return f"<figure>{image}<figcaption>{escape(title)}</figcaption></figure>"


def _origins(run: Path) -> list[str]:
    """The files that describe how to reproduce the run, verbatim."""
    sources = (("Config", "config.yaml"), ("Versions and hashes", "origin.yaml"))
    texts = [(title, run / name) for title, name in sources if (run / name).is_file()]
    return [
        f"<h2>{title}</h2>\n<pre>{escape(file.read_text(encoding='utf-8', errors='replace'))}</pre>"
        for title, file in texts
    ]
