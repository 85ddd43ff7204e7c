"""A server under load, batching against one image at a time: python benchmarks/serve.py [--soak MINUTES]

Clients in a closed loop: each sends its next request when the last is answered. Two servers of the same model run in
processes of their own, one with batches and one with --max-batch 1, and take turns, so that what else the machine does
meets both; compare the rates of one row. With --soak there is one server, near its limits: clients stream, hang up, and
send more than may wait. It ends with 1 and says what is wrong unless every image is the one that it is alone, every
request has one answer with each of its images once, nothing is left, and the server's memory has not grown.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("serve.py")

import httpx
from PIL import Image

from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool

PROMPTS = ("a red heart", "a palm tree", "a blue fish, 3d style", "लाल दिल", "रातो मुटु", "a smiling face", "")
CLIENTS = (1, 4, 16, 64)
_GROWTH = 1.05  # of the memory, from the second quarter of a soak to the last, that counts as none
_OPTIONS: tuple[dict[str, Any], ...] = (
    *({}, {"guidance": 2.0}, {"temperature": 0.7}),
    *({"top_k": 50}, {"guidance": 1.0, "top_p": 0.9}),
)


@dataclass
class Server:
    """A server in a process of its own."""

    url: str
    process: subprocess.Popen[bytes]
    peaks: list[float] = field(default_factory=list)

    def memory(self, entry: str = "VmRSS") -> float:
        """MB that the process holds, or (VmHWM) has held."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(entry + ":"):
                return int(line.split()[1]) / 1000
        return 0.0


@contextmanager
def server(*options: str) -> Iterator[Server]:
    """Start `dalle serve` and wait until it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    waits = ("--request-timeout", "3600", "--send-timeout", "600", "--body-timeout", "600")  # on a busy machine
    command = [sys.executable, "-m", "dalle", "serve", "--port", str(port), *waits, *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    one = Server(f"http://127.0.0.1:{port}", process)
    try:
        while not _ready(one.url):
            if process.poll() is not None:
                raise SystemExit(f"the server ended: {' '.join(command)}")
            time.sleep(0.2)
        yield one
    finally:
        process.terminate()
        process.wait(30)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


async def closed_loop(url: str, clients: int, seconds: float, body: Callable[[], dict[str, Any]]) -> list[float]:
    """Seconds of each request that was begun in this time, of so many clients at once."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def client(http: httpx.AsyncClient) -> None:
        while time.perf_counter() < end:
            start = time.perf_counter()
            answer = await http.post("/v1/images/generations", json=body())
            answer.raise_for_status()
            times.append(time.perf_counter() - start)

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return times


def measure(one: Server, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Images a second, and the times of the requests."""
    start = time.perf_counter()
    times = asyncio.run(closed_loop(one.url, clients, seconds, lambda: {"prompt": random.choice(PROMPTS)}))
    return len(times) / (time.perf_counter() - start), times


def compare(seconds: float, rounds: int, options: list[str]) -> None:
    """The table of both servers."""
    with ExitStack() as stack:
        both = {
            "batches": stack.enter_context(server(*options)),
            "one at a time": stack.enter_context(server("--max-batch", "1", *options)),
        }
        for one in both.values():
            measure(one, 2, 1)
        print(
            "| clients | | images/s | ratio | p50 | p95 | memory, peak |\n| --- | --- | --- | --- | --- | --- | --- |"
        )
        for clients in CLIENTS:
            rates: dict[str, list[float]] = {name: [] for name in both}
            times: dict[str, list[float]] = {name: [] for name in both}
            for _ in range(rounds):
                for name, one in both.items():
                    rate, found = measure(one, clients, seconds)
                    rates[name].append(rate)
                    times[name] += found
            ratio = statistics.median(a / b for a, b in zip(*rates.values(), strict=True))
            for name, one in both.items():
                cuts = statistics.quantiles(times[name], n=20, method="inclusive") if len(times[name]) > 1 else []
                p50, p95 = (cuts[9], cuts[18]) if cuts else (times[name][0], times[name][0])
                shown = f"{ratio:.2f}" if name == "batches" else ""
                rate = statistics.median(rates[name])
                memory = one.memory("VmHWM")
                print(f"| {clients} | {name} | {rate:.2f} | {shown} | {p50:.2f} s | {p95:.2f} s | {memory:,.0f} MB |")


def bodies(count: int) -> list[dict[str, Any]]:
    """Different requests, the same in every run."""
    own = random.Random(0)
    found = []
    for seed in range(count):
        body: dict[str, Any] = {"prompt": own.choice(PROMPTS), "seed": 1000 * seed, "n": own.choice((1, 1, 2))}
        body |= own.choice(
            ({}, {"guidance": 2.0}, {"temperature": 0.7}, {"top_k": 50}, {"guidance": 1.0, "top_p": 0.9})
        )
        found.append(body)
    return found


def images_of(found: list[dict[str, Any]]) -> list[tuple[int, bytes]]:
    """Seeds and pixels of images of an answer, or of a stream's last events, in the order of the seeds."""
    files = sorted((one["seed"], base64.b64decode(one["b64_json"])) for one in found)
    return [(seed, Image.open(io.BytesIO(file)).convert("RGB").tobytes()) for seed, file in files]


def drawn_alone(requests: list[dict[str, Any]], model: str | None) -> list[list[tuple[int, bytes]]]:
    """Seeds and pixels that each request gives by itself, one image at a time."""
    from dalle import TextToImage

    pipe, found = TextToImage.from_pretrained(model, device="cpu"), []
    for request in requests:
        options = {key: value for key, value in request.items() if key not in ("prompt", "seed", "n")}
        seeds = range(request["seed"], request["seed"] + request["n"])
        found.append([(s, pipe(request["prompt"], seed=s, **options)[0].images[0].tobytes()) for s in seeds])
    return found


async def soak(
    one: Server, clients: int, seconds: float, alone: list[list[tuple[int, bytes]]]
) -> tuple[Counter[str], list[float]]:
    """Clients at the limit; how often what happened, and the server's memory over time, in MB."""
    counts: Counter[str] = Counter()
    memory: list[float] = []
    requests, end = bodies(len(alone)), time.perf_counter() + seconds

    async def client(http: httpx.AsyncClient, number: int) -> None:
        own = random.Random(number)
        while time.perf_counter() < end:
            which, kind = own.randrange(len(requests)), own.random()
            counts["sent"] += 1
            body = requests[which] | ({"stream": True, "partial_images": 4} if kind < 0.2 else {})
            async with http.stream("POST", "/v1/images/generations", json=body) as answer:
                if answer.status_code == 429:
                    counts["refused (429)"] += 1
                    await asyncio.sleep(min(5.0, float(answer.headers["Retry-After"])))
                    continue
                answer.raise_for_status()
                if kind < 0.1:  # hangs up in the middle of a stream
                    async for _ in answer.aiter_bytes():
                        break
                    counts["hung up"] += 1
                    counts["images of those"] += requests[which]["n"]
                    continue
                text = (await answer.aread()).decode()
            counts["answered"] += 1
            found = completed(text) if kind < 0.2 else json.loads(text)["data"]
            counts["images answered"] += len(found)
            counts["not as alone"] += images_of(found) != alone[which]

    async def watch() -> None:
        while time.perf_counter() < end:
            memory.append(one.memory())
            await asyncio.sleep(min(5.0, seconds / 40))

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=one.url, timeout=600, limits=limits) as http:
        await asyncio.gather(watch(), *(client(http, number) for number in range(clients)))
    return counts, memory


