"""Vector quantization: a codebook learned by EMA or by gradient, nearest-neighbor lookup, restart of dead codes.

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
from dalle.config.ranges import Decay, NonNegativeInt, Size, Weight
from dalle.image_tokenizers.base import Reduce
from dalle.image_tokenizers.quantize import Quantized, Quantizer

_MAX_DISTANCES = 2**25  # cells x codes compared at once: 128 MiB of float32
_CANDIDATES_PER_IMAGE = 64  # cells of an image that may replace a dead code


@config
class VQConfig:
    """Vector quantization (VQ-VAE, arXiv 1711.00937; low-dimensional normalized codes as in LlamaGen)."""

    kind: Literal["vq"] = "vq"
    """Vector quantization."""
    codebook_size: Size = 1024
    """Number of codes."""
    code_channels: Size = 8
    """Channels of a codebook vector; few channels are the usual remedy for unused codes (ViT-VQGAN, LlamaGen)."""
    distance: Literal["cosine", "euclidean", "dot"] = "cosine"
    """cosine: latents and codes are l2-normalized (LlamaGen). euclidean: neither is (taming). dot: neither is, and the
    code of a latent is that of the largest dot product (IBQ, arXiv 2412.02692)."""
    update: Literal["ema", "gradient"] = "ema"
    """How the codebook learns: by moving averages of the latents assigned to each code, or by a gradient."""
    commitment: Weight = 0.25
    """Weight of the commitment loss, which pulls the encoder's outputs toward their codes."""
    decay: Decay = 0.99
    """Decay per training step of the moving averages (update: ema); at least 0 and below 1."""
    revive_after: NonNegativeInt = 100
    """Steps without use after which a code is restarted at one of the encoder's outputs; 0: never."""


