# %% [markdown] en
# # 04 Characters: a small GPT that writes Shakespeare
#
# A language model learns one thing: which token comes next. Here a token is a single character, the text is forty
# thousand lines of Shakespeare, and the model has 0.8 million parameters. It begins by typing at random, and within
# 2,000 steps it has learnt to spell, to name speakers and to break lines. The setting is that of minGPT's `play_char`,
# at the size that nanoGPT gives for a CPU.
#
# You will see how characters become numbers, what a training example looks like, how good a model has to be to beat
# counting, what its loss says, and how temperature changes what it writes. It takes about 2 minutes on two CPU cores;
# on an Ascend NPU the same code runs unchanged.
#
# Without Shakespeare's text (`MS_GPT_DATA` is not set) the notebook takes the built-in film reviews, which are much
# easier; the figures named in the text are those of Shakespeare.

# %% [markdown] zh
# # 04 字符：用小型 GPT 写莎士比亚
#
# 语言模型只学一件事：预测下一个 token。本教程中一个 token 就是一个字符，训练文本是四万行莎士比亚戏剧，模型只有 80 万
# 个参数。它起初只会乱敲字符，2000 步之内就学会了拼写、写出角色名、按台词换行。任务与 minGPT 的 `play_char` 相同，规模
# 取 nanoGPT 为 CPU 给出的配置。
#
# 您将看到：字符如何变成数字，一条训练样本长什么样，模型要好到什么程度才算胜过简单的计数，损失值说明了什么，以及温度如
# 何改变生成的文本。在两个 CPU 核上大约需要 2 分钟；在昇腾 NPU 上代码无需任何改动。
#
# 如果没有莎士比亚文本（未设置 `MS_GPT_DATA`），则使用内置的影评样本。它要简单得多，文中提到的数字都是莎士比亚文本的结
# 果。

# %% [markdown] en
# ## The text and its split
#
# The first nine tenths are for training, the last tenth is for validation. We cut once, in order: shuffled pieces of a
# play would put half a scene into training and the other half into validation.

# %% [markdown] zh
# ## 文本及其划分
#
# 前十分之九用于训练，最后十分之一用于验证。按原文顺序只切一刀：若把剧本打散再分，同一场戏就会一半进训练集、一半进验证
# 集。

# %%
import os
import shutil
from pathlib import Path

from ms_gpt import load_dataset

DATA = os.environ.get("MS_GPT_DATA")
work = Path("runs/tutorials/04")
shutil.rmtree(work, ignore_errors=True)

if DATA:
    text = Path(DATA, "shakespeare", "input.txt").read_text(encoding="utf-8")
    prompt = "ROMEO:\n"
else:
    text = "\n".join(review for part in load_dataset("sample").values() for review in part["text"])
    prompt = "The acting "

cut = int(0.9 * len(text))
train_text, validation_text = text[:cut], text[cut:]
print(f"{len(train_text):,} characters to train on, {len(validation_text):,} to validate on\n")
print(train_text[:180])

# %% [markdown] en
# ## A character is a token
#
# The vocabulary is the set of characters that occur. `encode` turns a text into their numbers, `decode` turns numbers
# back, and nothing is lost on the way. The price is length: a word is five or six tokens, and the model has to learn to
# spell before it can learn anything else. (Tutorial 06 uses whole words and byte pairs instead.)

# %% [markdown] zh
# ## 一个字符就是一个 token
#
# 词表就是文本中出现过的全部字符。`encode` 把文本变成编号，`decode` 再变回来，过程没有任何损失。代价是序列变长：一个单
# 词要占五六个 token，模型必须先学会拼写才能学别的。（教程 06 改用单词和字节对编码。）

# %%
from ms_gpt.tokenizer import CharacterTokenizer

tokenizer = CharacterTokenizer.train([text])
print(f"{len(tokenizer)} characters:", repr("".join(tokenizer.decode([i]) for i in range(len(tokenizer)))))

ids = tokenizer.encode("To be, or not to be")
print(ids)
assert tokenizer.decode(ids) == "To be, or not to be"

