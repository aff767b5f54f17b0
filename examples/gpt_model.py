"""Defines the network of gpt.py: a small GPT over bytes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Change = Callable[[Tensor], Tensor]


def unchanged(tensor: Tensor) -> Tensor:
    return tensor


class Block(nn.Module):
    """Applies attention, then an MLP; each reads a normalised copy of the stream and adds to the stream."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        up, down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.mlp = nn.Sequential(up, nn.GELU(), down)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT(nn.Module):
    """Takes bytes (batch, time), returns scores of the next byte (batch, time, 256). Input and output embedding are one."""

    def __init__(self, layers: int, width: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = 0.05 if name.startswith(("embedding", "position")) else width**-0.5
                if name.endswith(("out.weight", "mlp.2.weight")):  # these add to the stream, 2 * layers times
                    std /= math.sqrt(2 * layers)
                nn.init.normal_(p, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.embedding.weight)

    def loss(self, windows: Tensor, network: nn.Module | None = None) -> Tensor:
        """Returns the mean cross-entropy in nats per byte. ``windows``: bytes (batch, context + 1), on any device.

        ``network``: what this model is wrapped in, if anything: DDP wants to be called itself.
        """
        windows = windows.to(self.embedding.weight.device, torch.long)
        scores = (self if network is None else network)(windows[:, :-1])
        return F.cross_entropy(scores.float().flatten(0, 1), windows[:, 1:].flatten())

    @torch.no_grad()
    def validate(self, windows: Tensor, batch_size: int, part: Change = unchanged, total: Change = unchanged) -> float:
        """Returns the mean loss over all ``windows``, without dropout.

        ``part``: the rows that are this process's; ``total``: the sum over processes, each of which runs the model equally often.
        """
        self.eval()
        loss = torch.zeros((), dtype=torch.float64, device=self.embedding.weight.device)
        for batch in windows.split(batch_size):
            own = part(batch)
            loss += self.loss(own if len(own) else batch[:1]).double() * len(own)
        self.train()
        return total(loss).item() / len(windows)

    @torch.no_grad()
    def sample(self, prompt: str, length: int) -> str:
        """Returns ``prompt`` and ``length`` more bytes, drawn at temperature 0.8; the same weights draw the same ones."""
        tokens, generator = torch.tensor([list(prompt.encode())]), torch.Generator().manual_seed(0)
        self.eval()
        for _ in range(length):
            seen = tokens[:, -self.position.num_embeddings :].to(self.embedding.weight.device)
            scores = self(seen)[0, -1].float().cpu()
            drawn = torch.multinomial(torch.softmax(scores / 0.8, 0), 1, generator=generator)
            tokens = torch.cat([tokens, drawn[None]], 1)
        return bytes(tokens[0].tolist()).decode(errors="replace")