class VectorQuantizer(Quantizer):
    """Replaces each latent by the nearest code; the gradient passes straight through to the encoder.

    A training pass only gathers statistics (how often each code was used, sums of the latents assigned to each,
    candidates for restarts); `on_step_end` applies them. So two passes of 4 images and one step equal one pass of 8,
    and two processes equal one. The loss "codebook" is the mean squared error between latents and codes: the
    commitment term, weighted, plus the codebook term if the codebook learns by gradient (equation 3 of arXiv
    1711.00937).
    """

    codebook: Tensor  # [K, C]; a parameter or, with EMA, a buffer
    age: Tensor  # int64 [K], steps since a code was last used
    updates: Tensor  # int64 [], steps applied so far: seeds the choice of restarts
    ema_count: Tensor  # [K], how many latents a step assigns to each code
    ema_sum: Tensor  # [K, C], their sum

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
        # One step short of a restart: codes that the very first step does not use are restarted at once.
        self.register_buffer("age", torch.full((config.codebook_size,), max(config.revive_after - 1, 0)))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.reset_statistics()

    def forward(self, z: Tensor, temperature: float) -> Quantized:
        """See `Quantizer.forward`; the temperature is not used."""
        z = self._scaled(z.float(), 1)
        codes = self._nearest(z)
        latents = self.lookup(codes)
        loss = self.config.commitment * F.mse_loss(z, latents.detach())  # the encoder moves to the code
        if self.config.update == "gradient":
            loss = loss + F.mse_loss(latents, z.detach())  # the code moves to the encoder's output
        if self.training:
            self._accumulate(z.detach(), codes)
        # Straight-through estimator: the decoder sees the code, the encoder gets the decoder's gradient
        return Quantized(z + (latents - z).detach(), codes, {"codebook": loss})

    def encode(self, z: Tensor) -> Tensor:
        """See `Quantizer.encode`."""
        return self._nearest(self._scaled(z.float(), 1))

    def lookup(self, codes: Tensor) -> Tensor:
        """See `Quantizer.lookup`; normalized if the distance is cosine."""
        rows = F.embedding(codes, self.codebook).float()
        return rearrange(self._scaled(rows, 3), "b h w c -> b c h w")

    @torch.no_grad()
    def on_step_end(self, reduce: Reduce | None = None) -> None:
        """Update the codebook and restart dead codes; does nothing if no training pass came before."""
        if not self._candidates:
            return
        # Sums over processes, so that all of them make the same step
        count, total = (self._count, self._sum) if reduce is None else (reduce(self._count), reduce(self._sum))
        used = count > 0
        if self.config.update == "ema":
            self.ema_count.lerp_(count, 1 - self.config.decay)
            self.ema_sum.lerp_(total, 1 - self.config.decay)
            # An unused code keeps its vector: dividing its two shrinking averages would only lose precision.
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
        """Discard the gathered counts, sums and candidates."""
        # Plain attributes, as DDP broadcasts the buffers of rank 0 to all ranks before each micro-batch.
        self._count: Tensor = torch.empty(0)
        self._sum: Tensor = torch.empty(0)
        self._candidates: list[Tensor] = []

    def _scaled(self, vectors: Tensor, dim: int) -> Tensor:
        return F.normalize(vectors, dim=dim) if self.config.distance == "cosine" else vectors

    def _nearest(self, z: Tensor) -> Tensor:
        """The nearest code [B, h, w] of each cell of z [B, C, h, w]; float32 even under autocast."""
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            flat = rearrange(z, "b c h w -> (b h w) c")
            codebook = self._scaled(self.codebook.float(), 1)
            rows = max(_MAX_DISTANCES // self.codebook_size, 1)  # a chunk of cells against all codes
            if self.config.distance == "dot":
                parts = [(part @ codebook.t()).argmax(1) for part in flat.split(rows)]
            else:
                parts = [self._distances(part, codebook).argmin(1) for part in flat.split(rows)]
            codes = torch.cat(parts)
        return codes.view(z.shape[0], *z.shape[2:])

    @staticmethod
    def _distances(flat: Tensor, codebook: Tensor) -> Tensor:
        """Squared distances [N, K] minus |z|^2, which is the same for all codes."""
        return torch.addmm(codebook.square().sum(1), flat, codebook.t(), alpha=-2)  # |c|^2 - 2 z c

    @torch.no_grad()
    def _accumulate(self, z: Tensor, codes: Tensor) -> None:
        if not self._candidates:
            self._count = torch.zeros(self.codebook_size, device=z.device)
            self._sum = torch.zeros(self.codebook_size, self.code_channels, device=z.device)
        cells = rearrange(z, "b c h w -> b (h w) c")
        flat = codes.flatten()
        self._count += torch.bincount(flat, minlength=self.codebook_size)
        self._sum.index_add_(0, flat, cells.flatten(0, 1))
        # Candidate cells are spread evenly over the image, shift with every step, and do not depend on the batching.
        step = -(-cells.shape[1] // _CANDIDATES_PER_IMAGE)
        start = int(self.updates) % step
        # A copy, as a view would keep the whole batch's latents in memory
        self._candidates.append(cells[:, start::step].flatten(0, 1).clone())

    def _revive(self, dead: Tensor, candidates: Tensor) -> None:
        """Move codes `dead` onto some of `candidates` [M, C], chosen with probability proportional to distance.

        The distance is that to the nearest code, squared (k-means++ seeding), so that flat backgrounds, which supply
        many similar candidates, do not get all of the codes. The seed is the number of steps so far: the choice is the
        same in every process and in a resumed run.
        """
        codebook = self._scaled(self.codebook.float(), 1)
        # |z|^2, which `_distances` leaves out, matters between cells
        distances = self._distances(candidates, codebook).amin(1) + candidates.square().sum(1)
        generator = torch.Generator().manual_seed(int(self.updates))  # on the CPU: the same choice on every device
        weights = distances.clamp(min=1e-6).cpu()
        chosen = torch.multinomial(weights, min(len(dead), len(candidates)), generator=generator)
        dead, rows = dead[: len(chosen)], candidates[chosen.to(candidates.device)]
        self.codebook[dead] = rows.to(self.codebook.dtype)
        self.age[dead] = 0
        if self.config.update == "ema":  # as if one latent had been assigned to it
            self.ema_count[dead] = 1
            self.ema_sum[dead] = rows


def _over_processes(parts: list[Tensor], reduce: Reduce | None) -> Tensor:
    """The candidates [M, C] of all processes, in the order in which a single process would have seen them.

    Which is process after process, as each has a contiguous slice of the batch with the same number of images.
    """
    own = torch.cat(parts)
    if reduce is None or not dist.is_initialized():
        return own
    # An all-gather by a sum: each process fills its own slot, all others are zero
    slots = own.new_zeros(dist.get_world_size(), *own.shape)
    slots[dist.get_rank()] = own
    return reduce(slots).flatten(0, 1)
