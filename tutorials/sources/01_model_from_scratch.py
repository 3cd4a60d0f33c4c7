# %% [markdown] en
# # 01 The model from scratch
#
# We build a GPT out of a dozen short functions, look at the shape of every Tensor on the way, and check each step
# against the library: `ms_gpt.layers` and `ms_gpt.model`. Then we train a tiny model and watch what its attention
# heads have learnt. It runs on an Ascend NPU, a GPU or a CPU, and
# takes about a minute on two CPU cores.
#
# The letters of the shapes are those of `ms_gpt/model.py`: **B** batch, **T** tokens, **D** width (`n_embd`), **H**
# heads, **K** = D / H, **V** vocabulary.

# %% [markdown] zh
# # 01 从零搭建模型
#
# 本教程用十来个简短的函数搭出一个 GPT，逐步查看每个 Tensor 的形状，
# 并把每一步的结果与本库的实现（`ms_gpt.layers` 和 `ms_gpt.model`）对比。
# 最后训练一个很小的模型，看看它的注意力头学到了什么。
# 本教程可在昇腾 NPU、GPU 或 CPU 上运行，在两个 CPU 核上约需一分钟。
#
# 形状所用的字母与 `ms_gpt/model.py` 一致：**B** 批次大小，**T** 词元数，**D** 宽度（`n_embd`），
# **H** 注意力头数，**K** = D / H，**V** 词表大小。

# %%
import math

import matplotlib.pyplot as plt
import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ms_gpt import GPTConfig, GPTLMHeadModel
from ms_gpt.plots import BLUE, GREEN, GREY, ORANGE

words = ["the", "cast", "is", "good", "but", "the", "plot", "is", "not"]
vocabulary = sorted(set(words))
ids = Tensor([[vocabulary.index(word) for word in words]], ms.int32)  # (B, T)

B, T = ids.shape
V, D, H = len(vocabulary), 16, 4
K = D // H
# A large initializer_range, so that a model without training has something to show.
config = GPTConfig(V, 32, n_layer=2, n_head=H, n_embd=D, model_type="gpt2", initializer_range=0.3,
                   output_attentions=True, output_hidden_states=True)
model = GPTLMHeadModel(config).set_train(False)
logits, hidden_states, attentions = model(ids)
print(f"ids {ids.shape}  ->  logits {logits.shape};  B={B} T={T} V={V} D={D} H={H} K={K}")

# %% [markdown] en
# ## Two helpers
#
# `compare` holds our result against the library's. `draw` draws matrices to scale.

# %% [markdown] zh
# ## 两个辅助函数
#
# `compare` 将我们的结果与本库的结果作比较，`draw` 按比例画出各个矩阵。

# %%
def compare(name, ours, theirs):
    difference = float(np.abs(ours.asnumpy() - theirs.asnumpy()).max())
    print(f"{name:<34} {ours.shape!s:<14} largest difference {difference:.0e}")
    assert difference < 1e-5, "the two are not the same function"


def draw(*items):
    """Draw matrices (name, rows, columns, letters, number of copies) to scale, and operators between them."""
    figure, axes = plt.subplots(figsize=(9, 2.4))
    left, shift = 0.0, 0.7
    tallest = max(item[1] + shift * item[4] for item in items if not isinstance(item, str))
    for item in items:
        if isinstance(item, str):
            axes.text(left + 1, 0, item, ha="center", va="center", fontsize=15)
            left += 3
            continue
        name, rows, columns, letters, copies = item
        for i in reversed(range(copies)):
            corner = (left + shift * i, -rows / 2 + shift * i)
            axes.add_patch(plt.Rectangle(corner, columns, rows, facecolor="#dfe8f3", edgecolor=BLUE, linewidth=1.2))
        fits = len(max(name.split("\n"), key=len)) < 1.2 * columns
        height = 0 if fits else rows / 2 + shift * (copies - 1) + 0.4
        axes.text(left + columns / 2, height, name, ha="center", va="center" if fits else "bottom", fontsize=10)
        axes.text(left + columns / 2, -rows / 2 - 0.5, letters, ha="center", va="top", fontsize=9, color=ORANGE)
        left += columns + shift * copies + 0.8
    axes.set(xlim=(-1, left), ylim=(-tallest / 2 - 2.5, tallest / 2 + 3))
    axes.set_aspect("equal")
    axes.axis("off")
    plt.show()


