"""Vector quantization: the nearest row of a learnt codebook, by EMA or by gradient, with revival of dead codes.

Shapes: B images, h x w cells, C channels of a code, K codes, N cells in all.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.config import config
from dalle.image_tokenizers.base import Reduce
from dalle.image_tokenizers.quantize import Quantized, Quantizer
from dalle.ranges import Decay, NonNegativeInt, Size, Weight

_SCORES = 2**25  # cells x codes compared at a time: 128 MiB of float32
_CANDIDATES = 64  # cells of an image that may revive a dead code


@config
class VQConfig:
    """Vector quantization (VQ-VAE, arXiv 1711.00937; low-dimensional normalised codes as in LlamaGen)."""

    kind: Literal["vq"] = "vq"
    """Vector quantization."""
    codebook_size: Size = 1024
    """Number of codes."""
    code_channels: Size = 8
    """Channels of a code's vector: few of them are the known cure for unused codes."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """cosine: both sides l2-normalised (as LlamaGen). euclidean: as they are (as taming)."""
    update: Literal["ema", "gradient"] = "ema"
    """How the codebook learns: moving averages of what each code stands for, or its own loss."""
    commitment: Weight = 0.25
    """Weight of the commitment loss, which keeps the encoder near the codes."""
    decay: Decay = 0.99
    """Of the moving averages (update: ema), a training step; at least 0 and below 1."""
    revive_after: NonNegativeInt = 100
    """Steps without use after which a code is put on an output of the encoder; 0: never."""


