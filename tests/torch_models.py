"""minGPT, minGPT of 2020 and nanoGPT in PyTorch, with the names of their checkpoints.

They are the models that files in these layouts were saved from, so they know nothing of how this library reads them.

Source: ``mingpt/model.py`` of karpathy/minGPT, as of 2022 and of 2020; ``model.py`` of karpathy/nanoGPT.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


def draw(model: nn.Module, seed: int = 0, std: float = 0.3) -> nn.Module:
    """No parameter, gain or bias stays at a neutral value, behind which a mistake could hide."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, std)
    return model.eval()


def attend(query, key, value, n_head: int):
    """Causal attention of several heads; all are (B, T, D)."""
    length, width = query.shape[1:]
    query, key, value = (x.unflatten(-1, (n_head, -1)).transpose(1, 2) for x in (query, key, value))  # (B, H, T, K)
    scores = query @ key.transpose(-2, -1) / math.sqrt(width // n_head)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -math.inf).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)  # (B, T, D)


def causal_mask(block_size: int):
    return torch.ones(block_size, block_size).tril()[None, None]


class LayerNorm(nn.Module):
    """As nn.LayerNorm, with the bias optional."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, width: int, n_head: int, bias: bool, mask_size: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)
        if mask_size:
            self.register_buffer("bias", causal_mask(mask_size))

    def forward(self, x):
        return self.c_proj(attend(*self.c_attn(x).chunk(3, -1), self.n_head))


class MLP(nn.Module):
    def __init__(self, width: int, bias: bool, gelu: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=bias)
        self.c_proj = nn.Linear(4 * width, width, bias=bias)
        self.gelu = nn.GELU(approximate=gelu)

    def forward(self, x):
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, width: int, n_head: int, bias: bool, gelu: str, mask_size: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width, bias)
        self.attn = Attention(width, n_head, bias, mask_size)
        self.ln_2 = LayerNorm(width, bias)
        self.mlp = MLP(width, bias, gelu)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _GPT(nn.Module):
    """What minGPT and nanoGPT have in common."""

    def __init__(self, vocab_size: int, block_size: int, n_layer: int, n_head: int, n_embd: int, bias: bool,
                 gelu: str, has_mask: bool) -> None:
        super().__init__()
        mask_size = block_size if has_mask else 0
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(vocab_size, n_embd),
            "wpe": nn.Embedding(block_size, n_embd),
            "h": nn.ModuleList(Block(n_embd, n_head, bias, gelu, mask_size) for _ in range(n_layer)),
            "ln_f": LayerNorm(n_embd, bias),
        })
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)

    def forward(self, ids):
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


class MinGPT(_GPT):
    """A head of its own, tanh GELU, and the causal mask among the saved tensors."""

    def __init__(self, vocab_size: int, block_size: int, n_layer: int, n_head: int, n_embd: int) -> None:
        super().__init__(vocab_size, block_size, n_layer, n_head, n_embd, True, "tanh", has_mask=True)


class NanoGPT(_GPT):
    """The head is the token embedding; GELU was the tanh form until June 2023 and is the erf form since."""

    def __init__(self, vocab_size: int, block_size: int, n_layer: int, n_head: int, n_embd: int, bias: bool = True,
                 dropout: float = 0.0, gelu: str = "none") -> None:
        super().__init__(vocab_size, block_size, n_layer, n_head, n_embd, bias, gelu, has_mask=False)
        self.transformer["wte"].weight = self.lm_head.weight
        self.model_args = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size,
                           "bias": bias, "vocab_size": vocab_size, "dropout": dropout}

    def checkpoint(self, prefix: str = "") -> dict:
        """What nanoGPT's train.py saves, after one step of AdamW; with torch.compile the prefix is ``_orig_mod.``."""
        ids = torch.arange(self.model_args["block_size"])[None] % self.model_args["vocab_size"]
        groups = [{"params": [p for p in self.parameters() if p.dim() >= 2], "weight_decay": 0.1},
                  {"params": [p for p in self.parameters() if p.dim() < 2], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
        loss = functional.cross_entropy(self(ids).flatten(0, 1), ids.flatten())
        loss.backward()
        optimizer.step()
        return {
            "model": {prefix + name: tensor for name, tensor in self.state_dict().items()},
            "optimizer": optimizer.state_dict(), "model_args": self.model_args, "iter_num": 1,
            "best_val_loss": loss.detach(),
            "config": {"out_dir": "out", "dataset": "shakespeare_char", "wandb_log": False, "learning_rate": 1e-3,
                       "backend": "nccl", "compile": bool(prefix)},
        }


class OldAttention(nn.Module):
    def __init__(self, width: int, n_head: int, block_size: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.key, self.query, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.register_buffer("mask", causal_mask(block_size))

    def forward(self, x):
        return self.proj(attend(self.query(x), self.key(x), self.value(x), self.n_head))


class OldBlock(nn.Module):
    def __init__(self, width: int, n_head: int, block_size: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = OldAttention(width, n_head, block_size)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class OldMinGPT(nn.Module):
    """minGPT of 2020: a projection each for queries, keys and values, positions as a bare parameter, erf GELU."""

    def __init__(self, vocab_size: int, block_size: int, n_layer: int, n_head: int, n_embd: int) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(vocab_size, n_embd)
        self.pos_emb = nn.Parameter(torch.zeros(1, block_size, n_embd))
        self.blocks = nn.Sequential(*(OldBlock(n_embd, n_head, block_size) for _ in range(n_layer)))
        self.ln_f = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)

    def forward(self, ids):
        x = self.tok_emb(ids) + self.pos_emb[:, :ids.shape[1]]
        return self.head(self.ln_f(self.blocks(x)))