draw(("ids", T, 1, "T", 1), "→", ("rows of\ntokens_embed", T, D, "T × D", 1), "+",
     ("rows of\npositions_embed", T, D, "T × D", 1), "=", ("x", T, D, "T × D", 1))

# %% [markdown] en
# ## Embeddings: from numbers to vectors
#
# A token id picks a row of one table, its position a row of another. The sum is all that the model knows about a word
# before it has looked at the others.

# %% [markdown] zh
# ## 嵌入：从编号到向量
#
# 词元编号从一张表中取出一行，所在位置从另一张表中取出一行。
# 两者之和，就是模型在观察其他词元之前对该词元的全部了解。

# %%
transformer = model.transformer
tokens_table = transformer.tokens_embed.embedding_table  # (V, D)
positions_table = transformer.positions_embed.embedding_table  # (n_positions, D)

x = ops.gather(tokens_table, ids, 0) + positions_table[:T]  # (B, T, D)
compare("embeddings", x, hidden_states[0])

# %% [markdown] en
# ## Conv1D: a linear layer
#
# `Conv1D` is a convolution in name only. It computes `x @ weight + bias`, and it keeps its weight as **(inputs,
# outputs)** because OpenAI's first checkpoint did; `nn.Dense` and PyTorch's `nn.Linear` keep (outputs, inputs). The
# first one in a block, `c_attn`, makes queries, keys and values in one product.

# %% [markdown] zh
# ## Conv1D：一个线性层
#
# `Conv1D` 只是名为卷积，实际计算的是 `x @ weight + bias`。
# 它的权重按 **(输入, 输出)** 存放，因为 OpenAI 最早的检查点就是这样存的；
# 而 `nn.Dense` 和 PyTorch 的 `nn.Linear` 按 (输出, 输入) 存放。
# 每个 Block 中的第一个 Conv1D 是 `c_attn`，用一次矩阵乘同时得到查询、键和值。

# %%
def conv1d(x, layer):
    return ops.matmul(x, layer.weight) + layer.bias


block = transformer.h[0]
qkv = conv1d(x, block.attn.c_attn)  # (B, T, 3 D)
compare("Conv1D: c_attn", qkv, block.attn.c_attn(x))
print("weight", block.attn.c_attn.weight.shape, " bias", block.attn.c_attn.bias.shape)
draw(("x", T, D, "T × D", 1), "·", ("c_attn.weight", D, 3 * D, "D × 3D", 1), "=",
     ("query | key | value", T, 3 * D, "T × 3D", 1))

# %% [markdown] en
# ## One head: scores, mask, softmax
#
# Each token asks a question (its *query*) and every token offers an answer to match (its *key*). Their product is a
# score, divided by √K so that it does not grow with the width. A language model predicts the next token, so a token
# must not look at what comes after it: the **causal mask** adds the lowest float32 number there, and the softmax
# turns it into exactly 0.

# %% [markdown] zh
# ## 单个注意力头：得分、掩码与 softmax
#
# 每个词元提出一个问题（*查询*），同时每个词元给出一个可供匹配的标识（*键*），两者的内积就是得分。
# 得分要除以 √K，以免随宽度增大。语言模型预测的是下一个词元，所以任何词元都不能看到它后面的内容：
# **因果掩码**在这些位置加上 float32 的最小值，经过 softmax 后恰好为 0。

