"""Options of the server: the model, the address it listens on, and limits. Does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from dalle.config import config
from dalle.config.ranges import PositiveInt, Range

_Seconds = Annotated[float, Range(0, above=True, ceiling=1e9)]


@config
class ServeConfig:
    """Options of `dalle serve`."""

    model: str | None = None
    """Model folder, published checkpoint, or hub id; the built-in model if not given."""
    image_tokenizer: str | None = None
    """Image tokenizer of a published model whose files do not contain it."""
    text_tokenizer: str | None = None
    """Text tokenizer of a published model whose files do not contain it."""
    text_encoder: str | None = None
    """T5 encoder of a published model with text features; google/flan-t5-xl if not given."""
    clip: str | None = None
    """CLIP that ranks, classifies and embeds: model folder, published checkpoint, or hub id; the model's own if not
    given."""
    index: Path | None = None
    """Image index for /v1/search: a folder made by `dalle index`."""
    unclip: str | None = None
    """unCLIP for /v1/vary and /v1/blend: model folder or hub id."""
    paint: bool = True
    """Serve /v1/paint (VQGAN+CLIP), which takes much longer than generating an image and needs a CLIP."""
    device: str = "auto"
    """auto takes an accelerator if there is one; else cpu, cuda, cuda:1, mps, ..."""
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """Precision of the transformer; int8 stores its weights in 8 bits and computes in float32, on a CPU."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 listens on all interfaces and should go with --token-file."""
    port: Annotated[int, Range(0, 65535)] = 8000
    """Port to listen on; 0 picks a free one."""
    token_file: Path | None = None
    """File of bearer tokens, one per line (# begins a comment); without it no token is required."""
    trust_proxy: bool = False
    """Read the client's address from the last entry of X-Forwarded-For; only behind a reverse proxy."""
    cors: tuple[str, ...] = ()
    """Origin allowed to call the API from a browser (CORS), such as https://example.org; may be repeated."""
    max_batch: PositiveInt = 32
    """Images per batch."""
    max_waiting: PositiveInt = 256
    """Images that may wait in the queue, of all clients together; requests beyond it get status 429."""
    max_per_client: PositiveInt = 128
    """Images of one client (a token, or else an address) that may be waiting or in a batch."""
    max_n: PositiveInt = 10
    """Largest n of a request."""
    max_candidates: PositiveInt = 64
    """Largest number of candidates of a request, among which CLIP chooses."""
    max_steps: PositiveInt = 400
    """Largest number of steps of a request, for /v1/paint, /v1/vary and /v1/blend."""
    max_prompt: PositiveInt = 4000
    """Longest prompt, in characters."""
    max_body: PositiveInt = 20_000_000
    """Largest request, in bytes."""
    max_pixels: PositiveInt = 2**24
    """Largest image or mask of a request, and largest size asked for, in pixels."""
    max_requests: PositiveInt = 128
    """Requests running or waiting at a time, of one client at most half of them."""
    max_connections: PositiveInt = 512
    """Open connections; a further one takes the place of the one that has been idle longest, or is closed."""
    request_timeout: _Seconds = 300.0
    """Seconds after which an unfinished request is canceled."""
    header_timeout: _Seconds = 10.0
    """Seconds in which the headers of a request must have come, once a connection is open or has begun to send them."""
    body_timeout: _Seconds = 30.0
    """Seconds to wait for a request's body, and one more for each 10,000 bytes of it that have come."""
    send_timeout: _Seconds = 30.0
    """Seconds to wait for a client that does not read its response."""
    stop_timeout: _Seconds = 60.0
    """Seconds that running requests have to finish after SIGTERM."""
    window: PositiveInt = 1
    """Jacobi decoding: number of codes guessed and verified per step. 16 halves the steps of small batches. Does not
    change the images."""
    log_prompts: bool = False
    """Write prompts to the log, too."""
