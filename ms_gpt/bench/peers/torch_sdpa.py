"""A plain GPT on PyTorch, as its users write one today: pre-norm, fused attention, tied head, eager mode."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and added to what went in.

    Args:
        width: Width of the hidden states.
        n_head: Attention heads.
        dropout: Rate of every dropout in it.
    """

    def __init__(self, width: int, n_head: int, dropout: float) -> None:
        super().__init__()
        self.n_head, self.dropout = n_head, dropout
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.attn_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the new hidden states (B, T, D)."""
        batch, length, width = x.shape
        heads = self.c_attn(self.ln_1(x)).view(batch, length, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(*heads.unbind(0), dropout_p=rate, is_causal=True)
        mixed = self.attn_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        x = x + functional.dropout(mixed, self.dropout, self.training)
        hidden = self.mlp_proj(functional.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))
        return x + functional.dropout(hidden, self.dropout, self.training)


class SdpaGPT(nn.Module):
    """The language model.

    Args:
        config: GPT-2's ``config.json``.
    """

    def __init__(self, config: Mapping) -> None:
        super().__init__()
        width, self.dropout = config["n_embd"], config["resid_pdrop"]
        self.tokens = nn.Embedding(config["vocab_size"], width)
        self.positions = nn.Embedding(config["n_positions"], width)
        self.blocks = nn.ModuleList(Block(width, config["n_head"], self.dropout) for _ in range(config["n_layer"]))
        self.ln_f = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of ids (B, T) whose next tokens are ``targets`` (B, T)."""
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        x = functional.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.ln_f(x), self.tokens.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def load_gpt2(self, tensors: Mapping[str, Tensor]) -> SdpaGPT:
        """Take the weights of a GPT-2 in transformers' layout, whose linear layers are stored (inputs, outputs)."""
        names = {"wte": "tokens", "wpe": "positions", "ln_f": "ln_f", "attn.c_attn": "c_attn",
                 "attn.c_proj": "attn_proj", "mlp.c_fc": "c_fc", "mlp.c_proj": "mlp_proj", "ln_1": "ln_1",
                 "ln_2": "ln_2"}
        state = {}
        for name, value in tensors.items():
            path, leaf = name.removeprefix("transformer.").rsplit(".", 1)
            prefix, part = "", path
            if path.startswith("h."):
                _, number, part = path.split(".", 2)
                prefix = f"blocks.{number}."
            is_linear = leaf == "weight" and part.startswith(("attn", "mlp"))
            state[f"{prefix}{names[part]}.{leaf}"] = value.T.contiguous() if is_linear else value
        self.load_state_dict(state)
        return self