# %%
def causal_bias(length):
    allowed = np.tril(np.ones((length, length), bool))  # row t: what token t may look at
    return Tensor(np.where(allowed, 0.0, np.finfo(np.float32).min).astype(np.float32))


query, key, value = (part[0, :, :K] for part in ops.split(qkv, D, axis=2))  # the first head's K columns of each
scores = ops.matmul(query, key.transpose(1, 0)) / math.sqrt(K)  # (T, T)
weights = ops.softmax(scores + causal_bias(T), axis=-1)

figure, panels = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
seen = np.tril(np.ones((T, T), bool))
for panel, title, values in (
    (panels[0], "scores: query · key / √K", scores.asnumpy()),
    (panels[1], "with the causal mask", np.where(seen, scores.asnumpy(), np.nan)),
    (panels[2], "weights: each row sums to 1", np.where(seen, weights.asnumpy(), np.nan)),
):
    panel.imshow(values, cmap="viridis")
    panel.set_title(title, fontsize=11)
    panel.set_xticks(range(T), words, rotation=90)
    panel.set_yticks(range(T), words)
panels[0].set_ylabel("token that looks")
plt.show()

# %% [markdown] en
# ## All heads at once
#
# With H heads the D columns are cut into H pieces of K. Every head has its own T × T weights, gathers its own mixture
# of *values*, and the mixtures are laid side by side again. `c_proj` lets the heads' results mix.

# %% [markdown] zh
# ## 多头注意力
#
# 有 H 个头时，D 列被切成 H 段，每段 K 列。每个头都有自己的 T × T 权重，
# 据此汇集自己那一份*值*，然后各头的结果重新并排放回。最后由 `c_proj` 把各头的结果混合起来。

# %%
def split_heads(x):
    return x.reshape((x.shape[0], x.shape[1], H, K)).transpose((0, 2, 1, 3))  # (B, H, T, K)


def attention(x, attn):
    query, key, value = (split_heads(part) for part in ops.split(conv1d(x, attn.c_attn), D, axis=2))
    scores = ops.matmul(query, key.transpose((0, 1, 3, 2))) / math.sqrt(K)  # (B, H, T, T)
    weights = ops.softmax(scores + causal_bias(x.shape[1]), axis=-1)
    mixed = ops.matmul(weights, value).transpose((0, 2, 1, 3)).reshape(x.shape)  # (B, T, D)
    return conv1d(mixed, attn.c_proj), weights


ours, our_weights = attention(x, block.attn)
theirs, their_weights = block.attn(x, causal_bias(T).reshape((1, 1, T, T)))
compare("Attention: output", ours, theirs)
compare("Attention: weights", our_weights, their_weights)
draw(("query", T, K, "T × K", H), "·", ("keyᵀ", K, T, "K × T", H), "→", ("weights", T, T, "T × T", H), "·",
     ("value", T, K, "T × K", H), "=", ("mixed", T, D, "T × D", 1))

# %% [markdown] en
# ## The rest of a block: LayerNorm and MLP
#
# `LayerNorm` brings each token's vector to mean 0 and variance 1, then scales and shifts it. The MLP widens it to 4
# D, applies GELU, and narrows it again; it works on each token alone. GPT's GELU is an approximation with tanh. The
# exact form, with erf, differs by less than 0.0005: invisible in a plot, but visible in the logits of a converted
# checkpoint, so the library tells the two apart.

# %% [markdown] zh
# ## Block 的其余部分：LayerNorm 与 MLP
#
# `LayerNorm` 把每个词元的向量变为均值 0、方差 1，再做缩放和平移。
# MLP 把向量展宽到 4D，经过 GELU 后再变回 D 维；它对每个词元单独计算。
# GPT 使用的 GELU 是 tanh 近似形式，与使用 erf 的精确形式相差不到 0.0005：
# 图上几乎看不出，但在转换后的检查点的 logits 中看得出来，因此本库对两者加以区分。

