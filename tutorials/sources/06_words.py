# %% [markdown] en
# # Words: byte pair encoding and WikiText
#
# Before a model reads a text, somebody has to decide what a token is: a character, a word, or something in between.
# This is minGPT's third notebook, `play_words`, which was announced and never written. In it you
#
# - learn a byte pair encoding (BPE) by hand, merge by merge, and compare it with the library's,
# - compare characters, words and BPE by what they do to a text,
# - train one small language model on each, and find out why their perplexities must not be compared, and what can be,
# - let the three models write.
#
# With `MS_GPT_DATA` set to a folder that holds `wikitext2/`, the text is a tenth of WikiText-2; without it, the reviews
# of the built-in sample. It takes about two minutes on two CPU cores; on Ascend nothing has to be changed.

# %% [markdown] zh
# # 单词：字节对编码与 WikiText
#
# 在模型读取文本之前，必须先决定什么是一个词元：是一个字符、一个单词，还是介于两者之间的片段。
# 这就是 minGPT 预告过但始终没有写出来的第三个示例 `play_words`。在本教程中，你将
#
# - 亲手学习一个字节对编码（BPE），一次合并一对，并与本库的结果对比，
# - 比较字符、单词和 BPE 三种分词方式对文本的影响，
# - 用每种方式各训练一个小语言模型，弄清它们的困惑度为什么不能直接比较，以及什么指标可以比较，
# - 让三个模型各写一段文本。
#
# 如果环境变量 `MS_GPT_DATA` 指向一个包含 `wikitext2/` 的文件夹，则使用 WikiText-2 的十分之一；
# 否则使用内置样本中的影评。在两个 CPU 核上大约需要两分钟；在昇腾（Ascend）上无需任何改动。

# %%
import math
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ms_gpt import GPTConfig, GPTLMHeadModel, Trainer, TrainingArguments
from ms_gpt.console import Console
from ms_gpt.data import BlockBatches, load_text
from ms_gpt.plots import BLUE, GREEN, GREY, ORANGE
from ms_gpt.tokenizer import train_tokenizer
from ms_gpt.training.perplexity import scored_batches, start_token

WORK = Path("runs/tutorials/06")
shutil.rmtree(WORK, ignore_errors=True)
DATA = os.environ.get("MS_GPT_DATA")
corpus = load_text(f"{DATA}/wikitext2" if DATA else "sample")
# WikiText comes in pieces that join exactly; the sample's reviews are documents of a line each.
between = "" if DATA else "\n"
train_text = between.join(corpus.train)[:1_000_000]
valid_text = between.join(corpus.validation)[:100_000]
for name, text in (("training", train_text), ("validation", valid_text)):
    print(f"{name}: {len(text):,} characters, {len(text.split()):,} words, {len(set(text.split())):,} different ones, "
          f"{text.split().count('<unk>') / len(text.split()):.1%} of them <unk>")
print(train_text[200:500])

# %% [markdown] en
# WikiText has its words parted by blanks, commas too, and has replaced rare words by `<unk>`: it was made for models of
# words. Keep that in mind; it will matter.
#
# ## A BPE by hand
#
# BPE begins with characters, which can write everything. Then it looks for the most frequent pair of neighbouring
# tokens, makes a new token of it, and repeats that. Frequent words become single tokens, rare ones stay in pieces, and
# nothing is unknown. Merges never cross a word's border, so it is enough to count words once. As in GPT-2, the blank
# before a word belongs to it; we write `_` for it.

# %% [markdown] zh
# WikiText 的单词之间用空格分开，逗号也不例外，而且罕见词已替换为 `<unk>`：它原本就是为单词级模型制作的。
# 请记住这一点，后面会用到。
#
# ## 亲手实现 BPE
#
# BPE 从字符出发，字符可以写出任何文本。接着找出最常见的一对相邻词元，把它合并成一个新词元，如此反复。
# 常见的单词会成为单个词元，罕见的单词保持为若干片段，不存在未知词。合并不会跨越单词边界，
# 所以只需统计一次词频。与 GPT-2 一样，单词前面的空格属于该单词，这里用 `_` 表示。

