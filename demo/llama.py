"""The Llama architecture in plain PyTorch, small enough to read, with the usual parameter names.

The names are those of `transformers`' `LlamaForCausalLM`, so that a state dict saved here loads
there unchanged. Training uses this one because it compiles into few kernels on a processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of one model; `head` is the size of an attention head."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int = 4096
    positions: int = 1024
    theta: float = 10_000.0
    epsilon: float = 1e-6

    @property
    def head(self) -> int:
        """Numbers in one attention head."""
        return self.hidden // self.heads


TARGET = Shape(layers=6, hidden=256, intermediate=768, heads=8, kv_heads=4)
DRAFT = Shape(layers=2, hidden=128, intermediate=448, heads=4, kv_heads=2)


class Cache:
    """Keys and values of every layer, `[batch, kv_heads, capacity, head]`; `length` are filled."""

    def __init__(
        self, shape: Shape, batch: int, capacity: int, device: torch.device | None = None
    ) -> None:
        size = (batch, shape.kv_heads, capacity, shape.head)
        self.length = 0
        self.keys = [torch.empty(size, device=device) for _ in range(shape.layers)]
        self.values = [torch.empty(size, device=device) for _ in range(shape.layers)]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put new keys and values behind the filled ones; all of the layer's come back."""
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


class RMSNorm(nn.Module):
    """Scale a vector to root-mean-square 1, then by a learned weight."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """`[..., size]` to `[..., size]`, computed in float32."""
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.epsilon)
        return (y * self.weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of `[batch, heads, positions, head]`, halves paired."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


class Attention(nn.Module):
    """Causal attention with fewer key/value heads than query heads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv = shape.kv_heads * shape.head
        self.q_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv, bias=False)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None, layer: int
    ) -> Tensor:
        """`[batch, length, hidden]` to the same; a cache is read and extended."""
        batch, length, _ = x.shape
        s = self.shape
        q = self.q_proj(x).view(batch, length, s.heads, s.head).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, s.kv_heads, s.head).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, s.kv_heads, s.head).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        groups = s.heads // s.kv_heads
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        if cache is not None and length == 1:
            # The query heads of a group stand in as positions: no copy of keys and values.
            q = q.reshape(batch, s.kv_heads, groups, s.head)
            out = F.scaled_dot_product_attention(q, k, v).reshape(batch, 1, s.hidden)
        else:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            mask = None
            if k.shape[2] > length:
                seen = k.shape[2] - length
                mask = torch.ones(length, k.shape[2], dtype=torch.bool, device=x.device)
                mask = mask.tril(seen)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
            out = out.transpose(1, 2).reshape(batch, length, s.hidden)
        mixed: Tensor = self.o_proj(out)
        return mixed


class MLP(nn.Module):
    """The gated feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., hidden]` to `[..., hidden]`."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden, shape.epsilon)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.epsilon)


class Decoder(nn.Module):
    """Embedding, layers, last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.epsilon)


class Llama(nn.Module):
    """A causal language model with tied input and output embeddings."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        steps = torch.arange(0, shape.head, 2, dtype=torch.float32) / shape.head
        angles = torch.outer(torch.arange(shape.positions).float(), shape.theta**-steps)
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.0 if last else scale)

    def hidden(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Last hidden states `[batch, length, hidden]` of ids `[batch, length]`.

        With a cache the ids follow what it holds, and the cache is extended by them.
        """
        start = cache.length if cache is not None else 0
        end = start + ids.shape[1]
        cos, sin = self.cos[start:end], self.sin[start:end]
        x = self.model.embed_tokens(ids)
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            x, cos, sin = x.to(kind), cos.to(kind), sin.to(kind)
        for index, layer in enumerate(self.model.layers):
            assert isinstance(layer, Layer)
            x = x + layer.self_attn(layer.input_layernorm(x), cos, sin, cache, index)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        if cache is not None:
            cache.length = end
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` to `[..., vocabulary]`."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits `[batch, length, vocabulary]` of ids `[batch, length]`."""
        return self.logits(self.hidden(ids))