# %%
def layer_norm(x, norm):
    centred = x - x.mean(-1, keep_dims=True)
    variance = (centred * centred).mean(-1, keep_dims=True)
    return centred / ops.sqrt(variance + norm.epsilon) * norm.gamma + norm.beta


def gelu(x):
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x * ops.sigmoid(2 * inner)  # 0.5 (1 + tanh u) = sigmoid(2 u), and exacter: MindSpore's tanh on CPU is coarse


def mlp(x, layer):
    return conv1d(gelu(conv1d(x, layer.c_fc)), layer.c_proj)  # (B, T, D) -> (B, T, 4 D) -> (B, T, D)


compare("LayerNorm", layer_norm(x, block.ln_1), block.ln_1(x))
compare("MLP", mlp(x, block.mlp), block.mlp(x))

line = np.linspace(-4, 4, 400, dtype=np.float32)
tanh_form = gelu(Tensor(line)).asnumpy()
erf_form = np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in line.tolist()])
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
left.plot(line, np.maximum(line, 0), color=GREY, linestyle="--", label="ReLU")
left.plot(line, tanh_form, color=BLUE, label="GELU")
left.legend(frameon=False)
right.plot(line, tanh_form - erf_form, color=ORANGE)
right.set_title("tanh form minus erf form", fontsize=11)
plt.show()

# %% [markdown] en
# ## A block
#
# Both halves *add* to their input, so information can pass by unchanged: the residual stream. GPT-1 normalises after
# each sum; GPT-2 and GPT-3 normalise what goes into each half and leave the stream alone, which keeps deep models
# trainable. The library has one `Block` for both; `config.post_norm` says which.

# %% [markdown] zh
# ## 一个 Block
#
# 注意力和 MLP 这两部分的输出都是*加*到输入上的，信息可以原样通过，这条通路称为残差流。
# GPT-1 在每次相加之后做归一化（后置归一化）；GPT-2 和 GPT-3 只对每一部分的输入做归一化，不动残差流
# （前置归一化），这样深层模型更容易训练。本库用同一个 `Block` 实现两者，由 `config.post_norm` 决定。

# %%
def pre_norm_block(x, block):
    x = x + attention(layer_norm(x, block.ln_1), block.attn)[0]
    return x + mlp(layer_norm(x, block.ln_2), block.mlp)


def post_norm_block(x, block):
    x = layer_norm(x + attention(x, block.attn)[0], block.ln_1)
    return layer_norm(x + mlp(x, block.mlp), block.ln_2)


bias = causal_bias(T).reshape((1, 1, T, T))
gpt1 = GPTLMHeadModel(GPTConfig(V, 32, n_layer=1, n_head=H, n_embd=D, initializer_range=0.3, output_attentions=True))
gpt1_block = gpt1.set_train(False).transformer.h[0]
compare("Block of GPT-2, norm first", pre_norm_block(x, block), block(x, bias)[0])
compare("Block of GPT-1, norm last", post_norm_block(x, gpt1_block), gpt1_block(x, bias)[0])

figure, panels = plt.subplots(2, 1, figsize=(9, 3.2), layout="constrained")
for panel, title, parts in zip(panels, ("GPT-2, GPT-3: norm first", "GPT-1: norm last"),
                               (("ln_1", "attn", "+", "ln_2", "mlp", "+"), ("attn", "+", "ln_1", "mlp", "+", "ln_2")),
                               strict=True):
    panel.annotate("", (13.4, 0), (-0.4, 0), zorder=0, arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 2})
    place, enters = 0.8, 0.2
    for part in parts:
        is_beside = part in ("attn", "mlp") or (part.startswith("ln") and parts[0] == "ln_1")
        height = 1.0 if is_beside else 0.0
        if part == "+":
            panel.plot([enters, enters, place, place], [0, 1, 1, 0], color=BLUE, linewidth=1.2, zorder=1)
            enters = place + 0.6
        panel.text(place, height, part, ha="center", va="center", fontsize=10, zorder=2,
                   bbox={"boxstyle": "circle" if part == "+" else "round", "facecolor": "white",
                         "edgecolor": GREEN if part.startswith("ln") else BLUE})
        if part.startswith("ln") and not is_beside:
            enters = place + 1.0
        place += 2.1
    panel.text(-0.5, 0, "x", ha="right", va="center")
    panel.set_title(title, loc="left", fontsize=10)
    panel.set(xlim=(-1, 13.6), ylim=(-0.5, 1.5))
    panel.axis("off")