# %% [markdown] en
# ## A training example
#
# The text is cut into blocks of 64 characters. The target of each position is simply the next character, so that a
# block of 64 gives 64 predictions at once: the causal mask of attention sees to it that position *t* knows only what
# stands before it. In every epoch the cuts begin at another place, so blocks differ from epoch to epoch. For validation
# there is no randomness, and every character is predicted exactly once.

# %% [markdown] zh
# ## 一条训练样本
#
# 文本被切成长度为 64 的块。每个位置的目标就是下一个字符，因此一个块同时给出 64 次预测：注意力的因果掩码保证位置 *t*
# 只能看到它之前的内容。每个 epoch 的切分起点都不同，所以各个 epoch 的块也不同。验证时没有随机性，每个字符恰好被预测一
# 次。

# %%
import numpy as np

from ms_gpt.data import BlockBatches

block_size = 64
train_ids, validation_ids = (np.array(tokenizer.encode(part), np.int32) for part in (train_text, validation_text))
start = tokenizer.start_token_id  # the line end stands before the first character
train_batches = BlockBatches(train_ids, block_size, batch_size=12, start_id=start, shuffle=True, seed=0)
validation_batches = BlockBatches(validation_ids, block_size, batch_size=64, start_id=start)

input_ids, targets = next(train_batches.epoch())
print("input_ids", input_ids.shape, "targets", targets.shape)
for t in range(1, 9):
    print(f"after {tokenizer.decode(input_ids[0, :t])!r:<14} comes {tokenizer.decode(targets[0, t - 1 : t])!r}")

# %% [markdown] en
# ## What counting reaches
#
# Before training, three marks to measure the loss against. The loss is the mean negative logarithm of the probability
# that was given to the right character, in nats:
#
# - **uniform**: every character is equally likely; that is where an untrained model stands;
# - **frequencies**: *e* is more likely than *z*, whatever stands before;
# - **pairs**: the probability depends on the one character before, counted on the training text.
#
# A GPT that did not beat the pairs would have learnt nothing from its longer context.

# %% [markdown] zh
# ## 单纯计数能达到什么水平
#
# 训练之前，先为损失准备三个参照。损失是模型给正确字符的概率取负对数后的平均值，单位为奈特（nat）：
#
# - **均匀分布**（uniform）：所有字符等可能，未经训练的模型就在这个水平；
# - **字符频率**（frequencies）：不看上文，*e* 总比 *z* 更常见；
# - **字符对**（pairs）：概率取决于前一个字符，由训练文本统计得到。
#
# 如果 GPT 赢不了字符对，说明它没有从更长的上下文中学到任何东西。

# %%
V = len(tokenizer)
singles = np.bincount(train_ids, minlength=V) + 1.0
pairs = np.zeros((V, V)) + 0.1
np.add.at(pairs, (train_ids[:-1], train_ids[1:]), 1.0)

log_single = np.log(singles / singles.sum())
log_pair = np.log(pairs / pairs.sum(1, keepdims=True))
baselines = {
    "uniform": np.log(V),
    "frequencies": -log_single[validation_ids].mean(),
    "pairs": -log_pair[validation_ids[:-1], validation_ids[1:]].mean(),
}
for name, loss in baselines.items():
    print(f"{name:<12} loss {loss:.3f}   perplexity {np.exp(loss):5.1f}")

# %% [markdown] en
# ## The model
#
# Four blocks, four heads, 128 wide: GPT-2's architecture (`model_type="gpt2"`: LayerNorm before each sub-block) a
# hundred and fifty times smaller. Dropout is off, since 2,000 steps of 12 blocks are only one and a half passes over
# the text.

# %% [markdown] zh
# ## 模型
#
# 四层、四个注意力头、宽度 128：结构与 GPT-2 相同（`model_type="gpt2"`，即 LayerNorm 放在每个子层之前），规模约为其一
# 百五十分之一。2000 步、每步 12 个块，总共只把文本过了一遍半，因此关闭 dropout。

