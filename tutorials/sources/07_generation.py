# %% [markdown] en
# # Generation: from probabilities to text
#
# A language model gives a probability to every token that could come next. Which one is taken is not its business: that
# is **decoding**, and the same model can be a bore or a babbler by it. In this notebook you
#
# - write the loop of generation by hand, and see that it equals `generate`,
# - see what temperature, top-k and top-p do to the distribution,
# - compare greedy decoding, sampling, beam search and penalties by two numbers, with real text beside them,
# - stop at a text, and stream one piece by piece,
# - measure what the cache of keys and values saves, and see that it changes nothing,
# - continue prompts of unequal length in one batch.
#
# The model is trained here in less than a minute, on Shakespeare if `MS_GPT_DATA` names a folder with `shakespeare/`,
# else on the reviews of the built-in sample. All in all it takes about two minutes on two CPU cores; on Ascend nothing
# has to be changed.

# %% [markdown] zh
# # 文本生成：从概率到文本
#
# 语言模型为每个可能的下一个词元给出概率。至于选哪一个，则不由模型决定：这一步叫做**解码**，
# 同一个模型会因解码方式不同而单调乏味，或者胡言乱语。在本教程中，你将
#
# - 亲手写出生成循环，并验证它与 `generate` 结果一致，
# - 观察温度、top-k 和 top-p 如何改变概率分布，
# - 用两个指标比较贪心解码、采样、束搜索和各种惩罚，并以真实文本作为对照，
# - 遇到指定文本时停止，以及逐段流式输出，
# - 测量键值缓存（KV cache）节省了多少时间，并验证它不会改变结果，
# - 在一个批次中续写长度不等的提示。
#
# 模型就在这里训练，不到一分钟：如果 `MS_GPT_DATA` 指向包含 `shakespeare/` 的文件夹，则使用莎士比亚剧本，
# 否则使用内置样本中的影评。在两个 CPU 核上总共大约需要两分钟；在昇腾（Ascend）上无需任何改动。

# %%
import os
import shutil
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from mindspore import Tensor

from ms_gpt import GPTConfig, GPTLMHeadModel, Trainer, TrainingArguments, generate
from ms_gpt.console import Console
from ms_gpt.data import BlockBatches, load_text
from ms_gpt.generation import Session, stream_generate
from ms_gpt.generation.processors import Temperature, TopK, TopP, log_softmax, softmax
from ms_gpt.plots import BLUE, GREEN, GREY, ORANGE
from ms_gpt.tokenizer import train_tokenizer
from ms_gpt.training.perplexity import scored_batches, start_token

WORK = Path("runs/tutorials/07")
shutil.rmtree(WORK, ignore_errors=True)
DATA = os.environ.get("MS_GPT_DATA")
corpus = load_text(f"{DATA}/shakespeare/input.txt" if DATA else "sample",
                   shares={"train": 0.9, "validation": 0.1, "test": 0.0})
between = "" if DATA else "\n"  # pieces of one play join exactly, reviews stand in lines of their own
train_text, valid_text = between.join(corpus.train), between.join(corpus.validation)

tokenizer = train_tokenizer([train_text], "byte-bpe", vocab_size=1000)
LENGTH = 128
model = GPTLMHeadModel(GPTConfig(len(tokenizer), LENGTH, n_embd=128, n_layer=2, n_head=4, model_type="gpt2",
                                 resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, eos_token_id=-1))
ids = {name: np.array(tokenizer.encode(text)) for name, text in (("train", train_text), ("valid", valid_text))}
trainer = Trainer(
    model,
    TrainingArguments(WORK, max_steps=500, learning_rate=3e-3, lr_scheduler_type="cosine", warmup_steps=50,
                      weight_decay=0.1, adam_beta2=0.98, save_strategy="no"),
    BlockBatches(ids["train"], LENGTH, 16, start_token(tokenizer), shuffle=True),
    scored_batches([valid_text], ids["valid"], tokenizer, LENGTH, 16),
    tokenizer=tokenizer, console=Console(quiet=True))
trainer.train()
print(f"{model.num_parameters():,} weights; perplexity per word {trainer.evaluate()['eval_perplexity_per_word']:.0f}")

# %% [markdown] en
# ## The loop
#
# Generation is a loop: read the tokens so far, choose the next one, append it. A `Session` reads; it returns the
# likeliest token and the logits of all tokens for each row, and keeps what it has computed for the tokens that it has
# read before (more on that below). Always taking the likeliest token is **greedy** decoding.