plt.show()

# %% [markdown] en
# ## The whole model
#
# Embeddings, the blocks, a last LayerNorm, and the product with the *same* token table that we began with (tied
# weights): one logit for each word of the vocabulary, at each position.

# %% [markdown] zh
# ## 完整的模型
#
# 依次是嵌入、各个 Block、最后一个 LayerNorm，然后与开头*同一张*词元嵌入表相乘（权重共享）：
# 在每个位置上，词表中的每个词都得到一个 logit。

# %%
def gpt(ids):
    x = ops.gather(tokens_table, ids, 0) + positions_table[: ids.shape[1]]
    for layer in transformer.h:
        x = pre_norm_block(x, layer)
    x = layer_norm(x, transformer.ln_f)
    return ops.matmul(x, tokens_table.transpose(1, 0))  # (B, T, V)


compare("the whole model: logits", gpt(ids), logits)
probability = ops.softmax(logits, axis=-1)[0, -1].asnumpy()
for i in np.argsort(-probability)[:3]:
    print(f"after '{' '.join(words[-3:])}': {vocabulary[i]:<5} {probability[i]:.0%} (the model is not trained)")

# %% [markdown] en
# ## Causality, tested
#
# Does the mask keep its promise? We change one word and look at which positions notice. Everything before it has to
# stay *exactly* as it was. That is why all T positions can be trained in one pass, and why a generated text never has
# to be computed anew.

# %% [markdown] zh
# ## 检验因果性
#
# 掩码真的起作用了吗？改动其中一个词，看哪些位置会受到影响：它之前的所有输出必须*完全*不变。
# 正因如此，T 个位置可以在一次前向计算中同时训练，生成文本时也不必重新计算已有的部分。

# %%
changed_at = 4
changed = ids.asnumpy().copy()
changed[0, changed_at] = vocabulary.index("plot")
change = np.abs(model(Tensor(changed))[0].asnumpy() - logits.asnumpy())[0].max(-1)

figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
axes.bar(range(T), change, color=[GREY if t < changed_at else ORANGE for t in range(T)])
axes.set_xticks(range(T), [f"{word}\n→ plot" if t == changed_at else word for t, word in enumerate(words)])
axes.set_ylabel("change of the logits")
plt.show()
assert change[:changed_at].max() == 0
print(f"before the changed word: {change[:changed_at].max()};  from it on: at least {change[changed_at:].min():.2f}")

# %% [markdown] en
# ## Where the parameters are
#
# A block has 12 D² weights and a few vectors: 4 D² in attention, 8 D² in the MLP. The published sizes can be counted
# without building a model.

# %% [markdown] zh
# ## 参数都在哪里
#
# 一个 Block 约有 12 D² 个权重，外加几个向量：注意力占 4 D²，MLP 占 8 D²。
# 各个已发布规格的参数量，不必构建模型就能算出。

# %%
from ms_gpt.checkpoint import architecture_name, expected_shapes

