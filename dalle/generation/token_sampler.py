"""Codes from a batch's logits, each candidate by its own options; which candidates take a second, unconditional row.

Shapes: B candidates of a batch, G of them guided, rows = B + G, n tokens, V image vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dalle.generation.options import SamplingConfig
from dalle.generation.sampling import guide, sample


class TokenSampler:
    """Samples the codes of one batch from logits, each candidate with its own options.

    The unconditional rows stand behind the candidates' own, those that need guidance longest first: where guidance ends
    for some (`guidance_until`), their rows are the last ones, and are dropped.

    Attributes:
        guided: int64 [G], which candidate each unconditional row belongs to.
        ends: the image tokens at which the number of unconditional rows changes, in order.
        failed: bool scalar on the model's device: some logits were no distribution.
    """

    def __init__(self, samplings: Sequence[SamplingConfig], known_prefix: int, length: int, failed: Tensor) -> None:
        """Prepare a batch.

        Args:
            samplings: options of each candidate, B of them.
            known_prefix: image tokens at the start that all of them know.
            length: image tokens of an image.
            failed: see above; of several batches it may be one.
        """
        self.samplings, self.failed, self.length = samplings, failed, length
        self.uniform = len(set(samplings)) == 1
        indices = [i for i, one in enumerate(samplings) if one.guides(known_prefix)]
        indices.sort(key=lambda i: -_until(samplings[i], length))  # stable: of equals in the order of the batch
        self.guided = torch.tensor(indices, dtype=torch.int64, device=failed.device)
        self.until = [_until(samplings[i], length) for i in indices]
        self.ends = sorted({end for end in self.until if known_prefix < end < length})
        # Candidates with equal options are sampled in one call
        groups: dict[tuple[float | int | None, ...], list[int]] = {}
        for i, one in enumerate(samplings):
            groups.setdefault((one.temperature, one.top_k, one.top_p), []).append(i)
        self.groups = [
            (samplings[rows[0]], torch.tensor(rows, dtype=torch.int64, device=failed.device))
            for rows in groups.values()
        ]
        scales = [samplings[i].guidance for i in indices]
        self.scales = torch.tensor(scales, dtype=torch.float32, device=failed.device)[:, None, None]  # [G, 1, 1]

    def rows(self, token: int) -> int:
        """How many rows of the batch draw this image token: its candidates, and those guided there once more."""
        return len(self.samplings) + sum(token < end for end in self.until)

    def expand(self, ids: Tensor, rows: int) -> Tensor:
        """Ids of the candidates [B, n] as those of the batch's rows [rows, n]."""
        count = rows - len(ids)
        if not count:
            return ids
        # With equal options all candidates are guided, in their own order
        return torch.cat((ids, ids if self.uniform else ids[self.guided[:count]]))

    def sample_tokens(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Codes [B, n] that uniform numbers [B, n] draw from logits [rows, n, V]."""
        own, count = logits[: len(uniform)].float(), len(logits) - len(uniform)  # [B, n, V]
        if count:
            unconditional = logits[len(uniform) :].float()
            if self.uniform:
                own = guide(own, unconditional, self.samplings[0].guidance)
            else:
                where = self.guided[:count]
                own = own.index_copy(0, where, guide(own[where], unconditional, self.scales[:count]))
        if len(self.groups) == 1:
            return self._sample(own, uniform, self.groups[0][0])
        sampled = torch.empty_like(uniform, dtype=torch.int64)
        for sampling, rows in self.groups:
            sampled[rows] = self._sample(own[rows], uniform[rows], sampling)
        return sampled

    def _sample(self, logits: Tensor, uniform: Tensor, sampling: SamplingConfig) -> Tensor:
        return sample(logits.flatten(0, 1), uniform.flatten(), sampling, self.failed).view(uniform.shape)

    def check(self) -> None:
        """Refuse what was sampled from logits that are not finite; this waits for the device."""
        if self.failed:
            raise ValueError(
                "the model's logits are nan or infinite, so no code can be sampled from them: training has diverged, "
                "or it overflows in float16 (then draw in float32 or bfloat16)"
            )


def _until(sampling: SamplingConfig, length: int) -> int:
    return length if sampling.guidance_until is None else min(sampling.guidance_until, length)
