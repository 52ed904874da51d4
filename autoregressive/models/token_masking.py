"""Semantic-Aware Token Masking (SAT, EndoGen, MICCAI 2025): mask uninformative token embeddings.

The tokens are divided into segments. A segment whose embeddings vary little shows little (dark borders, plain
mucosa) and is masked at a higher rate; the segment with the largest variance is not masked.

Shapes: B batch, L = 1 + N positions with the class token first, S segments of H tokens, D channels.
"""

import torch
from torch import Tensor, nn

from autoregressive.models.noise import uniform_noise
from common.errors import InputError

MODES = ("token", "element", "static")
TINY = 1e-30  # avoids 0/0 for a clip whose segments are all constant


class SemanticAwareTokenMasking(nn.Module):
    """x_BLD -> x_BLD with masked values set to zero, without rescaling; the identity in eval mode.

    token    masks whole tokens, as in the paper: one rate per sample and segment. The last segment is shorter
             if L - 1 is no multiple of H.
    element  is the masking of the released code, bit for bit: one rate per sample, segment and channel, noise
             shared by the batch, tokens after the last whole segment not masked.
    static   masks whole tokens, all at `max_rate`, for comparison.

    Rates lie in [0, max_rate]; the class token is never masked. Noise comes from `generator` (default:
    torch's), or, except with "element", from `key_B2` (one key per clip) if it is given.
    """

    def __init__(self, max_rate: float, segment: int = 8, mode: str = "token"):
        super().__init__()
        if not 0 <= max_rate <= 1:
            raise InputError(f"--token-dropout-p {max_rate}: must be from 0 to 1")
        if mode not in MODES:
            raise InputError(f"--tok-drop-method {mode}: must be one of {', '.join(MODES)}")
        if segment < 2:
            raise InputError(f"SAT segment of {segment} tokens: a variance takes at least 2")
        self.max_rate, self.segment, self.mode = max_rate, segment, mode

    def forward(self, x_BLD: Tensor, generator: torch.Generator | None = None,
                key_B2: Tensor | None = None) -> Tensor:
        if not self.training or self.max_rate == 0:
            return x_BLD
        with torch.no_grad():
            tokens_BND = x_BLD[:, 1:].to(torch.promote_types(x_BLD.dtype, torch.float32))
            if self.mode == "element":
                keep_BLD = self._keep_elements(tokens_BND, generator)
            else:
                keep_BLD = self._keep_tokens(tokens_BND, generator, key_B2)
        return x_BLD * keep_BLD

    def _keep_tokens(self, tokens_BND: Tensor, generator: torch.Generator | None,
                     key_B2: Tensor | None) -> Tensor:
        rate_BN = self._token_rate(tokens_BND) if self.mode == "token" else self.max_rate
        batch, count, _ = tokens_BND.shape
        if key_B2 is None:
            noise_BN = torch.rand(batch, count, device=tokens_BND.device, generator=generator)
        else:
            noise_BN = uniform_noise(key_B2, torch.arange(count, device=tokens_BND.device))
        keep_BL = nn.functional.pad(noise_BN >= rate_BN, (1, 0), value=True)
        return keep_BL[..., None]

    def _token_rate(self, tokens_BND: Tensor) -> Tensor:
        count = tokens_BND.shape[1]
        whole = count // self.segment * self.segment
        parts = tokens_BND[:, :whole].unflatten(1, (-1, self.segment)), tokens_BND[:, None, whole:]
        variances = [part.var(dim=2, correction=0).mean(-1) for part in parts if part.numel()]  # one token: 0
        variance_BS = torch.cat(variances, dim=1)
        rate_BS = self._rate(variance_BS, variance_BS.amax(dim=1, keepdim=True))
        return rate_BS.repeat_interleave(self.segment, dim=1)[:, :count]

    def _keep_elements(self, tokens_BND: Tensor, generator: torch.Generator | None) -> Tensor:
        count = tokens_BND.shape[1]
        whole = count // self.segment * self.segment
        tokens_BSHD = tokens_BND[:, :whole].unflatten(1, (-1, self.segment))
        variance_BSD = tokens_BSHD.var(dim=2)
        rate_BSD = self._rate(variance_BSD, variance_BSD.amax(dim=(0, 2), keepdim=True))
        noise_SHD = torch.rand(tokens_BSHD.shape[1:], device=tokens_BND.device, generator=generator)
        keep_BND = (noise_SHD > rate_BSD[:, :, None]).flatten(1, 2)
        return nn.functional.pad(keep_BND, (0, 0, 1, count - whole), value=True)

    def _rate(self, variance: Tensor, largest: Tensor) -> Tensor:
        return ((1 - variance / largest.clamp_min(TINY)) * self.max_rate).clamp(0, self.max_rate)
