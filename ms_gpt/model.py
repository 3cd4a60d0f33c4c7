"""The transformer: MLP, Attention, Block, GPTModel.

Letters in the shape comments: B batch, T query length, S key length, H heads, D n_embd, K = D / H, V vocabulary,
L layers. GPT-1 normalises after each residual sum, GPT-2 and GPT-3 before each sub-block, and every second layer of
GPT-3 looks at a window of tokens only; ``GPTConfig`` says which.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ms_gpt.config import GPTConfig
from ms_gpt.kernels import STEP_ROWS, kernel
from ms_gpt.layers import Activation, Add, Conv1D, Dropout, LayerNorm, attention_bias, kept_heads, mix, positions
from ms_gpt.pretrained import GPTPreTrainedModel


class MLP(nn.Cell):
    """The feed-forward half of a block.

    Args:
        n_state: Width of the hidden layer.
        config: The model's configuration.

    Inputs:
        x: Tensor (B, T, D).
        dropout_key: int32 scalar Tensor, read in training only.

    Outputs:
        Tensor (B, T, D).

    Source: Vaswani et al. 2017, section 3.3; the width and GELU of the GPT-1 paper, section 4.1.
    """

    def __init__(self, n_state: int, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(n_state, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, n_state)
        # transformers reads "gelu" as the erf form, save in GPT-1.
        is_erf = config.activation_function == "gelu" and not config.post_norm
        self.act = Activation("gelu_exact" if is_erf else config.activation_function)
        self.dropout = Dropout(config.resid_pdrop)

    def construct(self, x: Tensor, dropout_key: Tensor | None = None) -> Tensor:
        """Return the feed-forward output, without the residual."""
        # In float32: the square in GELU's gradient leaves float16's range at 256, and is NaN from there on.
        return self.dropout(self.c_proj(self.act(self.c_fc(x).astype(ms.float32))), dropout_key)


class Attention(nn.Cell):
    """Masked multi-head self-attention with one packed projection for queries, keys and values.

    Args:
        config: The model's configuration.
        layer_idx: The block's number, from 0.

    Inputs:
        x: Tensor (B, T, D).
        bias: float32 Tensor (1 or B, 1, T, S) added to the scores; see ``layers.attention_bias``.
        head_mask: Tensor (1, H, 1, 1) or ``None``; 0 silences a head.
        dropout_key: int32 scalar Tensor, read in training only.
        past: ``None`` (S = T), or a tuple of the layer's two caches (B, H, S, K), ``cache_position`` (T,) and a Tensor
            (B, 1, T, 1), 1 for real tokens and 0 for padding. Columns of the caches that have not been written are 0.

    Outputs:
        Tuple of Tensor (B, T, D) and the attention weights, Tensor (B, H, T, S); ``()`` where the CPU's fused kernel
        or Ascend's ``flash_attention`` was used, which do without them (not if ``config.output_attentions``).

    Source: Vaswani et al. 2017, section 3.2; names from openai/finetune-transformer-lm.
    """

    def __init__(self, config: GPTConfig, layer_idx: int = 0) -> None:
        super().__init__()
        self.full_n_head = config.n_head
        self.n_head = config.n_head
        self.head_size = config.head_size
        self.heads = list(range(config.n_head))
        self.scale = config.head_size**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer_idx + 1
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.attn_dropout = Dropout(config.attn_pdrop)
        self.resid_dropout = Dropout(config.resid_pdrop)
        self.softmax = ops.Softmax(-1)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.weighted_sum = ops.BatchMatMul()
        self.add_columns = ops.IndexAdd(axis=2)
        self.flash_attention = False
        self.needs_weights = config.output_attentions
        self.kernel = self.step_kernel = None
        self.no_key = Tensor(0, ms.int32)
        self.settings = self.training_settings = None

    def set_kernels(self, are_used: bool) -> None:
        """Compute with the fused CPU kernel, or with plain operations."""
        are_used = are_used and not self.needs_weights
        self.kernel = kernel("attention") if are_used else None
        self.step_kernel = kernel("attention_step") if are_used else None
        self.settings = Tensor([[self.scale, 1.0]] * self.n_head, ms.float32)
        self.training_settings = Tensor([[self.scale, self.attn_dropout.scale]] * self.n_head, ms.float32)

    @property
    def pruned_heads(self) -> set[int]:
        """The heads that are gone, in the numbering of the unpruned layer."""
        return set(range(self.full_n_head)) - set(self.heads)

    def prune_heads(self, heads: set[int] | list[int]) -> None:
        """Remove heads for good: their columns of ``c_attn`` and their rows of ``c_proj``.

        Args:
            heads: Numbers in the unpruned layer; those already gone are passed over.

        Raises:
            UserError: A head does not exist, or none would be left.
        """
        kept = kept_heads(self.full_n_head, self.pruned_heads | set(heads))
        if kept == self.heads:
            return
        places = np.array([self.heads.index(head) for head in kept])
        rows = (places[:, None] * self.head_size + np.arange(self.head_size)).reshape(-1)
        width = self.n_head * self.head_size
        self.c_attn.select(np.concatenate([rows, rows + width, rows + 2 * width]), axis=1)
        self.c_proj.select(rows, axis=0)
        self.heads, self.n_head = kept, len(kept)
        self.set_kernels(self.kernel is not None)

    def split_heads(self, x: Tensor) -> Tensor:
        """Reshape (B, T, H*K) to (B, H, T, K)."""
        return x.reshape((x.shape[0], x.shape[1], self.n_head, self.head_size)).transpose((0, 2, 1, 3))

    def merge_heads(self, x: Tensor) -> Tensor:
        """Reshape (B, H, T, K) to (B, T, H*K)."""
        x = x.transpose((0, 2, 1, 3))
        return x.reshape((x.shape[0], x.shape[1], self.n_head * self.head_size))

    def remember(self, past: tuple, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values (B, H, T, K) into the caches; return all that these hold, (B, H, S, K) each."""
        key_cache, value_cache, cache_position, is_real = past
        # The caches of a model in bfloat16 are float32: IndexAdd takes no bfloat16.
        dtype, kept = key.dtype, key_cache.dtype
        is_real = is_real.astype(kept)
        # Adding to columns of zeros is the fastest way to write in place. Padding leaves its columns free.
        return (self.add_columns(key_cache, cache_position, key.astype(kept) * is_real).astype(dtype),
                self.add_columns(value_cache, cache_position, value.astype(kept) * is_real).astype(dtype))

    def fused(self, packed: Tensor, bias: Tensor, dropout_key: Tensor | None, past: tuple | None) -> Tensor:
        """Return what the heads see, (B, T, D), from queries, keys and values (B, T, 3 D), by the fused kernels."""
        if past is not None:
            key_cache, value_cache, cache_position, is_real = past
            return self.step_kernel(packed, key_cache, value_cache, bias, cache_position, is_real.astype(ms.float32),
                                    self.settings)
        if self.training and dropout_key is not None:
            return self.kernel(packed, bias, dropout_key, self.attn_dropout.constants, self.training_settings)[0]
        return self.kernel(packed, bias, self.no_key, self.attn_dropout.constants, self.settings)[0]

    def flash(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Attend by Ascend's fused kernel, as its documentation has it; it has not been run on hardware yet.

        Args:
            query: float16 or bfloat16 Tensor (B, T, H*K), layout "BSH".
            key: As ``query``.
            value: As ``query``.
            bias: float32 Tensor (1 or B, 1, T, T).

        Returns:
            Tensor (B, T, H*K) of the dtype of ``query``.
        """
        length = bias.shape[-1]
        position = positions(length)
        # Padding looks at itself, since what the kernel makes of a row without any key is not documented.
        hidden = ops.logical_and(bias < 0, position.reshape((length, 1)) != position.reshape((1, length)))
        if bias.shape[0] == 1:
            hidden = hidden.reshape((length, length))
        # Mode 1: the whole mask is given, True where a query may not look.
        return ops.flash_attention_score(query, key, value, self.n_head, attn_mask=hidden, keep_prob=1.0,
                                         scalar_value=self.scale, input_layout="BSH", sparse_mode=1)

    def construct(self, x: Tensor, bias: Tensor, head_mask: Tensor | None = None, dropout_key: Tensor | None = None,
                  past: tuple | None = None) -> tuple[Tensor, Tensor | tuple]:
        """Return the attention output, without the residual, and the weights."""
        if self.kernel is not None and head_mask is None:
            out = self.fused(self.c_attn(x), bias, dropout_key, past)
            return self.resid_dropout(self.c_proj(out), dropout_key), ()
        dtype = self.c_attn.compute_dtype
        query, key, value = ops.split(self.c_attn(x), self.n_head * self.head_size, axis=2)
        if (self.flash_attention and past is None and head_mask is None
                and not (self.training and self.attn_dropout.p > 0)):
            return self.resid_dropout(self.c_proj(self.flash(query, key, value, bias)), dropout_key), ()
        query, key, value = self.split_heads(query), self.split_heads(key), self.split_heads(value)  # (B, H, T, K)
        if past is not None:
            key, value = self.remember(past, key, value)  # (B, H, S, K)
        # The scores and the softmax stay in float32 whatever the products are computed in.
        scores = self.scores(query * self.scale, key).astype(ms.float32) + bias  # (B, H, T, S)
        weights = self.attn_dropout(self.softmax(scores), dropout_key)
        if head_mask is not None:
            weights = weights * head_mask
        out = self.merge_heads(self.weighted_sum(weights.astype(dtype), value))  # (B, T, D)
        return self.resid_dropout(self.c_proj(out), dropout_key), weights


class Block(nn.Cell):
    """One layer: attention and MLP, each with a residual connection and a LayerNorm.

    Args:
        config: The model's configuration.
        layer_idx: The block's number, from 0.

    Inputs:
        As ``Attention``.

    Outputs:
        As ``Attention``, the residuals added.

    Source: norms after the sums as in the GPT-1 paper, equation 2; before each half as in the GPT-2 paper, section 2.3.
    """

    def __init__(self, config: GPTConfig, layer_idx: int = 0) -> None:
        super().__init__()
        self.post_norm = config.post_norm
        self.attn = Attention(config, layer_idx)
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config.inner_size, config)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.add = Add()
        self.step_kernel = None
        self.norms = Tensor([config.layer_norm_epsilon, float(config.post_norm)], ms.float32)

    def set_kernels(self, are_used: bool) -> None:
        """Compute a step of generation with one fused CPU kernel, or part by part."""
        are_used = are_used and self.mlp.act.name == "gelu" and not self.attn.needs_weights
        self.step_kernel = kernel("block_step") if are_used else None

    def step(self, x: Tensor, bias: Tensor, past: tuple) -> Tensor:
        """Return the new hidden states of one token in each row, (B, 1, D)."""
        key_cache, value_cache, cache_position, is_real = past
        parts = (self.ln_1.gamma, self.ln_1.beta, self.attn.c_attn.weight, self.attn.c_attn.bias,
                 self.attn.c_proj.weight, self.attn.c_proj.bias, self.ln_2.gamma, self.ln_2.beta,
                 self.mlp.c_fc.weight, self.mlp.c_fc.bias, self.mlp.c_proj.weight, self.mlp.c_proj.bias)
        return self.step_kernel(x, key_cache, value_cache, bias, cache_position, is_real.astype(ms.float32),
                                self.attn.settings, self.norms, *parts)

    def construct(self, x: Tensor, bias: Tensor, head_mask: Tensor | None = None,
                  dropout_key: Tensor | None = None, past: tuple | None = None) -> tuple[Tensor, Tensor | tuple]:
        """Return the new hidden states and the attention weights."""
        is_step = past is not None and x.shape[1] == 1 and x.shape[0] <= STEP_ROWS
        if self.step_kernel is not None and is_step and head_mask is None and not self.training:
            return self.step(x, bias, past), ()
        if self.post_norm:
            attended, weights = self.attn(x, bias, head_mask, dropout_key, past)
            x = self.ln_1.after_sum(x, attended)[1]
            x = self.ln_2.after_sum(x, self.mlp(x, dropout_key))[1]
        else:
            attended, weights = self.attn(self.ln_1(x), bias, head_mask, dropout_key, past)
            x, normed = self.ln_2.after_sum(x, attended)
            x = self.add(x, self.mlp(normed, dropout_key))
        return x, weights


class ExactLookup(nn.Cell):
    """Rows of a table, with a gradient that does not depend on the order in which a device adds up.

    A GPU adds the gradients of a row in the order in which its threads arrive, and a sum of floats depends on that
    order. Here every gradient is first rounded to a multiple of one number, 2**-53 of a bound on all sums, so that each
    sum is exact in float64 and any order gives the same bits.

    Inputs:
        table: float32 Tensor (V, D).
        ids: int Tensor of any shape, in [0, V).

    Outputs:
        Tensor (..., D).

    Source: Demmel and Nguyen 2013, pre-rounded summation with one fold.
    """

    def construct(self, table: Tensor, ids: Tensor) -> Tensor:
        """Return the rows."""
        return ops.gather(table, ids, 0)

    def bprop(self, table: Tensor, ids: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient (V, D) of the table, and zeros."""
        rows = dout.reshape((-1, dout.shape[-1])).astype(ms.float64)
        # What is added to such a number and taken away again is rounded to multiples of its last bit.
        large = ops.ReduceMax()(ops.abs(dout)).astype(ms.float64) * (2.0 * rows.shape[0])
        rows = (rows + large) - large
        total = ops.UnsortedSegmentSum()(rows, ids.reshape((-1,)), table.shape[0])
        return total.astype(table.dtype), ops.zeros_like(ids)


class GPTModel(GPTPreTrainedModel):
    """The transformer without a head: token ids in, hidden states out.

    Args:
        config: The model's configuration.

    Inputs:
        input_ids: int Tensor (B, T); or give ``inputs_embeds``.
        attention_mask: Tensor (B, T), 1 for real tokens and 0 for padding; with a cache (B, S). Default: all real.
        token_type_ids: int Tensor (B, T) of token ids whose embeddings are added (GPT-1's segments).
        position_ids: int Tensor (B, T) or (1, T). Default: 0, 1, 2 ... in every row, as transformers has it; with left
            padding pass ``cumsum(attention_mask) - 1``. With a cache the default is ``cache_position``.
        head_mask: Tensor (H,) or (L, H); 0 silences a head.
        inputs_embeds: Tensor (B, T, D) in place of ``input_ids``.
        past_key_values: Keys and values of the tokens so far, a tuple of L pairs of Parameters (B, H, S, K) that the T
            new ones are written to in place. Parameters enter a graph with the Cell that owns them, so it is such a
            Cell that calls the model with a cache: see ``ms_gpt.generation``.
        cache_position: int32 Tensor (T,), the columns of the cache that belong to the T tokens; needed with a cache.

    Outputs:
        Tuple of the last hidden states (B, T, D); then, if ``output_hidden_states``, a tuple of L + 1 such Tensors;
        then, if ``output_attentions``, a tuple of L Tensors (B, H, T, S); S = T without a cache.

    Raises:
        UserError: Both or neither of ``input_ids`` and ``inputs_embeds`` are given, T exceeds ``n_positions``, or
            ids, mask or token types are no Tensors of that shape.

    Source: GPT-1 paper, equation 2; GPT-2 paper, section 2.3; layers with banded attention after the GPT-3 paper, 2.1.
    """

    architecture = {"openai-gpt": "OpenAIGPTModel", "gpt2": "GPT2Model", "ms_gpt": "GPTModel"}

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.tokens_embed = nn.Embedding(config.vocab_size, config.n_embd, embedding_table="zeros")
        self.positions_embed = nn.Embedding(config.n_positions, config.n_embd, embedding_table="zeros")
        self.exact_lookup, self.sums_exactly = ExactLookup(), False
        self.drop = Dropout(config.embd_pdrop)
        self.h = nn.CellList([Block(config, i) for i in range(config.n_layer)])
        self.window_size = config.window_size
        self.is_local = tuple(config.is_local(i) for i in range(config.n_layer))
        self.has_final_norm = not config.post_norm
        if self.has_final_norm:
            self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.output_hidden_states = config.output_hidden_states
        self.output_attentions = config.output_attentions
        # Seed and number of training passes so far: all that dropout depends on.
        self.dropout_state = Parameter(Tensor([config.seed, 0], ms.int32), name="dropout_state", requires_grad=False)
        self.post_init()

    def next_dropout_key(self) -> Tensor:
        """Return this training pass's key (int32 scalar) and count the pass."""
        state = self.dropout_state + 0
        ops.assign_add(self.dropout_state, Tensor([0, 1], ms.int32))
        return mix(mix(state[0]) + state[1])

    def head_dropout_key(self) -> Tensor | None:
        """Return the int32 scalar key of a head's dropout once the transformer has run; ``None`` outside training."""
        return mix(mix(self.dropout_state[0]) + self.dropout_state[1]) if self.training else None

    def look_up(self, embedding: nn.Embedding, ids: Tensor) -> Tensor:
        """Return the rows of an embedding for ids of any shape, (..., D)."""
        return self.exact_lookup(embedding.embedding_table, ids) if self.sums_exactly else embedding(ids)

    def embed(self, input_ids: Tensor | None, token_type_ids: Tensor | None, position_ids: Tensor | None,
              inputs_embeds: Tensor | None) -> Tensor:
        """Return the sum of token, position and token-type embeddings, (B, T, D)."""
        if inputs_embeds is None:
            inputs_embeds = self.look_up(self.tokens_embed, input_ids)
        length = inputs_embeds.shape[1]
        # Within a larger graph nothing has checked this yet.
        if length > self.config.n_positions:
            raise ValueError(f"a sequence of {length} tokens is longer than n_positions={self.config.n_positions}")
        if position_ids is None:
            position_ids = positions(length).reshape((1, length))
        hidden_states = inputs_embeds + self.look_up(self.positions_embed, position_ids)
        if token_type_ids is not None:
            hidden_states = hidden_states + self.look_up(self.tokens_embed, token_type_ids)
        return hidden_states.astype(ms.float32)

    def layer_head_mask(self, head_mask: Tensor | None, layer: int) -> Tensor | None:
        """Return one layer's part of a head mask, (1, H, 1, 1), without the heads that were pruned."""
        if head_mask is None:
            return None
        mask = head_mask[layer] if head_mask.ndim == 2 else head_mask
        mask = ops.gather(mask, Tensor(self.h[layer].attn.heads, ms.int32), 0)
        return mask.reshape((1, -1, 1, 1)).astype(ms.float32)

    def construct(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: tuple | None = None,
        cache_position: Tensor | None = None,
    ) -> tuple:
        """Return the hidden states; see the class for shapes."""
        dropout_key = self.next_dropout_key() if self.training else None
        query_position = None if past_key_values is None else cache_position
        if position_ids is None and query_position is not None:
            position_ids = query_position.reshape((1, -1))
        hidden_states = self.embed(input_ids, token_type_ids, position_ids, inputs_embeds)
        hidden_states = self.drop(hidden_states, dropout_key)
        batch, length = hidden_states.shape[:2]
        is_real = None
        if past_key_values is not None:
            length = past_key_values[0][0].shape[2]
            if attention_mask is None:
                attention_mask = ops.ones((batch, length), ms.int32)
            is_real = (ops.gather(attention_mask, cache_position, 1) != 0).reshape((batch, 1, -1, 1))
        bias = attention_bias(length, attention_mask, None, query_position)
        local_bias = bias
        if self.window_size is not None:
            local_bias = attention_bias(length, attention_mask, self.window_size, query_position)

        all_hidden_states, all_attentions = (), ()
        for i in range(len(self.h)):
            all_hidden_states = all_hidden_states + (hidden_states,)
            layer_bias = local_bias if self.is_local[i] else bias
            layer_head_mask = self.layer_head_mask(head_mask, i)
            past = None if past_key_values is None else past_key_values[i] + (cache_position, is_real)
            hidden_states, weights = self.h[i](hidden_states, layer_bias, layer_head_mask, dropout_key, past)
            all_attentions = all_attentions + (weights,)
        if self.has_final_norm:
            hidden_states = self.ln_f(hidden_states)
        outputs = (hidden_states,)
        if self.output_hidden_states:
            outputs = outputs + (all_hidden_states + (hidden_states,),)
        if self.output_attentions:
            outputs = outputs + (all_attentions,)
        return outputs