class VectorQuantizer(Quantizer):
    """The nearest code of each cell; the gradient passes straight through to the encoder.

    A training pass only gathers (how often each code was used, the sums of what fell to it, candidates for revival);
    `on_step_end` applies it. So two passes of 4 images and one step equal one pass of 8, and two processes one.
    The loss "codebook" is the squared error between cells and codes: the commitment part, weighted, and where the
    codebook learns by gradient its own part (equation 3 of arXiv 1711.00937).
    """

    codebook: Tensor  # [K, C]; a parameter or, with EMA, a buffer
    age: Tensor  # int64 [K], steps since a code was last used
    updates: Tensor  # int64 [], how many there have been: seeds the choices of revival
    ema_count: Tensor  # [K]
    ema_sum: Tensor  # [K, C]

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.codebook_size, self.code_channels = config.codebook_size, config.code_channels
        if config.distance == "cosine":
            codebook = F.normalize(torch.randn(config.codebook_size, config.code_channels), dim=1)
        else:
            codebook = torch.empty(config.codebook_size, config.code_channels)
            nn.init.uniform_(codebook, -1 / config.codebook_size, 1 / config.codebook_size)
        if config.update == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("ema_count", torch.ones(config.codebook_size))
            self.register_buffer("ema_sum", codebook.clone())
        # One step short of revival: what the first step does not use is put on the encoder's outputs at once.
        self.register_buffer("age", torch.full((config.codebook_size,), max(config.revive_after - 1, 0)))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.reset_statistics()

    def forward(self, z: Tensor, temperature: float) -> Quantized:
        z = self._scaled(z.float(), 1)
        codes = self._nearest(z)
        vectors = self.lookup(codes)
        loss = self.config.commitment * F.mse_loss(z, vectors.detach())
        if self.config.update == "gradient":
            loss = loss + F.mse_loss(vectors, z.detach())
        if self.training:
            self._gather(z.detach(), codes)
        return Quantized(z + (vectors - z).detach(), codes, {"codebook": loss})

    def encode(self, z: Tensor) -> Tensor:
        return self._nearest(self._scaled(z.float(), 1))

    def lookup(self, codes: Tensor) -> Tensor:
        rows = F.embedding(codes, self.codebook).float()
        return rearrange(self._scaled(rows, 3), "b h w c -> b c h w")

    @torch.no_grad()
    def on_step_end(self, reduce: Reduce | None = None) -> None:
        if not self._candidates:
            return
        count, total = (self._count, self._sum) if reduce is None else (reduce(self._count), reduce(self._sum))
        used = count > 0
        if self.config.update == "ema":
            self.ema_count.lerp_(count, 1 - self.config.decay)
            self.ema_sum.lerp_(total, 1 - self.config.decay)
            # An unused code's mean stays what it is: dividing its two shrinking averages would only lose digits.
            means = self._scaled(self.ema_sum[used] / self.ema_count[used, None], 1)
            self.codebook[used] = means.to(self.codebook.dtype)
        self.age.add_(1).masked_fill_(used, 0)
        self.updates.add_(1)
        if self.config.revive_after:
            dead = (self.age >= self.config.revive_after).nonzero()[:, 0]
            if len(dead):
                self._revive(dead, _over_processes(self._candidates, reduce))
        self.reset_statistics()

    def reset_statistics(self) -> None:
        # Plain attributes: DDP would overwrite buffers by those of process 0 between two micro-batches.
        self._count: Tensor = torch.empty(0)
        self._sum: Tensor = torch.empty(0)
        self._candidates: list[Tensor] = []

    def _scaled(self, vectors: Tensor, dim: int) -> Tensor:
        return F.normalize(vectors, dim=dim) if self.config.distance == "cosine" else vectors

    def _nearest(self, z: Tensor) -> Tensor:
        """Nearest code [B, h, w] of each cell of z [B, C, h, w], in float32 whatever autocast says."""
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            flat = rearrange(z, "b c h w -> (b h w) c")
            codebook = self._scaled(self.codebook.float(), 1)
            rows = max(_SCORES // self.codebook_size, 1)
            codes = torch.cat([self._distances(part, codebook).argmin(1) for part in flat.split(rows)])
        return codes.view(z.shape[0], *z.shape[2:])

    @staticmethod
    def _distances(flat: Tensor, codebook: Tensor) -> Tensor:
        """Squared distances [N, K], less |z|^2, which no choice of a code changes."""
        return torch.addmm(codebook.square().sum(1), flat, codebook.t(), alpha=-2)

    @torch.no_grad()
    def _gather(self, z: Tensor, codes: Tensor) -> None:
        if not self._candidates:
            self._count = torch.zeros(self.codebook_size, device=z.device)
            self._sum = torch.zeros(self.codebook_size, self.code_channels, device=z.device)
        cells = rearrange(z, "b c h w -> b (h w) c")
        flat = codes.flatten()
        self._count += torch.bincount(flat, minlength=self.codebook_size)
        self._sum.index_add_(0, flat, cells.flatten(0, 1))
        # Which cells of an image: spread evenly, others at each step, and the same however images are batched.
        step = -(-cells.shape[1] // _CANDIDATES)
        start = int(self.updates) % step
        self._candidates.append(cells[:, start::step].flatten(0, 1).clone())

    def _revive(self, dead: Tensor, candidates: Tensor) -> None:
        """Put codes `dead` on some of `candidates` [M, C], the likelier the farther from every code they are.

        So flat backgrounds, of which there are many alike, do not take all of them (k-means++ seeding). The choice is
        drawn from the number of the step: the same in every process and in a run that was resumed.
        """
        codebook = self._scaled(self.codebook.float(), 1)
        distances = self._distances(candidates, codebook).amin(1) + candidates.square().sum(1)
        generator = torch.Generator().manual_seed(int(self.updates))
        weights = distances.clamp(min=1e-6).cpu()
        chosen = torch.multinomial(weights, min(len(dead), len(candidates)), generator=generator)
        dead, rows = dead[: len(chosen)], candidates[chosen.to(candidates.device)]
        self.codebook[dead] = rows.to(self.codebook.dtype)
        self.age[dead] = 0
        if self.config.update == "ema":
            self.ema_count[dead] = 1
            self.ema_sum[dead] = rows


def _over_processes(parts: list[Tensor], reduce: Reduce | None) -> Tensor:
    """All processes' candidates [M, C], in the order in which one process would have seen them.

    That is process by process: each has a contiguous slice of the batch, and as many images as the others.
    """
    own = torch.cat(parts)
    if reduce is None or not dist.is_initialized():
        return own
    slots = own.new_zeros(dist.get_world_size(), *own.shape)
    slots[dist.get_rank()] = own
    return reduce(slots).flatten(0, 1)