# %%
def count_words(text):
    """Count words with the blank before them, cut as GPT-2 cuts: letters, digits and other signs apart."""
    return Counter(word.replace(" ", "_") for word in re.findall(r" ?[^\W\d_]+| ?\d+| ?[^\s\w]+", text))


def merge(tokens, pair):
    """Return a word's tokens with every occurrence of the pair made one."""
    merged, i = [], 0
    while i < len(tokens):
        is_pair = tuple(tokens[i : i + 2]) == pair
        merged.append("".join(pair) if is_pair else tokens[i])
        i += 2 if is_pair else 1
    return merged


def learn_bpe(counts, number):
    """Return the merges in order, and how often each pair occurred."""
    words = {word: list(word) for word in counts}
    merges = {}
    for _ in range(number):
        pairs = Counter()
        for word, tokens in words.items():
            for pair in zip(tokens, tokens[1:], strict=False):
                pairs[pair] += counts[word]
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges[best] = pairs[best]
        words = {word: merge(tokens, best) if best[0] in tokens else tokens for word, tokens in words.items()}
    return merges


small = count_words("low low low low low lower lower newest newest newest newest newest newest widest widest widest")
for (left, right), occurrences in learn_bpe(small, 8).items():
    print(f"{left!r:>7} + {right!r:<7} occurred {occurrences:2} times")

# %% [markdown] en
# `est` became a token because two words share it, and `_lower`, which is rarer, is still in pieces. Now the same on the
# training text. To encode a new word, the merges are applied in the order in which they were learnt.

# %% [markdown] zh
# `est` 成为一个词元，因为两个单词都包含它；而较少见的 `_lower` 仍然是若干片段。现在对训练文本做同样的事情。
# 编码一个新单词时，按照学习时的先后顺序依次应用各个合并。

# %%
merges = learn_bpe(count_words(train_text), 40)
print("learnt:", " ".join("".join(pair) for pair in merges))


def encode_steps(word, merges):
    """Print how a word shrinks."""
    tokens = list(word)
    print("  ".join(tokens))
    for pair in merges:
        merged = merge(tokens, pair)
        if merged != tokens:
            print("  ".join(merged), f"     <- {pair[0]} + {pair[1]}")
        tokens = merged


encode_steps("_wondering", merges)

# %% [markdown] en
# The library learns the same with the `tokenizers` package, thousands of merges in a second, and on bytes: so that even
# a sign that never occurred can be written. Its first merges should be ours; only where two pairs are equally frequent
# either may come first.

# %% [markdown] zh
# 本库借助 `tokenizers` 包学习同样的编码，一秒钟可以完成数千次合并，而且以字节为单位，
# 因此从未出现过的符号也能写出来。它最先学到的合并应该与我们的一致，
# 只有在两个词元对出现次数相同时，先后次序才可能不同。

# %%
bpe = train_tokenizer([train_text], "byte-bpe", vocab_size=2000)
theirs = [bpe.id_to_token(256 + i).replace("Ġ", "_") for i in range(len(merges))]
ours = ["".join(pair) for pair in merges]
same = sum(a == b for a, b in zip(ours, theirs, strict=True))
print(f"{same} of {len(ours)} merges stand at the same place; {len(set(ours) & set(theirs))} are in both lists")
last = [bpe.id_to_token(len(bpe) - i).replace("Ġ", "_") for i in range(12, 1, -1)]
print(f"the last of {len(bpe):,} tokens:", " ".join(last))
unseen = "Grüße, 世界!"
print(f"{unseen!r} is {len(bpe.encode(unseen))} tokens and comes back as {bpe.decode(bpe.encode(unseen))!r}")

# %% [markdown] en
# ## What a tokenizer does to a text
#
# One sentence in three ways: a box is a token. Characters need many steps for little; words are few, but everything
# that is not in the vocabulary is lost (orange); BPE cuts the rare words only.

# %% [markdown] zh
# ## 分词器对文本做了什么
#
# 同一句话的三种切分，一个方框就是一个词元。字符需要很多步才能写出一点内容；单词的数量少，
# 但词表之外的内容全部丢失（橙色）；BPE 只切分罕见的单词。

# %%
characters = train_tokenizer([train_text, valid_text], "characters")
words = train_tokenizer([train_text], "words", vocab_size=4000)
TOKENIZERS = {"characters": characters, "words": words, "BPE": bpe}
sentence = " ".join(valid_text.split("\n", 4)[3].split()[:17]) if DATA else valid_text.split("\n")[0][:95]