# %% [markdown] zh
# ## 生成循环
#
# 生成就是一个循环：读入已有的词元，选择下一个，追加到末尾。`Session` 负责读取：它为每一行返回最可能的词元
# 以及所有词元的 logits，并保留对已读词元的计算结果（下文会详细说明）。
# 每次都取最可能的词元，就是**贪心**解码。

# %%
PROMPT = "KING RICHARD" if DATA else "The story"
row = tokenizer.encode(PROMPT)
session = Session(model)
for _ in range(40):
    likeliest, logits = session.read([row])
    row.append(int(likeliest.asnumpy()[0]))
print(tokenizer.decode(row))

same = model.generate([tokenizer.encode(PROMPT)], max_new_tokens=40)
print("\nequal to generate:", row == same.asnumpy()[0].tolist())

# %% [markdown] en
# Greedy decoding goes for the safest word each time, and soon runs in circles. Let us look at what it had to choose
# from.
#
# ## The distribution, and three ways to change it
#
# **Temperature** divides the logits: below 1 the likely tokens get likelier, above 1 the unlikely ones get their
# chance. **Top-k** forbids all but the k likeliest tokens; **top-p** (nucleus sampling) keeps the fewest tokens that
# together have the probability p. The entropy H in the titles says how undecided the distribution is, in nats.

# %% [markdown] zh
# 贪心解码每次都选最稳妥的词，很快就开始原地打转。来看看它当时有哪些选择。
#
# ## 概率分布，以及改变它的三种方式
#
# **温度**（temperature）用来除 logits：小于 1 时，可能性大的词元更占优势；大于 1 时，可能性小的词元也有机会。
# **Top-k** 只允许 k 个最可能的词元；**top-p**（核采样）保留概率之和达到 p 的最少词元。
# 标题中的熵 H（单位为奈特）表示分布的不确定程度。

# %%
START = "The king" if DATA else "The music was"
logits = Session(model).read([tokenizer.encode(START)])[1].asnumpy()
top = np.argsort(-logits[0])[:14]
names = [repr(tokenizer.id_to_token(int(token)).replace("Ġ", " ").replace("Ċ", "\n"))[1:-1] for token in top]
changes = {"as it is": None, "temperature 0.5": Temperature(0.5), "temperature 2": Temperature(2.0),
           "top-k 5": TopK(5), "top-p 0.5": TopP(0.5), "top-p 0.9": TopP(0.9)}
figure, panels = plt.subplots(2, 3, figsize=(13, 5), sharex=True, sharey=True, layout="constrained")
before = softmax(logits)[0]
for axes, (name, change) in zip(panels.flat, changes.items(), strict=True):
    chances = before if change is None else softmax(change([[]], logits))[0]
    entropy = -np.sum(chances[chances > 0] * np.log(chances[chances > 0]))
    axes.bar(range(len(top)), before[top], color=GREY, alpha=0.35)
    axes.bar(range(len(top)), chances[top], color=BLUE, width=0.5)
    axes.set_title(f"{name}: H = {entropy:.2f}, {np.sum(chances > 0):,} tokens possible", fontsize=10)
    axes.set_xticks(range(len(top)), names, rotation=60)
figure.suptitle(f"what follows {START!r}: the 14 likeliest tokens (grey: as it is)")
plt.show()

# %% [markdown] en
# Why top-p, when there is top-k? Because the model is surer at some places than at others. Below: for each place of a
# real text, how many tokens it takes to gather a probability of 0.9. In the run shown it is 37 at the surest place and
# more than 200 at the least sure one. A fixed k is too many here and too few there. (The better a model is, the wider
# this range: inside a word a large one often needs a single token.)

# %% [markdown] zh
# 既然有了 top-k，为什么还需要 top-p？因为模型在有的位置更有把握，在有的位置则不然。下图显示在一段真实文本的每个位置上，
# 需要多少个词元才能凑够 0.9 的概率。在这次运行中，最有把握的位置需要 37 个，最没把握的位置需要 200 多个。
# 固定的 k 在这里太多，在那里又太少。（模型越好，这个范围越宽：在单词内部，大模型往往只需要一个词元。）