kinds = {"embeddings": "_embed", "attention": ".attn.", "MLP": ".mlp.", "LayerNorm": "ln_"}
presets = ("gpt1", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
counts = np.zeros((len(presets), len(kinds)))
for row, name in enumerate(presets):
    preset = GPTConfig.preset(name)
    for path, shape in expected_shapes(preset, architecture_name(preset.model_type, "LMHeadModel")).items():
        counts[row, [mark in path for mark in kinds.values()].index(True)] += math.prod(shape)
    rule = 12 * preset.n_layer * preset.n_embd**2 + (preset.vocab_size + preset.n_positions) * preset.n_embd
    print(f"{name:<12} {preset.n_layer:>2} layers x {preset.n_embd:<5} {int(counts[row].sum()):>13,} parameters; "
          f"the rule 12 L D² + (V + P) D misses {1 - rule / counts[row].sum():.2%}")

figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
start = np.zeros(len(presets))
for kind, column, color in zip(kinds, counts.T / 1e6, (GREY, BLUE, ORANGE, GREEN), strict=True):
    axes.barh(presets, column, left=start, color=color, label=kind)
    start += column
axes.invert_yaxis()
axes.set_xlabel("million parameters")
axes.legend(frameon=False)
plt.show()

# %% [markdown] en
# ## What attention learns
#
# Now a model that has something to learn: eight random symbols, and then the same eight again. The first half cannot
# be predicted, so its labels are -100, which the loss leaves out. The second half can, by one who looks back to the
# right place; to count symbols does not help. One block with two heads is enough. The whole train step, forward pass,
# gradients and AdamW, is compiled into one static graph by `ms.jit`.

# %% [markdown] zh
# ## 注意力学到了什么
#
# 现在让模型学点东西：先给八个随机符号，再把这八个符号重复一遍。
# 前半段无法预测，因此把它的标签设为 -100，计算损失时会跳过这些位置。
# 后半段则可以预测，只要回头看对位置；统计符号的频次没有用。
# 一个 Block、两个头就足够了。整个训练步（前向计算、求梯度和 AdamW 更新）由 `ms.jit` 编译成一张静态图。

# %%
length, symbols, steps = 8, 16, 300
rng = np.random.default_rng(0)


def repeated_rows(count):
    first = rng.permuted(np.tile(np.arange(symbols), (count, 1)), axis=1)[:, :length]
    return Tensor(np.concatenate([first, first], axis=1).astype(np.int32))  # (count, 2 length)


small = GPTLMHeadModel(GPTConfig(symbols, 2 * length, n_layer=1, n_head=2, n_embd=64, model_type="gpt2", attn_pdrop=0.0,
                                 resid_pdrop=0.0, embd_pdrop=0.0, output_attentions=True))
optimizer = nn.AdamWeightDecay(small.trainable_params(), learning_rate=2e-3, weight_decay=0.01)
is_counted = Tensor(np.arange(2 * length) >= length)


def loss_of(rows):
    return small(rows, labels=ops.where(is_counted, rows, Tensor(-100, ms.int32)))[0]


gradients = ms.value_and_grad(loss_of, None, optimizer.parameters)


@ms.jit
def train_step(rows):
    loss, grads = gradients(rows)
    optimizer(grads)
    return loss


before = small(repeated_rows(1))[1][0].asnumpy()  # attention weights (1, H, 2 length, 2 length) without training
small.set_train(True)
losses = [train_step(repeated_rows(32)).item() for _ in range(steps)]
small.set_train(False)
print(f"{small.num_parameters():,} parameters; loss {losses[0]:.2f} at first, {losses[-1]:.4f} after {steps} steps")

figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
axes.plot(losses, color=BLUE)
axes.axhline(math.log(symbols), color=ORANGE, linestyle="--", linewidth=1, label="a guess among 16 symbols")
axes.axhline(math.log(length), color=GREEN, linestyle="--", linewidth=1, label="a guess among the 8 of the row")
axes.set(xlabel="step", ylabel="training loss")
axes.legend(frameon=False)
plt.show()

# %% [markdown] en
# And this is how it does it. Each square is a head: row t shows where the symbol at t looks, as a mean over 200 rows
# of symbols. Without training a head looks at everything alike. Afterwards, from position 7 on, where there is
# something to predict, a bright diagonal stands out: the symbol at t looks **seven places back**, at the one that
# followed its double, and that is the answer. (Position 15 has nothing to predict.) Nobody has told the model that
# the rows repeat.
#
# This model has learnt a *place*. If the period changed from row to row, it would have to search for the double by its
# content: a head of one layer notes what stood before each symbol, a head of the next looks for it. Such pairs, called
# induction heads, are found in large language models (Olsson et al. 2022).

# %% [markdown] zh
# 模型就是这样做到的。每个方块是一个头，第 t 行表示位置 t 的符号看向哪里（对 200 行符号取平均）。
# 训练之前，注意力均匀地散布在所有位置上。训练之后，从有内容可预测的位置 7 起，出现一条明亮的对角线：
# 位置 t 的符号看向**往前七个位置**，也就是它上一次出现之后的那个符号，即答案
# （位置 15 之后没有要预测的内容）。没有人告诉过模型符号会重复。
#
# 这个模型学到的是一个*位置*。如果每行的周期都不同，就必须根据内容去寻找上一次出现的地方：
# 某一层的一个头记下每个符号前面是什么，下一层的一个头再据此去找。
# 这样成对的头称为归纳头（induction head），在大语言模型中同样存在（Olsson et al. 2022）。

# %%
after = small(repeated_rows(200))[1][0].asnumpy().mean(0)
maps = {"without training, head 0": before[0, 0], "head 0": after[0], "head 1": after[1]}
figure, panels = plt.subplots(1, 3, figsize=(11, 4.0), layout="constrained")
for panel, (title, weights) in zip(panels, maps.items(), strict=True):
    image = panel.imshow(weights, cmap="viridis", vmin=0, vmax=1)
    back = np.mean([weights[t, t - length + 1] for t in range(length, 2 * length - 1)])
    panel.set_title(f"{title}\nseven back in the second half: {back:.0%}", fontsize=11)
    panel.axhline(length - 0.5, color="white", linewidth=0.6)
    panel.axvline(length - 0.5, color="white", linewidth=0.6)
    panel.set_xticks(range(0, 2 * length, 2))
    panel.set_yticks(range(0, 2 * length, 2))
    panel.set_xlabel("position looked at")
panels[0].set_ylabel("position that looks")
figure.colorbar(image, ax=panels, shrink=0.8, label="attention weight")
plt.show()

# %% [markdown] en
# ## Exercise
#
# GPT-3 lets every second layer look at a *window* of tokens only. Write `banded_bias(length, window)`, which allows
# token t the `window` tokens that end with itself, and compare it with `ms_gpt.layers.attention_bias(length, None,
# window)`. Then put it into `attention` in place of `causal_bias`, with a window of 2: how far back can the last
# token of a two-layer model still see? Test it as above, by changing one word.
#
# <details><summary>Hint</summary>
#
# `np.tril(ones) & ~np.tril(ones, -window)` is a band of that width. Each layer reaches `window - 1` tokens further
# back, so two layers with a window of 2 reach two tokens.
#
# </details>

# %% [markdown] zh
# ## 练习
#
# GPT-3 每隔一层只允许注意力看到一个*窗口*内的词元。请编写 `banded_bias(length, window)`：
# 词元 t 只能看到以自己结尾的 `window` 个词元，并与 `ms_gpt.layers.attention_bias(length, None, window)` 比较。
# 然后用它替换 `attention` 中的 `causal_bias`，窗口取 2：在两层的模型中，最后一个词元最远能看到多远？
# 像上文那样改动一个词来验证。
#
# <details><summary>提示</summary>
#
# `np.tril(ones) & ~np.tril(ones, -window)` 就是宽度为 `window` 的带状矩阵。
# 每一层能再往前看 `window - 1` 个词元，所以窗口为 2 的两层模型能看到前面两个词元。
#
# </details>
