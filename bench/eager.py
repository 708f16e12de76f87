"""A plain float32 loop in eager PyTorch, as a careful programmer writes it by hand. It runs Llama models.

It joins the projections, allocates the cache once, computes the rotations once, and uses no mask for a single token.
It uses no session, no decoder and no text of tinystory.

Shapes: T new positions, S cached positions, H query heads, K key/value heads, D d_head, C d_model, V vocab_size.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.work import Work
from tinystory.checkpoint import load_model, read_header
from tinystory.model.transformer import rope_tables

__all__ = ["EagerLoop"]


class Layer(NamedTuple):
    """The weights of one block, and its keys and values (1, K, S, D)."""

    attn_norm: Tensor
    qkv: Tensor
    o: Tensor
    ff_norm: Tensor
    gate_up: Tensor
    down: Tensor
    keys: Tensor
    values: Tensor


class EagerLoop:
    """A model with its cache, and the loop that writes a story."""

    def __init__(self, directory: Path) -> None:
        """Read a checkpoint.

        Raises:
            NotImplementedError: the model is not a plain Llama model without biases.
        """
        model = load_model(read_header(directory), "float32", "cpu")
        self.config = c = model.config
        if c.family != "llama" or c.activation != "silu" or c.attention_bias or c.attention_out_bias or c.ff_bias:
            raise NotImplementedError("it computes plain Llama models only")
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self.embed, self.norm = state["embed.weight"], state["norm.weight"]
        self.head = self.embed if c.tied_head else state["head.weight"]
        self.cos, self.sin = rope_tables(c, torch.arange(c.max_seq_len), torch.float32)
        self.layers = []
        for block in (f"blocks.{n}" for n in range(c.n_layer)):
            keys, values = torch.zeros(2, 1, c.n_kv_head, c.max_seq_len, c.d_head).unbind()
            qkv = torch.cat([state[f"{block}.attn.{name}.weight"] for name in "qkv"])
            gate_up = torch.cat([state[f"{block}.ff.{name}.weight"] for name in ("gate", "up")])
            o, down = state[f"{block}.attn.o.weight"], state[f"{block}.ff.down.weight"]
            norms = (state[f"{block}.{name}.weight"] for name in ("attn_norm", "ff_norm"))
            attn_norm, ff_norm = norms
            self.layers.append(Layer(attn_norm, qkv, o, ff_norm, gate_up, down, keys, values))

    @torch.inference_mode()
    def write(self, work: Work) -> list[int]:
        """Write one story and return its new token ids.

        Raises:
            ValueError: more than one row is asked for.
        """
        if work.n_rows != 1:
            raise ValueError("it writes one story at a time")
        token_ids: list[int] = []
        logits = self.forward(torch.tensor([work.prompt_ids]), 0)
        while True:
            if work.top_k > 1:
                best = logits.topk(work.top_k)
                drawn = torch.multinomial((best.values / work.temperature).softmax(dim=-1), 1)
                token = best.indices[drawn]
            else:
                token = logits.argmax(dim=-1, keepdim=True)
            token_ids.append(int(token))
            if len(token_ids) == work.n_tokens:
                return token_ids
            logits = self.forward(token[None], len(work.prompt_ids) + len(token_ids) - 1)

    def forward(self, token_ids: Tensor, start: int) -> Tensor:
        """Append token ids (1, T) at a position. Return the logits (V,) after the last one."""
        c, end = self.config, start + token_ids.shape[1]
        cos, sin = self.cos[start:end, None], self.sin[start:end, None]  # (T, 1, D)
        x = F.embedding(token_ids, self.embed)
        for layer in self.layers:
            normed = F.rms_norm(x, (c.d_model,), layer.attn_norm, c.norm_eps)
            heads = F.linear(normed, layer.qkv).view(1, end - start, -1, c.d_head)
            qk, v = heads[:, :, : -c.n_kv_head], heads[:, :, -c.n_kv_head :]
            first, second = qk.chunk(2, dim=-1)
            qk = qk * cos + torch.cat((-second, first), dim=-1) * sin
            layer.keys[:, :, start:end] = qk[:, :, c.n_head :].transpose(1, 2)
            layer.values[:, :, start:end] = v.transpose(1, 2)
            mixed = F.scaled_dot_product_attention(
                qk[:, :, : c.n_head].transpose(1, 2),
                layer.keys[:, :, :end],
                layer.values[:, :, :end],
                is_causal=end - start > 1,
                enable_gqa=c.n_head != c.n_kv_head,
            )
            x = x + F.linear(mixed.transpose(1, 2).reshape(1, end - start, -1), layer.o)
            gate, up = F.linear(F.rms_norm(x, (c.d_model,), layer.ff_norm, c.norm_eps), layer.gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        return F.linear(F.rms_norm(x[0, -1], (c.d_model,), self.norm, c.norm_eps), self.head)