# %%
piece = ids["valid"][300:345]
all_logits = model(Tensor(piece[None].astype(np.int32)))[0].asnumpy()[0]
needed = (TopP(0.9)([[]] * len(piece), all_logits) > -np.inf).sum(-1)[:-1]
figure, axes = plt.subplots(figsize=(13, 3), layout="constrained")
shown = [tokenizer.decode([int(token)]) for token in piece]
starts = [text[:1].isspace() or before.endswith("\n") for before, text in zip(shown, shown[1:], strict=False)]
axes.bar(range(len(needed)), needed, color=[ORANGE if start else BLUE for start in starts])
axes.axhline(40, color=GREY, linestyle="--", label="k = 40")
axes.legend(frameon=False, loc="upper left")
axes.set_xticks(range(len(needed)), [repr(text)[1:-1] for text in shown[1:]], rotation=75)
axes.set(ylabel="tokens for p = 0.9", title="orange: a new word or line begins; blue: within a word")
plt.show()

# %% [markdown] en
# ## Strategies compared
#
# A few texts of each kind first. The draws are a pure function of seed, step and row, so you will read the same.

# %% [markdown] zh
# ## 解码策略比较
#
# 先看每种策略生成的几段文本。抽样结果完全由种子、步数和行号决定，所以你会得到相同的文本。

# %%
STRATEGIES = {
    "greedy": {},
    "temperature 0.7": {"temperature": 0.7},
    "temperature 1": {"temperature": 1.0},
    "temperature 1.5": {"temperature": 1.5},
    "top-k 20": {"top_k": 20},
    "top-p 0.8": {"top_p": 0.8},
    "beams 8": {"num_beams": 8},
    "penalty 1.3": {"repetition_penalty": 1.3},
    "no 3-gram twice": {"no_repeat_ngram_size": 3},
}
NEW = 60
# Eight beginnings from the validation text; a beam search reads eight rows for each, so it goes one by one.
prompts = [ids["valid"][start : start + 8].tolist() for start in range(1000, 9000, 1000)]
written = {}
for name, settings in STRATEGIES.items():
    if "num_beams" in settings:
        rows = [model.generate([prompt], max_new_tokens=NEW, **settings).asnumpy()[0] for prompt in prompts]
    else:
        rows = model.generate(prompts, max_new_tokens=NEW, **settings).asnumpy()
    written[name] = np.array(rows)
    print(f"{name:>16}: {tokenizer.decode(written[name][0])[:150]!r}")

# %% [markdown] en
# Reading is one way to judge; here are two numbers for each strategy. **How likely** is what was written, by the model
# itself (mean log-probability of a new token)? And **how much repeats**: which share of the new 3-grams has been there
# before? Real text, the continuation that Shakespeare wrote, is measured the same way.

# %% [markdown] zh
# 阅读是一种评判方式，下面再为每种策略给出两个数字。一是生成的内容在模型自己看来**有多可能**
# （每个新词元的平均对数概率）；二是**重复了多少**：新生成的三元组中，有多大比例先前已经出现过？
# 真实文本，即原文自己的后续，也用同样的方法测量。

# %%
def log_probability(rows):
    """Return the mean log-probability of the new tokens, (N,)."""
    logits = model(Tensor(rows[:, :-1].astype(np.int32)))[0].asnumpy()
    chosen = np.take_along_axis(log_softmax(logits), rows[:, 1:, None], -1)[..., 0]
    return chosen[:, -NEW:].mean(-1)


def repeated(rows):
    """Return the share of new 3-grams that occurred before, (N,)."""
    shares = []
    for row in rows[:, -NEW:].tolist():
        grams = list(zip(row, row[1:], row[2:], strict=False))
        shares.append(1 - len(set(grams)) / len(grams))
    return np.array(shares)


real = np.array([ids["valid"][start : start + 8 + NEW] for start in range(1000, 9000, 1000)])
points = {name: (log_probability(rows).mean(), repeated(rows).mean()) for name, rows in written.items()}
points["real text"] = (log_probability(real).mean(), repeated(real).mean())
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
for rank, name in enumerate(sorted(points, key=lambda name: points[name][0])):
    axes.scatter(*points[name], color=GREEN if name == "real text" else BLUE, s=45, zorder=3)
    axes.annotate(name, points[name], xytext=(0, 14 + 17 * (rank % 4)), textcoords="offset points", fontsize=9,
                  ha="center", arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6})
axes.set(xlabel="mean log-probability of a token (right: likelier)", ylabel="share of 3-grams repeated")
axes.margins(x=0.15, y=0.25)
axes.grid(alpha=0.2)
plt.show()