figure, axes = plt.subplots(figsize=(13, 1.9), layout="constrained")
for row, (name, tokenizer) in enumerate(TOKENIZERS.items()):
    place = 0.0
    ids = tokenizer.encode(sentence)
    for token in ids:
        text = tokenizer.id_to_token(token).replace("Ġ", " ")
        is_unknown = name == "words" and token == tokenizer.unk_token_id
        width = len(text) + (name == "words")
        axes.add_patch(plt.Rectangle((place, -row), width - 0.1, 0.8, color=ORANGE if is_unknown else BLUE, alpha=0.25))
        axes.text(place + width / 2, 0.4 - row, text.strip() or "_", ha="center", va="center", fontsize=8,
                  family="monospace", parse_math=False)
        place += width
    axes.text(-1, 0.4 - row, f"{name}, {len(ids)} tokens", ha="right", va="center")
axes.set(xlim=(-19, len(sentence) + 4), ylim=(-2.1, 1))
axes.set_axis_off()
plt.show()

# %% [markdown] en
# How large should the vocabulary be? Each token costs a row in the embedding, and saves less and less: the curve of
# tokens a word flattens, while the table of a model of width 128 grows in proportion.

# %% [markdown] zh
# 词表应该多大？每个词元都要占用嵌入表中的一行，而节省的长度越来越少：平均每个单词的词元数曲线逐渐变平，
# 而对于宽度为 128 的模型，嵌入表的大小却成比例增长。

# %%
sizes = [300, 500, 1000, 2000, 4000, 8000]
learnt = [train_tokenizer([train_text], "byte-bpe", vocab_size=size) for size in sizes]
word_count = len(valid_text.split()) + valid_text.count("\n")
per_word = [len(tokenizer.encode(valid_text)) / word_count for tokenizer in learnt]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
left.plot([len(tokenizer) for tokenizer in learnt], per_word, color=BLUE, marker="o", label="BPE")
left.axhline(len(valid_text) / word_count, color=GREEN, linestyle="--", label="characters")
left.axhline(1, color=ORANGE, linestyle="--", label="words")
left.set(xlabel="vocabulary", ylabel="tokens a word", xscale="log", ylim=(0, None))
left.set_xticks(sizes, [f"{size:,}" for size in sizes])
left.minorticks_off()
left.legend(frameon=False)
layers = 2 * 12 * 128**2
right.bar(range(len(sizes)), [128 * len(tokenizer) / 1e6 for tokenizer in learnt], color=BLUE, label="embedding")
right.axhline(layers / 1e6, color=GREY, linestyle="--", label="two layers")
right.set_xticks(range(len(sizes)), [f"{len(tokenizer):,}" for tokenizer in learnt])
right.set(xlabel="vocabulary", ylabel="millions of weights, width 128")
right.legend(frameon=False)
plt.show()

# %% [markdown] en
# ## Three language models
#
# Now three models of the same two layers, trained on the same number of tokens: 300 updates of 32 blocks of 64 tokens.
# The loss is the mean of -ln p over tokens (nats a token), and the perplexity is its exponential: among how many
# equally likely tokens the model would be as unsure.

# %% [markdown] zh
# ## 三个语言模型
#
# 现在训练三个模型，它们同为两层，训练所用的词元数也相同：300 次更新，每次 32 个块，每块 64 个词元。
# 损失是每个词元 -ln p 的平均值（单位为奈特/词元），困惑度是它的指数：
# 相当于模型在多少个等可能的词元之间犹豫不决。

# %%
BLOCK, BATCH, STEPS = 64, 32, 300


