"""What a server is told: the model, where it listens, and its limits. Brings in no torch."""

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
    """Folder or file of the model (or a hub id), ours or as published; the one that ships with the repository if not
    given."""
    image_tokenizer: str | None = None
    """Image tokenizer of a published model whose files do not hold it."""
    text_tokenizer: str | None = None
    """Text tokenizer of a published model whose files do not hold it."""
    text_encoder: str | None = None
    """T5 encoder of a published model that reads its features."""
    clip: str | None = None
    """Folder or file of the CLIP that chooses, classifies and embeds (or a hub id); the model's own if not given."""
    index: Path | None = None
    """Folder that `dalle index` made, for /v1/search."""
    unclip: str | None = None
    """Folder (or hub id) of an unCLIP, for variations and blends."""
    paint: bool = True
    """Whether clients may paint (VQGAN+CLIP), which takes much longer than drawing; needs a CLIP."""
    device: str = "auto"
    """auto takes an accelerator if there is one; else cpu, cuda, cuda:1, mps, ..."""
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """Arithmetic of the transformer; int8 keeps its weights in 8 bits and computes in float32, on a CPU."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is all of the machine, which wants --token-file."""
    port: Annotated[int, Range(0, 65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    token_file: Path | None = None
    """File of bearer tokens, one a line (# begins a comment); without it nobody is asked for one."""
    trust_proxy: bool = False
    """Take a client's address from the last entry of X-Forwarded-For, where a reverse proxy is the only way in."""
    cors: tuple[str, ...] = ()
    """Origin whose pages may call the API from a browser, such as https://example.org; may be repeated."""
    max_batch: PositiveInt = 32
    """Images drawn at a time."""
    max_waiting: PositiveInt = 256
    """Images that may wait to be drawn, of all clients together; what is more gets 429."""
    max_per_client: PositiveInt = 128
    """Images of one client (a token, else an address) that may wait or be drawn at a time."""
    max_n: PositiveInt = 10
    """Images that one request may ask for."""
    max_candidates: PositiveInt = 64
    """Images that one request may have drawn for CLIP to choose from."""
    max_steps: PositiveInt = 400
    """Steps of a painting, or of an unCLIP, that one request may ask for."""
    max_prompt: PositiveInt = 4000
    """Characters of a prompt."""
    max_body: PositiveInt = 20_000_000
    """Bytes of a request."""
    max_pixels: PositiveInt = 2**24
    """Pixels of an image or mask that is sent, and of one that is asked for."""
    max_requests: PositiveInt = 128
    """Requests at work or waiting at a time."""
    max_connections: PositiveInt = 512
    """Open connections; what is more is closed at once."""
    request_timeout: _Seconds = 300.0
    """Seconds after which a request that is not done is given up."""
    header_timeout: _Seconds = 10.0
    """Seconds in which a new connection must have sent a request's head."""
    body_timeout: _Seconds = 30.0
    """Seconds to wait for the next part of a request's body."""
    send_timeout: _Seconds = 30.0
    """Seconds to wait for a client that does not read its answer."""
    stop_timeout: _Seconds = 60.0
    """Seconds that running requests have to finish after SIGTERM."""
    window: PositiveInt = 1
    """Codes guessed and checked in one step: 16 halves the steps where few images are drawn at a time. The images do
    not depend on it."""
    log_prompts: bool = False
    """Write prompts into the log too."""