# %% [markdown] en
# In the run shown greedy decoding and beams write what the model finds likeliest, and repeat themselves most: 37 % and
# 49 % of their 3-grams. Real text is far less likely, about as much as a draw at temperature 1, and hardly repeats
# anything: people do not write the likeliest word. At temperature 1.5 it is less likely than real text, and reads like
# noise. Top-k, top-p and a temperature of 0.7 lie between: a little likelier than real text, which is what a small
# model needs to stay on its feet. The penalties cure the repetition, but stay greedy: likely words, one after the
# other.
#
# ## Beam search finds what greedy misses
#
# Greedy takes the best token at each step, which need not lead to the best text. A **beam search** keeps several
# beginnings alive and ends with the likeliest text that it found. The more beams, the likelier; that is all it
# promises. It is right for tasks with one answer, such as translation or sums, and wrong for stories.

# %% [markdown] zh
# 在这次运行中，贪心解码和束搜索写出的是模型认为最可能的内容，重复也最多：三元组的重复率分别为 37 % 和 49 %。
# 真实文本的可能性低得多，大约相当于温度为 1 的抽样，而且几乎不重复：人并不总是写最可能的词。
# 温度为 1.5 时，生成的文本比真实文本更不可能，读起来就像噪声。Top-k、top-p 和温度 0.7 介于两者之间：
# 比真实文本略微更可能，小模型正需要这样才能站稳。两种惩罚消除了重复，但仍然是贪心的：一个接一个的常见词。
#
# ## 束搜索能找到贪心错过的结果
#
# 贪心解码每一步取最好的词元，但不一定得到最好的文本。**束搜索**（beam search）同时保留多个开头，
# 最后给出找到的最可能的文本。束越多，可能性越大，但它的保证也仅此而已。
# 它适合有标准答案的任务，例如翻译或算术，不适合写故事。

# %%
prompt = tokenizer.encode(PROMPT)
for beams in (1, 4, 8):
    found = model.generate([prompt], max_new_tokens=20, num_beams=beams).asnumpy()
    logits = model(Tensor(found[:, :-1]))[0].asnumpy()
    chosen = np.take_along_axis(log_softmax(logits), found[:, 1:, None], -1)[0, len(prompt) - 1 :, 0]
    print(f"{beams} beams: log-probability {chosen.sum():7.2f}  {tokenizer.decode(found[0])!r}")

# %% [markdown] en
# ## Stop, and stream
#
# `generate` of the package takes texts and knows `stop`: it ends in front of any of these texts, even if the tokens cut
# them otherwise. `stream_generate` yields pieces as they are written, never half a character and never a part of a stop
# text. Each `Chunk` says what it holds, and the last one why it is the last.

# %% [markdown] zh
# ## 停止与流式输出
#
# 包级函数 `generate` 接收文本，并支持 `stop`：遇到其中任何一段文本就在它前面结束，即使词元的切分方式与之不同。
# `stream_generate` 边写边产出片段，不会输出半个字符，也不会输出停止文本的一部分。
# 每个 `Chunk` 说明自己的内容，最后一个还说明结束的原因。

# %%
STOP = "\n\n" if DATA else "."
text, = generate(model, tokenizer, PROMPT, max_new_tokens=NEW, temperature=0.8, seed=3, stop=STOP)
print(repr(text), "\n")
for chunk in stream_generate(model, tokenizer, PROMPT, max_new_tokens=NEW, temperature=0.8, seed=3, stop=STOP):
    print(chunk.text, end="|", flush=True)
print(f"\nfinish_reason: {chunk.finish_reason}")

# %% [markdown] en
# ## The cache of keys and values
#
# To choose token 100 the model needs keys and values of the 99 before. They do not change any more, thanks to the
# causal mask, so they are kept: each step computes one column instead of all. It must not change anything but the time.
# With static graphs the cache has one fixed shape, and two graphs use it: one reads the prompt, one reads a token more.

# %% [markdown] zh
# ## 键值缓存
#
# 选择第 100 个词元时，模型需要前 99 个词元的键和值。由于因果掩码的作用，它们不会再变化，因此可以保留下来：
# 每一步只计算一列，而不是全部。它只能改变时间，不能改变结果。
# 在静态图下，缓存的形状固定，由两张图使用：一张读取提示，一张每次多读一个词元。

# %%
cached = model.generate(prompts, max_new_tokens=NEW)
uncached = model.generate(prompts, max_new_tokens=NEW, use_cache=False)
print(f"{NEW} tokens for {len(prompts)} rows; the same ids: {np.array_equal(cached.asnumpy(), uncached.asnumpy())}")


