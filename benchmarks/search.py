"""An index of a million images against looking at all, and against another library: python benchmarks/search.py

Makes clustered unit vectors (a cluster's members have a cosine of about 0.6 with each other), writes them as `dalle
index` does, and asks for the ten nearest of vectors of the same clusters that are not among them, one query at a time.
Recall is the share of the exact ten, found by brute force in float32, that are found. Each contender runs in a process
of its own, so that its memory can be told. With `pip install usearch`, usearch's HNSW (bf16) is the other library.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dalle.cli.startup import explain_startup_errors

explain_startup_errors("search.py")

import numpy as np
import pyarrow as pa
import torch

from dalle.apps.search import ImageIndex, ann, store
from dalle.apps.search.store import Manifest, Source
from dalle.cli.parser import CommandLine
from dalle.cli.tool import run_tool

K = 10
_MEMBERS = 100  # of a cluster
Figures = dict[str, Any]


def clustered(count: int, dimensions: int, seed: int, centers: int, spread: float = 0.8) -> Iterator[np.ndarray]:
    """Blocks of float32 [<= BLOCK, D]: unit vectors around `centers` points."""
    points = np.random.default_rng(0).standard_normal((centers, dimensions), dtype=np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    random = np.random.default_rng(seed)
    for start in range(0, count, store.BLOCK):
        rows = min(store.BLOCK, count - start)
        noise = random.standard_normal((rows, dimensions), dtype=np.float32) * (spread / dimensions**0.5)
        vectors = points[random.integers(0, centers, rows)] + noise
        yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def batches(count: int, dimensions: int) -> Iterator[pa.RecordBatch]:
    start = 0
    for block in clustered(count, dimensions, 1, -(-count // _MEMBERS)):
        rows = [
            {
                "path": f"images/{row:08d}.jpg",
                "caption": f"image {row}",
                "sha256": f"{row:064x}",
                "file": "",
                "stamp": "",
            }
            | {"width": 640, "height": 480, "offset": 0, "size": -1, "row": -1, "source": 0}
            for row in range(start, start + len(block))
        ]
        yield store.as_batch(rows, block.astype(np.float16))
        start += len(block)


def asked(queries: np.ndarray, ask: Callable[[np.ndarray], list[int]]) -> tuple[list[list[int]], Figures]:
    """The answers to all queries, and how long one takes."""
    for query in queries[:20]:
        ask(query)
    answers, times = [], []
    for query in queries:
        start = time.perf_counter()
        answers.append(ask(query))
        times.append(1000 * (time.perf_counter() - start))
    return answers, {
        "query ms (median)": statistics.median(times),
        "query ms (95 of 100)": float(np.quantile(times, 0.95)),
    }


def ours(folder: Path, queries: np.ndarray) -> tuple[list[list[int]], Figures]:
    start = time.perf_counter()
    index = ImageIndex(folder)
    opened = time.perf_counter() - start
    answers, figures = asked(queries, lambda q: [hit.number for hit in index.nearest(torch.from_numpy(q), K)])
    return answers, figures | {"open ms": 1000 * opened}


def build_ours(folder: Path) -> tuple[None, Figures]:
    table = store.Table(folder / "images-000001.arrow")
    start = time.perf_counter()
    ann.build(table.blocks, folder / "near-000001.faiss")
    return None, {"build s": time.perf_counter() - start}


def brute_force(folder: Path, queries: np.ndarray) -> tuple[list[list[int]], Figures]:
    table = store.Table(folder / "images-000001.arrow")
    vectors = torch.from_numpy(np.concatenate([block.astype(np.float32) for block in table.blocks]))
    return asked(queries, lambda q: (vectors @ torch.from_numpy(q)).topk(K).indices.tolist())


def build_usearch(folder: Path) -> tuple[None, Figures]:
    from usearch.index import Index

    table, start, number = store.Table(folder / "images-000001.arrow"), time.perf_counter(), 0
    index = Index(ndim=table.blocks[0].shape[1], metric="ip", dtype="bf16")
    for block in table.blocks:
        index.add(np.arange(number, number + len(block)), block.astype(np.float32), threads=torch.get_num_threads())
        number += len(block)
    index.save(str(folder / "other.usearch"))
    return None, {"build s": time.perf_counter() - start}


def usearch(folder: Path, queries: np.ndarray, expansion: int = 64) -> tuple[list[list[int]], Figures]:
    from usearch.index import Index

    index = Index.restore(str(folder / "other.usearch"), view=True)
    index.expansion_search = expansion
    return asked(queries, lambda q: index.search(q, K).keys.tolist())


def _child(work: Callable[..., Any], threads: int, arguments: tuple[Any, ...], answers: Any) -> None:
    torch.set_num_threads(threads)
    found, figures = work(*arguments)
    answers.put((found, figures | {"peak memory MB": peak_memory() / 1e6}))


def peak_memory() -> float:
    """Bytes of this process at its peak; on Linux a child's ru_maxrss begins with its parent's, so not by that."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024.0 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS


def alone(work: Callable[..., Any], threads: int, *arguments: Any) -> tuple[Any, Figures]:
    """Some work in a process of its own; mapped files that were touched count as its memory."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    child = context.Process(target=_child, args=(work, threads, arguments, answers))
    child.start()
    found: tuple[Any, Figures] = answers.get()
    child.join()
    return found


def recall(found: list[list[int]], exact: list[list[int]]) -> float:
    return statistics.mean(len(set(one) & set(other)) / K for one, other in zip(found, exact, strict=True))


def told(name: str, figures: Figures) -> None:
    print(f"{name:<24}" + "  ".join(f"{key} {value:,.3f}" for key, value in figures.items()), flush=True)


def megabytes(file: Path) -> float:
    return file.stat().st_size / 1e6


def main() -> None:
    parser = CommandLine(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-other", action="store_true", help="leave out usearch, which takes long to build")
    parser.add_argument("--dir", type=Path, help="where to write; a scratch folder if not given")
    args = parser.parse_args()
    queries = next(clustered(args.queries, args.dimensions, 2, -(-args.count // _MEMBERS)))
    print(f"{args.count:,} x {args.dimensions}, {args.queries} queries, {args.threads} threads")
    with tempfile.TemporaryDirectory(dir=args.dir) as scratch:
        folder = Path(scratch)
        size = store.write_table(folder / "images-000001.arrow", batches(args.count, args.dimensions), args.dimensions)
        _, built = alone(build_ours, args.threads, folder)
        near_file = folder / "near-000001.faiss"
        told("dalle, building", built | {"table MB": size / 1e6, "near MB": megabytes(near_file)})
        parts = ("images-000001.arrow", size), (near_file.name, near_file.stat().st_size)
        store.commit(folder, Manifest("", "", args.dimensions, args.count, [Source("")], *parts, 1))
        exact, figures = alone(brute_force, args.threads, folder, queries)
        told("torch, looking at all", figures)
        found, figures = alone(ours, args.threads, folder, queries)
        told("dalle", {f"recall@{K}": recall(found, exact)} | figures)
        if args.no_other or importlib.util.find_spec("usearch") is None:
            return
        _, built = alone(build_usearch, args.threads, folder)
        told("usearch, building", built | {"file MB": megabytes(folder / "other.usearch")})
        for expansion in (64, 256):
            found, figures = alone(usearch, args.threads, folder, queries, expansion)
            told(f"usearch, expansion {expansion}", {f"recall@{K}": recall(found, exact)} | figures)


if __name__ == "__main__":
    sys.exit(run_tool(main))