def completed(stream: str) -> list[dict[str, Any]]:
    """The last events of a stream's images."""
    events = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: ")]
    return [event for event in events if event["type"].endswith(".completed")]


def metric(text: str, name: str) -> float:
    """A metric of the server over all labels."""
    lines = [line for line in text.splitlines() if re.match(rf"{name}[ {{]", line)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def wrong(counts: Counter[str], quarters: list[float], metrics: str) -> list[str]:
    """What a soak has found wrong."""
    found = []
    if counts["not as alone"] or not counts["answered"]:
        found.append(f"{counts['not as alone']} of {counts['answered']} answers are not what they are alone")
    outcomes = counts["answered"] + counts["refused (429)"] + counts["hung up"]
    if outcomes != counts["sent"]:
        found.append(f"{counts['sent']} requests have {outcomes} answers")
    drawn, least = metric(metrics, "dalle_images_total"), counts["images answered"]
    if not least <= drawn <= least + counts["images of those"]:
        found.append(f"{drawn:.0f} images were drawn, and {least} answered")
    left = [name for name in ("dalle_queue_images", "dalle_batch_images") if metric(metrics, name)]
    if left:
        found.append(f"{' and '.join(left)}: not 0 at the end")
    # The first quarter is a beginning: caches fill
    if quarters[-1] > _GROWTH * quarters[1]:
        found.append(f"memory has grown from {quarters[1]:.0f} MB in the second quarter to {quarters[-1]:.0f} MB")
    return found


def soaked(minutes: float, clients: int, model: str | None, options: list[str]) -> int:
    """Run a soak and print what came of it; returns the exit code."""
    alone = drawn_alone(bodies(24), model)
    with server("--max-waiting", "32", "--max-per-client", "48", *options) as one:
        counts, memory = asyncio.run(soak(one, clients, 60 * minutes, alone))
        end = time.monotonic() + 60  # who hung up last leaves at the next token
        while metric(metrics := httpx.get(f"{one.url}/metrics").text, "dalle_batch_images") and time.monotonic() < end:
            time.sleep(0.5)
        peak = one.memory("VmHWM")
    quarters = [statistics.median(memory[i * len(memory) // 4 : (i + 1) * len(memory) // 4]) for i in range(4)]
    shown = {"memory by quarter, MB": [round(one) for one in quarters], "peak, MB": round(peak)}
    batches = metric(metrics, "dalle_batch_size_count")
    seconds = metric(metrics, "dalle_drawing_seconds_total")
    shown |= {"images/s": round(metric(metrics, "dalle_images_total") / seconds, 2), "joined": round(batches)}
    problems = wrong(counts, quarters, metrics)
    print(json.dumps(counts | shown | {"wrong": problems}, indent=2))
    return 1 if problems else 0


def main() -> int:
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of a measurement (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each server in turn (%(default)s)")
    parser.add_argument(
        "--soak", type=float, metavar="MINUTES", help="compare every image with the one that it is alone"
    )
    parser.add_argument("--clients", type=int, default=48, help="of the soak (%(default)s)")
    parser.add_argument("--model", help="folder of the model; the one that ships if not given")
    args = parser.parse_args()
    options = [] if args.model is None else ["--model", args.model]
    if args.soak is not None:
        return soaked(args.soak, args.clients, args.model, options)
    compare(args.seconds, args.rounds, options)
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