def milliseconds(length, use_cache):
    """Return the median time of a step that reads a new token of eight rows, in graphs for so many tokens."""
    session = Session(model, batch_size=8, length=length, use_cache=use_cache)
    rows, times = [ids["valid"][i * 200 :][: length - 14].tolist() for i in range(8)], []
    for _ in range(14):
        start = time.perf_counter()
        tokens = session.read(rows)[0].asnumpy()
        times.append(time.perf_counter() - start)
        rows = [[*row, int(token)] for row, token in zip(rows, tokens, strict=True)]
    return 1000 * np.median(times[2:])  # the first two steps read the prompt and compile


lengths = [16, 32, 64, 128]
figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
for use_cache, color in ((False, ORANGE), (True, BLUE)):
    axes.plot(lengths, [milliseconds(length, use_cache) for length in lengths], color=color, marker="o",
              label="with cache" if use_cache else "without cache")
axes.set(xlabel="tokens in a row", ylabel="ms for the next token of 8 rows", xticks=lengths, ylim=(0, None))
axes.legend(frameon=False)
plt.show()

# %% [markdown] en
# ## Prompts of unequal length
#
# Rows of a batch have to be of one length. Padding on the right would stand between prompt and continuation, so shorter
# rows are padded on the **left**, the attention mask hides the padding, and positions are counted from the first real
# token. Then each row is continued as if it were alone. Without the mask the model reads the padding as text, and
# writes something else.

# %% [markdown] zh
# ## 长度不等的提示
#
# 一个批次中各行的长度必须相同。如果在右侧填充，填充就会夹在提示与续写之间，因此较短的行在**左侧**填充，
# 用注意力掩码遮住填充部分，并从第一个真实词元开始计算位置。这样每一行的续写结果都与单独续写时相同。
# 如果不传掩码，模型会把填充当作文本来读，写出的内容就不一样了。

# %%
texts = ["KING", "My lord, I", "What is the matter with thee, good"] if DATA else [
    "The", "All in all,", "I saw it with two friends, and the"]
tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"})
tokenizer.padding_side = "left"
batch = tokenizer(texts, padding=True, return_tensors="ms")
print(batch["attention_mask"].asnumpy())
together = model.generate(**batch, max_new_tokens=20).asnumpy()[:, -20:]
unmasked = model.generate(batch["input_ids"], max_new_tokens=20).asnumpy()[:, -20:]
for text, new_ids, other in zip(texts, together, unmasked, strict=True):
    alone = model.generate([tokenizer.encode(text)], max_new_tokens=20).asnumpy()[0, -20:]
    print(f"{text!r:>40}: as alone: {np.array_equal(new_ids, alone)}; without the mask: {np.array_equal(other, alone)}")

# %% [markdown] en
# ## Exercise
#
# **Min-p** is a newer rule: keep the tokens that are at least, say, a tenth as likely as the likeliest one. Write it,
# decode with it, and put it into the plot of strategies. Where does it lie compared with top-p 0.8, and what happens at
# temperature 1.5, with min-p applied before the division and after it?
#
# <details><summary>Hint</summary>
#
# Take the loop from the beginning. For eight rows: `session = Session(model, batch_size=8)`, then in each step `logits
# = session.read(rows)[1].asnumpy()`, `chances = softmax(logits / temperature)`, and `logits = np.where(chances < 0.1 *
# chances.max(-1, keepdims=True), -np.inf, logits)`. Draw with `draw(logits, seed, step)` from
# `ms_gpt.generation.sampling`.
#
# </details>

# %% [markdown] zh
# ## 练习
#
# **Min-p** 是一种较新的规则：保留概率至少为最大概率十分之一（比例可调）的词元。实现它，用它解码，
# 并画进上面的策略对比图。与 top-p 0.8 相比它位于哪里？温度为 1.5 时，在除以温度之前和之后应用 min-p，
# 结果有什么不同？
#
# <details><summary>提示</summary>
#
# 从开头的循环入手。八行文本用 `session = Session(model, batch_size=8)`，然后在每一步中计算
# `logits = session.read(rows)[1].asnumpy()`，`chances = softmax(logits / temperature)`，以及
# `logits = np.where(chances < 0.1 * chances.max(-1, keepdims=True), -np.inf, logits)`。
# 用 `ms_gpt.generation.sampling` 中的 `draw(logits, seed, step)` 抽样。
#
# </details>