# %%
from ms_gpt import GPTConfig, GPTLMHeadModel, generate

config = GPTConfig(len(tokenizer), block_size, model_type="gpt2", n_layer=4, n_head=4, n_embd=128,
                   embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)
model = GPTLMHeadModel(config)
print(f"{model.num_parameters():,} parameters\n")
print(generate(model, tokenizer, prompt, max_new_tokens=100, temperature=1.0, seed=0)[0])

# %% [markdown] en
# ## Training
#
# `Trainer` compiles forward pass, loss, gradients, clipping and AdamW into one static graph and runs it 2,000 times:
# the rate rises over 100 steps to 4e-3 and falls to zero along a cosine. Every 400 steps it scores the whole validation
# text and keeps the weights if they are the best so far.
#
# The Trainer takes MindSpore's callbacks. Ours prints the validation loss and a line that the model writes, so that we
# can watch it learn.

# %% [markdown] zh
# ## 训练
#
# `Trainer` 把前向计算、损失、梯度、梯度裁剪和 AdamW 编译进同一张静态图，然后运行 2000 次：学习率在 100 步内升到
# 4e-3，再按余弦曲线降到零。每 400 步在全部验证文本上评估一次，如果是目前最好的结果就保存权重。
#
# Trainer 接受 MindSpore 的回调。下面的回调会打印验证损失和模型写的一行文字，让我们看着它学习。

# %%
from mindspore.train import Callback

from ms_gpt import Trainer, TrainingArguments
from ms_gpt.console import Console

arguments = TrainingArguments(
    str(work), max_steps=2000, per_device_train_batch_size=12, learning_rate=4e-3, lr_scheduler_type="cosine",
    warmup_steps=100, weight_decay=0.1, adam_beta2=0.99, eval_strategy="steps", eval_steps=400, save_strategy="no",
    load_best_model_at_end=True)
trainer = Trainer(model, arguments, train_batches, validation_batches, tokenizer=tokenizer, console=Console(quiet=True))


class Watch(Callback):
    """Prints what the model writes after each evaluation."""

    def on_train_step_end(self, run_context):
        step = trainer.state.step
        if step % arguments.eval_steps == 0:
            model.set_train(False)
            written = generate(model, tokenizer, prompt, max_new_tokens=60, temperature=0.8, seed=0)[0]
            model.set_train()
            print(f"step {step:>4}, validation loss {trainer.state.last_eval['loss']:.3f}: {written[len(prompt):]!r}")


trainer.callbacks.append(Watch())
result = trainer.train()
best = result["best"]["loss"]
print(f"\nbest validation loss {best:.3f} at step {result['best_step']}: perplexity {np.exp(best):.2f}, "
      f"{best / np.log(2):.2f} bits a character")

# %% [markdown] en
# ## The loss curve
#
# The loss falls fast to the level of the frequencies, then to that of the pairs: the model learns them first, since
# they are the easiest thing to learn. All that lies below the line of the pairs comes from context.
#
# nanoGPT's README names 1.88 for this size after 2,000 steps (and 1.47 for a 10-million-parameter model on a GPU). A
# larger learning rate is what we gain the difference with. The training loss ends about 0.15 below the validation loss.
# After one and a half passes that is hardly learning by heart: the last tenth is other scenes, with other names.

# %% [markdown] zh
# ## 损失曲线
#
# 损失很快降到字符频率的水平，再降到字符对的水平：这些最容易学，所以模型先学会它们。低于字符对那条线的部分，全都来自上
# 下文。
#
# nanoGPT 的 README 对这一规模、2000 步给出的数字是 1.88（在 GPU 上训练的千万参数模型是 1.47）。这里的差距主要来自更大
# 的学习率。训练损失最终比验证损失低约 0.15。文本只过了一遍半，这很难说是死记硬背：最后十分之一是别的场次，人名也不
# 同。

# %%
import matplotlib.pyplot as plt

from ms_gpt.plots import BLUE, GREEN, GREY, ORANGE