def train(name, tokenizer):
    """Train a small language model; return the trainer and its figures on the validation text."""
    ids = {part: np.array(tokenizer.encode(text)) for part, text in (("train", train_text), ("valid", valid_text))}
    model = GPTLMHeadModel(GPTConfig(len(tokenizer), BLOCK, n_embd=128, n_layer=2, n_head=4, model_type="gpt2",
                                     resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    arguments = TrainingArguments(WORK / name, max_steps=STEPS, learning_rate=3e-3, lr_scheduler_type="cosine",
                                  warmup_steps=30, weight_decay=0.1, adam_beta2=0.98, save_strategy="no")
    trainer = Trainer(model, arguments, BlockBatches(ids["train"], BLOCK, BATCH, start_token(tokenizer), shuffle=True),
                      scored_batches([valid_text], ids["valid"], tokenizer, BLOCK, BATCH), tokenizer=tokenizer,
                      console=Console(quiet=True))
    trainer.train()
    return trainer, trainer.evaluate()


trainers, figures = {}, {}
for name, tokenizer in TOKENIZERS.items():
    trainers[name], figures[name] = train(name, tokenizer)
print(f"{'':>10} {'vocabulary':>10} {'tokens':>8} {'nats/token':>10} {'perplexity/token':>16}")
for name, found in figures.items():
    print(f"{name:>10} {len(TOKENIZERS[name]):10,} {found['eval_n']:8,} {found['eval_loss']:10.2f} "
          f"{found['eval_perplexity']:16.1f}")

# %% [markdown] en
# ## Why these perplexities must not be compared
#
# The model of characters has by far the lowest perplexity. It is not the best model: it chooses among few characters,
# and has to do so five times for a word. Its questions are easier, and there are more of them.
#
# What can be compared is what the **whole text** costs. The sum of the losses, in nats, is the negative logarithm of
# the probability of the text, however it was cut. Divided by the number of words (the same for all) it gives the
# perplexity per word, and divided by the number of characters the bits per character:
#
# $$\text{perplexity per word} = \exp\frac{\text{nats a token} \times \text{tokens}}{\text{words}}$$
#
# One trap is left: `<unk>`. The model of words pays nothing for saying *which* unknown word it was, so the words that
# it does not know are the cheapest of all. To write the whole text it would have to spell them. We let the model of
# characters do that, at its mean price per character; the pair of them can write everything, as the others can.

# %% [markdown] zh
# ## 为什么这些困惑度不能比较
#
# 字符模型的困惑度最低，而且低得多。但它并不是最好的模型：它只在少数字符中选择，而每个单词要选择大约五次。
# 它的问题更容易，但问题的数量更多。
#
# 可以比较的是**整篇文本**的代价。损失之和（单位为奈特）就是文本概率的负对数，与文本如何切分无关。
# 除以单词数（对所有模型都相同）得到每个单词的困惑度，除以字符数则得到每个字符的比特数：
#
# $$\text{每个单词的困惑度} = \exp\frac{\text{每个词元的奈特数} \times \text{词元数}}{\text{单词数}}$$
#
# 还有一个陷阱：`<unk>`。单词模型不需要说明那是*哪一个*未知单词，于是不认识的词反而最便宜。
# 要写出整篇文本，就必须把它们拼写出来。这里让字符模型来完成拼写，按它每个字符的平均代价计算；
# 这两个模型合在一起，就能和其他模型一样写出任何文本。

# %%
known = set(map(words.id_to_token, range(len(words))))
unknown = [word for word in valid_text.split() if word not in known]
print(f"the model of words does not know {len(unknown) / word_count:.1%} of the words: {', '.join(unknown[:4])} ...")

rows = {name: found["eval_loss"] * found["eval_n"] for name, found in figures.items()}
spelling = sum(len(word) + 1 for word in unknown) * figures["characters"]["eval_loss"]
rows["words and spelling"] = rows["words"] + spelling
print(f"\n{'':>20} {'nats in all':>12} {'perplexity/word':>16} {'bits/character':>15}")
for name, nats in rows.items():
    print(f"{name:>20} {nats:12,.0f} {math.exp(nats / word_count):16,.1f} "
          f"{nats / len(valid_text) / math.log(2):15.3f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 2.8), layout="constrained")
left.bar(list(figures), [found["eval_perplexity"] for found in figures.values()], color=[GREEN, ORANGE, BLUE])
left.set(title="per token: three different questions", ylabel="perplexity")
right.bar(list(rows), [nats / len(valid_text) / math.log(2) for nats in rows.values()],
          color=[GREEN, "#f0c9a8", BLUE, ORANGE])
right.set(title="one text, one price", ylabel="bits per character")
right.tick_params(axis="x", labelsize=8)
plt.show()

# %% [markdown] en
# In the run shown (WikiText-2) words and BPE look alike per token, at 93 and 95, and characters seem twelve times as
# good. Per text it is the other way round: 2.95 bits a character for characters, 2.21 for BPE, 1.28 for words, and
# about 2.03 for words once they pay for spelling. After so short a training that is the order of how much each
# vocabulary knows beforehand; and a token of characters covers a fifth of the text that a word does, so its model has
# read the least. On the built-in sample, whose few hundred words are all known, nothing has to be spelled.
#
# ## What they write
#
# Each model goes on from the same beginning, with the same settings. Note what each has learnt after so short a
# training: the model of characters spells, the others have words and begin to order them.

# %% [markdown] zh
# 在这次运行（WikiText-2）中，按词元看，单词和 BPE 差不多，分别是 93 和 95，而字符似乎好十二倍。
# 按整篇文本看则恰恰相反：每个字符的比特数，字符为 2.95，BPE 为 2.21，单词为 1.28，
# 而加上拼写的代价之后大约是 2.03。在如此短的训练之后，这个次序反映的是各个词表事先包含了多少知识；
# 而且一个字符词元覆盖的文本只有一个单词的五分之一，所以字符模型读到的文本最少。
# 内置样本只有几百个单词，全部在词表之内，不需要拼写。
#
# ## 它们写出的文本
#
# 三个模型使用相同的设置，从同一开头续写。请注意在这么短的训练之后各自学到了什么：
# 字符模型学会了拼写，另外两个有现成的单词，并开始学习如何排列它们。

# %%
prompt = "The first" if DATA else "The story"
lengths = {"characters": 160, "words": 32, "BPE": 55}
for name, tokenizer in TOKENIZERS.items():
    row = trainers[name].model.generate([tokenizer.encode(prompt)], max_new_tokens=lengths[name], temperature=0.8,
                                        top_k=50, eos_token_id=-1)
    print(f"{name}: {tokenizer.decode(row[0], skip_special_tokens=False)!r}\n")

# %% [markdown] en
# With patience the same code gives real models: `python -m ms_gpt pretrain --recipe wikitext2-word` reaches a test
# perplexity of 122.1 per word with the official vocabulary of all 33,278 words, and `--recipe wikitext2-bpe` 222.5 per
# word in half the time. Here too the first one has it easier: the official text's rare words are `<unk>`, which BPE
# has to spell.
#
# ## Exercise
#
# Which vocabulary is best for this budget? Train models on BPEs of 500, 1,000, 4,000 and 8,000 tokens, and plot bits
# per character against the vocabulary. Why does the curve turn up again?
#
# <details><summary>Hint</summary>
#
# The tokenizers are there already: `learnt`. `train(f"bpe-{len(t)}", t)[1]["eval_bits_per_character"]` is a point of
# the curve. With a large vocabulary a token is seen less often: 300 updates of 2,048 tokens, divided by 8,000 rows, is
# fewer than 80 visits a row, most of them to the frequent ones. What happens with 1,000 updates?
#
# </details>

# %% [markdown] zh
# 多花一些时间，同样的代码就能得到真正可用的模型：`python -m ms_gpt pretrain --recipe wikitext2-word` 使用包含全部
# 33,278 个单词的官方词表，测试集上每个单词的困惑度为 122.1；`--recipe wikitext2-bpe` 为 222.5，用时约一半。
# 这里同样是前者占了便宜：官方文本中的罕见词都是 `<unk>`，而 BPE 必须把它逐段拼写出来。
#
# ## 练习
#
# 在这样的训练预算下，多大的词表最好？分别用 500、1,000、4,000 和 8,000 个词元的 BPE 训练模型，
# 画出每个字符的比特数随词表大小变化的曲线。曲线为什么会重新上升？
#
# <details><summary>提示</summary>
#
# 分词器已经准备好，就在 `learnt` 中。`train(f"bpe-{len(t)}", t)[1]["eval_bits_per_character"]` 就是曲线上的一个点。
# 词表越大，每个词元被看到的次数越少：300 次更新、每次 2,048 个词元，除以 8,000 行，
# 平均每行不到 80 次，而且大部分集中在常见词元上。如果更新 1,000 次会怎样？
#
# </details>
