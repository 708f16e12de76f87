"""Describe the shape of a model as a frozen dataclass that checks itself. It knows no tensor and no file."""

from dataclasses import dataclass
from typing import Literal

from tinystory.errors import CheckpointError
from tinystory.safe.reading import shown

__all__ = ["Activation", "Family", "ModelConfig", "RopeScaling"]

Family = Literal["gpt2", "llama"]
Activation = Literal["gelu", "gelu_tanh", "silu"]

# Far above every model that this project can run, and low enough that checking a config takes little memory.
_LIMITS = {
    "vocab_size": 2_000_000,
    "n_layer": 1_000,
    "n_head": 4_096,
    "n_kv_head": 4_096,
    "d_model": 131_072,
    "d_head": 8_192,
    "d_ff": 1_048_576,
    "max_seq_len": 16_777_216,
}
MAX_PARAMETERS = 20_000_000_000


@dataclass(frozen=True)
class RopeScaling:
    """A way to stretch rotary positions to longer contexts.

    "linear" divides all frequencies by `factor`. "llama3" divides only the low ones, as Llama 3.1 does.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a `Transformer`: the sizes of its tensors, and the functions that it computes.

    The family `gpt2` has learned positions, LayerNorm, a GELU feed-forward and biases. The family `llama` has rotary
    positions, RMSNorm, SwiGLU and grouped-query attention. Every config is valid, since the constructor raises
    `CheckpointError` for wrong values.

    Attributes:
        family: "gpt2" or "llama".
        vocab_size: the number of tokens, V.
        n_layer: the number of blocks.
        n_head: query heads of one layer, H.
        n_kv_head: key/value heads of one layer, K; n_head is a multiple of it.
        d_model: the width of the residual stream, C.
        d_head: the width of one head, D.
        d_ff: the inner width of the feed-forward.
        max_seq_len: the longest context, in tokens.
        tied_head: the output head uses the matrix of the embedding.
        norm_eps: the small number that every norm adds to the variance.
        activation: the non-linear function of the feed-forward.
        attention_bias: q, k and v have biases.
        attention_out_bias: the output projection of the attention has a bias.
        ff_bias: the matrices of the feed-forward have biases.
        rope_theta: the base of the rotary frequencies; only llama uses it.
        rope_scaling: how rotary positions are stretched; None does not stretch them.
    """

    family: Family
    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    d_model: int
    d_head: int
    d_ff: int
    max_seq_len: int
    tied_head: bool = True
    norm_eps: float = 1e-5
    activation: Activation = "silu"
    attention_bias: bool = False
    attention_out_bias: bool = False
    ff_bias: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        """Check every field, and that the fields fit together."""
        if self.family not in ("gpt2", "llama"):
            raise CheckpointError(f"family is {shown(self.family)}; it must be 'gpt2' or 'llama'")
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise CheckpointError(f"{name} is {shown(value)}; it must be an integer from 1 to {limit}")
        if self.n_head % self.n_kv_head:
            raise CheckpointError(f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")
        if self.family == "gpt2" and self.n_kv_head != self.n_head:
            raise CheckpointError(f"gpt2 has no grouped heads: n_kv_head {self.n_kv_head}, n_head {self.n_head}")
        if self.family == "gpt2" and self.d_head * self.n_head != self.d_model:
            raise CheckpointError(f"d_model {self.d_model} is not divisible by n_head {self.n_head}")
        if self.family == "llama" and self.d_head % 2:
            raise CheckpointError(f"d_head is {self.d_head}; rotary positions need an even head size")
        for name in ("norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < 1e12:
                raise CheckpointError(f"{name} is {shown(value)}; it must be a positive number")
        if self.n_parameters > MAX_PARAMETERS:
            raise CheckpointError(
                f"the config describes {self.n_parameters / 1e9:.0f} billion parameters; "
                f"the limit is {MAX_PARAMETERS // 10**9} billion"
            )

    @property
    def n_parameters(self) -> int:
        """The number of weights; a tied head is counted once."""
        gpt2 = self.family == "gpt2"
        d_q, d_kv = self.n_head * self.d_head, self.n_kv_head * self.d_head
        norm = self.d_model * (2 if gpt2 else 1)
        attention = self.d_model * (2 * d_q + 2 * d_kv)
        attention += (d_q + 2 * d_kv) * self.attention_bias + self.d_model * self.attention_out_bias
        feed_forward = self.d_model * self.d_ff * (2 if gpt2 else 3)
        feed_forward += (self.d_model + self.d_ff * (1 if gpt2 else 2)) * self.ff_bias
        embeddings = self.vocab_size * self.d_model * (1 if self.tied_head else 2)
        embeddings += self.max_seq_len * self.d_model if gpt2 else 0
        return embeddings + self.n_layer * (attention + feed_forward + 2 * norm) + norm

    @classmethod
    def gpt2(
        cls,
        vocab_size: int,
        n_layer: int,
        n_head: int,
        d_model: int,
        max_seq_len: int,
        d_ff: int = 0,
        **other: object,
    ) -> "ModelConfig":
        """Return a config of the GPT-2 family; `d_ff` defaults to 4 × d_model.

        Raises:
            CheckpointError: d_model is not a multiple of n_head, or a field is out of range.
        """
        if type(n_head) is not int or n_head < 1 or d_model % n_head:
            raise CheckpointError(f"d_model {d_model} is not divisible by n_head {n_head}")
        fields: dict[str, object] = {
            "activation": "gelu_tanh", "attention_bias": True, "attention_out_bias": True, "ff_bias": True,
            **other,
        }  # fmt: skip
        return cls(
            "gpt2", vocab_size, n_layer, n_head, n_head, d_model, d_model // n_head, d_ff or 4 * d_model,
            max_seq_len, **fields,  # type: ignore[arg-type]
        )  # fmt: skip

    @classmethod
    def llama(
        cls,
        vocab_size: int,
        n_layer: int,
        n_head: int,
        d_model: int,
        max_seq_len: int,
        d_ff: int,
        n_kv_head: int = 0,
        d_head: int = 0,
        **other: object,
    ) -> "ModelConfig":
        """Return a config of the Llama family; `n_kv_head` defaults to n_head, and `d_head` to d_model / n_head.

        Raises:
            CheckpointError: `d_head` is not given and d_model is not a multiple of n_head, or a field is out of range.
        """
        if not d_head:
            if type(n_head) is not int or n_head < 1 or d_model % n_head:
                raise CheckpointError(f"d_model {d_model} is not divisible by n_head {n_head}")
            d_head = d_model // n_head
        return cls(
            "llama", vocab_size, n_layer, n_head, n_kv_head or n_head, d_model, d_head, d_ff, max_seq_len,
            **other,  # type: ignore[arg-type]
        )  # fmt: skip