log = trainer.log.read()
train_points = [(row["step"], row["loss"]) for row in log if "loss" in row]
validation_points = [(row["step"], row["eval_loss"]) for row in log if "eval_loss" in row]
plt.figure(figsize=(8, 3.6))
plt.plot(*zip(*train_points, strict=True), color=BLUE, linewidth=1, label="training")
plt.plot(*zip(*validation_points, strict=True), color=ORANGE, marker="o", label="validation")
for name, loss in baselines.items():
    plt.axhline(loss, color=GREY, linewidth=0.8, linestyle="--")
    plt.text(2000, loss + 0.03, name, color=GREY, ha="right", fontsize=9)
plt.xlabel("step")
plt.ylabel("loss (nats a character)")
plt.margins(y=0.1)
plt.legend(frameon=False, loc="center right")
plt.show()

# %% [markdown] en
# ## What context is worth
#
# The first character of a block is predicted from one character, the last one from 64. The mean loss at each position
# shows what that is worth. With a single character in view the model is where the counted pairs are; the loss falls
# steeply over the next three or four, and slowly after that, as far as the noise of some five hundred blocks lets one
# see. This is also why the validation loss depends on the block size: models with a longer context are punished less
# often for a blind beginning.

# %% [markdown] zh
# ## 上下文有多大价值
#
# 块内第一个字符只凭一个字符来预测，最后一个字符则有 64 个字符可看。各位置的平均损失说明了上下文的价值：只看到一个字符
# 时，模型与统计字符对的水平相同；接下来三四个字符内下降很快，之后变慢（这里只用了约五百个块，曲线有些抖动）。验证损失
# 因此也与块长有关：上下文越长， “开头什么都看不到”的惩罚就越少。

# %%
from mindspore import Tensor

log_probabilities, right = [], []
for input_ids, targets in list(validation_batches.epoch())[:8]:
    logits = model(Tensor(input_ids))[0].asnumpy().astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    log_probabilities.append(np.take_along_axis(log_softmax, targets[..., None], -1)[..., 0])
by_position = -np.concatenate(log_probabilities).mean(0)

plt.figure(figsize=(8, 3))
plt.plot(range(1, block_size + 1), by_position, color=BLUE)
plt.axhline(baselines["pairs"], color=GREY, linewidth=0.8, linestyle="--")
plt.text(block_size, baselines["pairs"] + 0.03, "pairs", color=GREY, ha="right", fontsize=9)
plt.xlabel("characters that the model can see")
plt.ylabel("mean loss")
plt.margins(y=0.15)
plt.show()

# %% [markdown] en
# ## Temperature
#
# To write, we draw the next character from the model's distribution, append it, and go on. The logits are divided by
# the temperature first. Below 1 the likely characters become likelier: text turns safe, correct and repetitive. Above 1
# the distribution flattens, and spelling mistakes creep in. The bars show the same prediction at three temperatures.

# %% [markdown] zh
# ## 温度
#
# 生成文本时，从模型给出的分布中抽取下一个字符，接到末尾，再继续。抽取之前先把 logits 除以温度：低于 1 时，原本可能的
# 字符更加可能，文本更稳妥、更正确，也更容易重复；高于 1 时分布变平，拼写错误开始出现。下面的柱状图是同一次预测在三种
# 温度下的分布。

# %%
context = prompt + ("What " if DATA else "was ")
logits = model(Tensor([tokenizer.encode(context)]))[0].asnumpy()[0, -1]
order = np.argsort(-logits)[:14]
plt.figure(figsize=(8, 3))
for shift, temperature, color in ((-0.27, 0.5, BLUE), (0.0, 1.0, GREEN), (0.27, 1.5, ORANGE)):
    scaled = logits / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    plt.bar(np.arange(len(order)) + shift, probabilities[order], 0.26, color=color, label=f"temperature {temperature}")
plt.xticks(range(len(order)), [repr(tokenizer.decode([i]))[1:-1].replace(" ", "blank") for i in order])
plt.ylabel("probability")
plt.title(f"the character after {context!r}", fontsize=10)
plt.legend(frameon=False)
plt.show()

# %%
for temperature in (None, 0.5, 0.8, 1.2):
    name = "greedy: always the likeliest" if temperature is None else f"temperature {temperature}"
    written = generate(model, tokenizer, prompt, max_new_tokens=180, temperature=temperature, seed=3)[0]
    print(f"--- {name} ---\n{written}\n")

# %% [markdown] en
# Greedy text falls into a loop: in a small model the likeliest continuation of a phrase is often the phrase itself. At
# 0.5 most words are words. At 1.2 the layout of a play survives, and the words are half invented. The text never means
# anything: 64 characters of context and 0.8 million parameters learn form long before they learn sense.
#
# ## Keeping the model
#
# The best weights are in `best/`, with the tokenizer, in Hugging Face's layout. `AutoModel` loads them again, and so
# does the command line; `--recipe shakespeare-char` is this whole notebook as one command.

# %% [markdown] zh
# 贪心解码会陷入循环：对小模型来说，一句话最可能的后续往往就是它自己。温度为 0.5 时大多数单词都是真词；到 1.2 时剧本的
# 格式还在，单词却有一半是编造的。这些文字始终没有意义：64 个字符的上下文和 80 万个参数，先学会的是形式，离理解内容还
# 很远。
#
# ## 保存模型
#
# 最佳权重连同分词器保存在 `best/` 中，采用 Hugging Face 的目录格式。`AutoModel` 和命令行都能重新加载它；
# `--recipe shakespeare-char` 用一条命令就能完成本教程的全部训练。

# %%
from ms_gpt import AutoModel, Tokenizer

print(sorted(path.name for path in (work / "best").iterdir()))
again, its_tokenizer = AutoModel.from_pretrained(work / "best"), Tokenizer.from_pretrained(work / "best")
same = generate(again, its_tokenizer, prompt, max_new_tokens=40, temperature=0.8, seed=3)
assert same == generate(model, tokenizer, prompt, max_new_tokens=40, temperature=0.8, seed=3)
print(type(again).__name__, "writes the same:", repr(same[0]))

# python -m ms_gpt pretrain --recipe shakespeare-char
# python -m ms_gpt generate --model runs/shakespeare-char/best "ROMEO:" --temperature 0.8

# %% [markdown] en
# If you know minGPT: `from ms_gpt.mingpt import GPT, GPTConfig, Trainer, TrainerConfig, sample` gives its names for the
# same model, so that `play_char` runs with its imports changed.
#
# ## Exercise
#
# Is the context too short? Train once with `block_size = 32` and once with `block_size = 128`, keeping the number of
# characters in a batch (12 x 64) and everything else. Which validation losses do you get, and are they comparable?
#
# <details><summary>Hint</summary>
#
# Use batches of 24 and of 6. The losses are means over all positions, and a longer block has relatively fewer positions
# with little context. So compare `by_position` of the models as well: the curve of the longer one goes on falling where
# the shorter one ends. If the two curves agree as far as both go, context is all that the longer block has gained.
#
# </details>

# %% [markdown] zh
# 如果您熟悉 minGPT：`from ms_gpt.mingpt import GPT, GPTConfig, Trainer, TrainerConfig, sample` 以它的名字提供同样的模
# 型，只改 import 语句就能运行 `play_char`。
#
# ## 练习
#
# 上下文是不是太短了？分别用 `block_size = 32` 和 `block_size = 128` 各训练一次，保持每个批次的字符总数（12 x 64）及其
# 余设置不变。验证损失分别是多少？它们之间可以直接比较吗？
#
# <details><summary>提示</summary>
#
# 批次大小分别取 24 和 6。损失是对所有位置取的平均，块越长，上下文不足的位置所占比例就越小。因此还要比较各模型的
# `by_position` 曲线：短块的曲线到头之后，长块的曲线会继续下降。如果两条曲线在共同的范围内重合，那么长块的优势就只在于
# 上下文更长。
#
# </details>
