# %% [markdown] en
# # Arithmetic: a GPT learns to add
#
# A GPT does one thing: it predicts the next token. If the tokens are `85+50=`, the next ones are the answer, and a
# model that predicts them well has learnt to add, though nobody told it what a digit is. minGPT's `play_math` made this
# the classic first experiment; it needs no data set, and right and wrong can be counted exactly.
#
# In this notebook you
#
# - write sums as tokens, and decide which of them count in the loss,
# - part 10,000 sums so that the test is honest,
# - train three small models that see the same sums in different layouts, and watch them learn,
# - look at which sums go wrong, and at what the heads look at while they add.
#
# It takes about two minutes on two CPU cores. On Ascend the same cells run as they are: `device="auto"` takes the NPU.

# %% [markdown] zh
# # 算术：让 GPT 学会加法
#
# GPT 只做一件事：预测下一个词元。如果词元是 `85+50=`，那么接下来的词元就是答案；能准确预测它们的模型就学会了加法，
# 尽管从来没有人告诉它什么是数字。minGPT 的 `play_math` 让这个任务成为经典的入门实验：
# 它不需要数据集，而且对错可以精确统计。
#
# 在本教程中，你将
#
# - 把算式写成词元，并决定哪些词元计入损失，
# - 划分 10,000 道算式，使测试结果真实可信，
# - 训练三个小模型：算式相同，写法不同，观察它们的学习过程，
# - 查看哪些算式会算错，以及各个注意力头在做加法时关注什么。
#
# 在两个 CPU 核上大约需要两分钟。在昇腾（Ascend）上无需改动任何单元格：`device="auto"` 会自动选用 NPU。

# %%
import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from mindspore import Tensor
from mindspore.train import Callback

from ms_gpt import GPTConfig, GPTLMHeadModel, TrainingArguments
from ms_gpt.console import Console
from ms_gpt.data.arithmetic import addition_tokenizer, encode_addition, make_addition
from ms_gpt.data.blocks import RowBatches
from ms_gpt.plots import BLUE, GREEN, GREY, ORANGE
from ms_gpt.training.pretraining import AdditionTrainer

WORK = Path("runs/tutorials/05")
shutil.rmtree(WORK, ignore_errors=True)
DIGITS = 2
tokenizer = addition_tokenizer()
for text in ("85+50=135", "03+09=012"):
    print(f"{text}  ->  {tokenizer.encode(text)}")
print(len(tokenizer), "tokens in all")

# %% [markdown] en
# ## A sum as tokens
#
# Every sum has the same length: summands are filled up with zeros to two digits, the answer to three. So every digit
# has a place of its own, and the model can learn what each place means from the position embedding.
#
# The model reads a row and predicts, at every place, the token that comes next: the targets are the row moved by one.
# But the question cannot be predicted. Its digits are random, and the best any model can do there is a loss of ln 10 =
# 2.30 nats a digit. So the targets up to the equals sign are **masked**: they are set to -100, which the loss leaves
# out. Only what follows `=` counts.

# %% [markdown] zh
# ## 把算式写成词元
#
# 所有算式的长度都相同：加数用零补齐到两位，答案补齐到三位。这样每一位数字都有固定的位置，
# 模型可以通过位置嵌入学会每个位置的含义。
#
# 模型读入一行，并在每个位置预测下一个词元：目标就是把这一行向左移动一位。但题目本身是无法预测的：
# 其中的数字是随机的，任何模型在这里能达到的最小损失都是每位数字 ln 10 = 2.30 奈特（nat）。
# 因此等号之前的目标都要**屏蔽**：设为 -100，计算损失时会跳过它们。只有 `=` 之后的部分才计入损失。

# %%
input_ids, targets = encode_addition(np.array([[85, 50]]), DIGITS, tokenizer)
figure, axes = plt.subplots(figsize=(7, 1.7))
for row, ids in enumerate((input_ids[0], targets[0])):
    for place, token in enumerate(ids):
        color = GREY if token < 0 else (BLUE, ORANGE)[row]
        axes.add_patch(plt.Rectangle((place, -row), 0.92, 0.86, color=color, alpha=0.25 if token < 0 else 0.85))
        text = "-100" if token < 0 else tokenizer.decode([int(token)])
        axes.text(place + 0.46, 0.43 - row, text, ha="center", va="center", color=GREY if token < 0 else "white",
                  fontsize=10 if token < 0 else 14)
    axes.text(-0.15, 0.43 - row, ("input", "target")[row], ha="right", va="center")
axes.set(xlim=(-1.2, 8), ylim=(-1.1, 1.0))
axes.set_axis_off()
plt.show()

# %% [markdown] en
# ## An honest split
#
# There are 100 x 100 sums. If they were parted at random, 50+85 would often be in the training part when 85+50 is in
# the test part, and a model that has merely learnt that order does not matter would seem to add. So `make_addition`
# parts **unordered pairs**: both orders of a pair are in the same part. The picture shows it: each part is symmetric
# about the diagonal.

# %% [markdown] zh
# ## 真实可信的划分
#
# 一共有 100 x 100 道算式。如果随机划分，当 85+50 在测试集中时，50+85 往往在训练集里；
# 一个仅仅学到“交换加数结果不变”的模型，看起来就像会做加法。因此 `make_addition` 按**无序数对**划分：
# 一个数对的两种次序总在同一部分。从图中可以看出：每一部分都关于对角线对称。

# %%
parts = make_addition(DIGITS, seed=0)


def unordered(pairs):
    return {tuple(pair) for pair in np.sort(pairs, 1).tolist()}


for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
    shared = unordered(parts[first]) & unordered(parts[second])
    print(f"unordered pairs in both {first} and {second}: {len(shared)}")

every_sum = np.stack(np.meshgrid(np.arange(100), np.arange(100), indexing="ij"), -1).reshape(-1, 2)
mixed = np.random.default_rng(0).permutation(every_sum)
naive_train, naive_test = {tuple(pair) for pair in mixed[:8000].tolist()}, mixed[9000:]
known = np.mean([(b, a) in naive_train for a, b in naive_test.tolist()])
print(f"a split of single sums: {known:.0%} of the test sums have their swap in the training part")

part_of = np.zeros((100, 100), int)
for number, name in enumerate(("train", "validation", "test")):
    part_of[parts[name][:, 0], parts[name][:, 1]] = number
figure, axes = plt.subplots(figsize=(4.2, 4))
axes.imshow(part_of, cmap=plt.matplotlib.colors.ListedColormap(["#e8ecf1", ORANGE, BLUE]), origin="lower",
            interpolation="nearest")
axes.set(xlabel="b", ylabel="a", title="train (light), validation (orange), test (blue)")
plt.show()

# %% [markdown] en
# ## Which end first?
#
# People add from the right: units first, then tens with the carry. A GPT writes from left to right, so with the usual
# layout it has to write the hundreds first. That digit is the last carry, which may depend on all columns: the model
# has to do the whole sum in its head before it writes anything. If the answer is written **in reverse**, each digit
# needs one column and one carry only, and what it takes to know that carry has just been written.
#
# That is the theory. We will measure it, and the use of the mask too, with three layouts of the same sums:
#
# | layout | row | what counts in the loss |
# |---|---|---|
# | plain | `85+50=135` | the answer |
# | reversed | `85+50=531` | the answer |
# | no mask | `85+50=135` | every token |

# %% [markdown] zh
# ## 先写哪一端？
#
# 人做加法是从右往左：先算个位，再算十位并加上进位。GPT 从左往右写，按通常的写法必须先写百位。
# 而百位就是最后一次进位，可能取决于所有的列：模型必须先在“脑海”里算完整道题，才能写下第一个数字。
# 如果把答案**反过来**写，每一位只需要一列数字和一个进位，而推出这个进位所需的信息刚刚已经写出来了。
#
# 以上是理论。下面用同一批算式的三种写法来实际测量，顺便检验屏蔽的作用：
#
# | 写法 | 一行数据 | 哪些词元计入损失 |
# |---|---|---|
# | plain（通常写法） | `85+50=135` | 答案 |
# | reversed（反写） | `85+50=531` | 答案 |
# | no mask（不屏蔽） | `85+50=135` | 所有词元 |

# %%
ANSWER = 2 * DIGITS + 2  # the place of the first token after the equals sign
LAYOUTS = ("plain", "reversed", "no mask")


def write_sums(pairs, layout="plain", is_scored=False):
    """Return input_ids and targets of some sums, int32 (N, 8); to score a model, only answers count."""
    input_ids, targets = encode_addition(pairs, DIGITS, tokenizer)
    rows = np.concatenate([input_ids, targets[:, -1:]], 1)
    if layout == "reversed":
        rows[:, ANSWER:] = rows[:, ANSWER:][:, ::-1]
    targets = rows[:, 1:].copy()
    if layout != "no mask" or is_scored:
        targets[:, : ANSWER - 1] = -100
    return rows[:, :-1], targets


for layout in LAYOUTS:
    input_ids, targets = write_sums(np.array([[85, 50]]), layout)
    counted = "".join("." if token < 0 else tokenizer.decode([int(token)]) for token in targets[0])
    print(f"{layout:>8}:  reads {tokenizer.decode(input_ids[0])}  and has to predict {counted}")

# %% [markdown] en
# ## Training
#
# The model is a GPT-2 with two layers of width 64 and four heads: 100,000 weights, against the 124 million of the
# smallest GPT-2. `AdditionTrainer` is the library's `Trainer` with one thing added: it counts the sums with every digit
# right. Beside it a callback of ours looks at all 10,000 sums at each evaluation and notes which digits are right, for
# the pictures below. It only looks: what is trained on is `parts["train"]`, and what chooses the best weights is the
# validation part.

# %% [markdown] zh
# ## 训练
#
# 模型是两层、宽度 64、四个注意力头的 GPT-2：约 10 万个权重，而最小的 GPT-2 有 1.24 亿个。
# `AdditionTrainer` 是本库的 `Trainer` 加上一项功能：统计每一位数字都正确的算式。
# 此外，我们自己的一个回调函数在每次评估时查看全部 10,000 道算式，记下哪些数字正确，供后面画图使用。
# 它只是旁观：用于训练的是 `parts["train"]`，用于选择最优权重的是验证集。

# %%
STEPS, EVERY = 600, 50


class Watch(Callback):
    """Notes at each evaluation the answers (10000,) to all sums, and which digits are right (10000, 3)."""

    def __init__(self, trainer, layout):
        super().__init__()
        self.trainer, self.layout = trainer, layout
        self.steps, self.right, self.answers = [], [], []

    def on_train_step_end(self, run_context):
        step = self.trainer.state.step
        if step % EVERY:
            return
        forward = self.trainer.forward(["input_ids"])
        self.trainer.model.set_train(False)
        right, digits = [], []
        for input_ids, targets in RowBatches(*write_sums(every_sum, self.layout, True), 1000).epoch():
            guesses = forward(Tensor(input_ids))[0].asnumpy().argmax(-1)
            right.append((guesses == targets)[:, ANSWER - 1 :])
            digits.append(guesses[:, ANSWER - 1 :])  # the token of a digit is the digit
        self.trainer.model.set_train()
        order = slice(None, None, -1 if self.layout == "reversed" else 1)
        self.steps.append(step)
        self.right.append(np.concatenate(right)[:, order])
        self.answers.append(np.concatenate(digits)[:, order] @ [100, 10, 1])


def train(layout, seed=0):
    """Train a new model on one layout; return the trainer, what was watched, and the accuracies on validation."""
    model = GPTLMHeadModel(GPTConfig(len(tokenizer), n_positions=ANSWER + DIGITS, n_embd=64, n_layer=2, n_head=4,
                                     model_type="gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, seed=seed))
    arguments = TrainingArguments(
        WORK / layout, max_steps=STEPS, per_device_train_batch_size=256, learning_rate=4e-3, lr_scheduler_type="cosine",
        warmup_steps=60, weight_decay=0.1, adam_beta2=0.98, eval_strategy="steps", eval_steps=EVERY,
        save_strategy="no", load_best_model_at_end=True, logging_steps=EVERY, seed=seed)
    trainer = AdditionTrainer(
        model, arguments, RowBatches(*write_sums(parts["train"], layout), 256, shuffle=True, seed=seed),
        RowBatches(*write_sums(parts["validation"], layout, True), 1000), tokenizer=tokenizer,
        console=Console(quiet=True))
    watch = Watch(trainer, layout)
    trainer.callbacks.append(watch)
    trainer.train()
    records = map(json.loads, (WORK / layout / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return trainer, watch, [record["eval_accuracy"] for record in records if "eval_accuracy" in record]


trainers, watched, accuracies = {}, {}, {}
for layout in LAYOUTS:
    trainers[layout], watched[layout], accuracies[layout] = train(layout)
print(f"{trainers['plain'].model.num_parameters():,} weights; validation sums right after so many steps:")
print("   steps " + "".join(f"{step:6}" for step in watched["plain"].steps))
for layout in LAYOUTS:
    print(f"{layout:>8} " + "".join(f"{value:6.2f}" for value in accuracies[layout]))

# %% [markdown] en
# ## What was learnt, and in which order
#
# On the left the share of validation sums with every digit right. To its right, for each layout, how many of the single
# digits are right in sums that were not trained on. Read them for the order in which digits are learnt: which column
# comes first, and for which does the model need the carry?

# %% [markdown] zh
# ## 学到了什么，按什么顺序
#
# 最左边是验证集中每一位都正确的算式所占比例。右边三幅图对应三种写法，画的是在未参与训练的算式上各个数位的正确率。
# 请留意各数位学会的先后次序：哪一列最先学会？哪一列需要模型掌握进位？

# %%
held_out = part_of.reshape(-1) > 0
figure, panels = plt.subplots(1, 4, figsize=(13, 3.2), sharey=True, layout="constrained")
for layout, color in zip(LAYOUTS, (BLUE, ORANGE, GREY), strict=True):
    panels[0].plot(watched[layout].steps, accuracies[layout], color=color, marker="o", markersize=3, label=layout)
panels[0].set(title="whole sums right", xlabel="step", ylabel="share right")
panels[0].legend(frameon=False)
for axes, layout in zip(panels[1:], LAYOUTS, strict=True):
    shares = np.array([right[held_out].mean(0) for right in watched[layout].right])
    for place, (name, color) in enumerate(zip(("hundreds", "tens", "units"), (BLUE, GREEN, ORANGE), strict=True)):
        axes.plot(watched[layout].steps, shares[:, place], color=color, label=name)
    axes.set(title=f"{layout}: single digits", xlabel="step")
panels[1].legend(frameon=False)
plt.show()

# %% [markdown] en
# In the run shown all three layouts get there, by different roads:
#
# - *plain* begins with the hundreds, which are a question of size (is the sum at least 100?), and needs the most steps
#   for the tens, the column in the middle: they depend on a carry from the right that has not been written yet.
# - *reversed* learns as people do: units first, then the tens.
# - *no mask* starts late. Five of its eight targets are noise, and their gradients drown the others at first.
#
# So is reversing worth it? It was quicker here, as the theory has it. But one run is one run. On sums of three digits
# the same model and budget gave 98 % and 98 % with the plain layout for two seeds, and 100 % and 11 % with the reversed
# one: the difference between seeds was larger than that between layouts. The library writes sums plainly; masking it
# always does.

# %% [markdown] zh
# 在这次运行中，三种写法最终都学会了，但路径不同：
#
# - *plain* 最先学会百位，因为百位只是大小问题（和是否达到 100？）；花费步数最多的是中间的十位：
#   它取决于右侧的进位，而那一位此时还没有写出来。
# - *reversed* 与人的做法一样：先学会个位，再学会十位。
# - *no mask* 起步较晚。八个目标中有五个是噪声，它们的梯度一开始淹没了其余目标的梯度。
#
# 那么反写值得吗？在这里它确实更快，与理论相符。但一次运行只是一次运行。在三位数加法上，用同样的模型和预算，
# 两个种子下 plain 写法的正确率是 98 % 和 98 %，而反写是 100 % 和 11 %：种子之间的差异大于写法之间的差异。
# 本库按通常的次序书写算式，而屏蔽则始终使用。

# %% [markdown] en
# ## Where it goes wrong
#
# A map of all sums for the plain layout: a upwards, b to the right, darker where more of the three digits are wrong.
# The errors are not scattered, they have a pattern. On a diagonal stand the sums with the same answer, so stripes along
# it mean that the model has a feeling for the size of the answer before it can add. The bars count the sums that are
# wrong in the third map: the number of carries says less than the last digit of the answer. In the run shown, answers
# that end in 0 or 1, just above a multiple of ten, are wrong most often, and most errors are tens that come out one too
# low (the line below the maps counts them).

# %% [markdown] zh
# ## 错在哪里
#
# 下面是 plain 写法下所有算式的地图：纵轴为 a，横轴为 b，三位数字中错得越多颜色越深。
# 错误并不是随机散布的，而是有规律的。同一条对角线上的算式答案相同，所以沿对角线的条纹意味着
# 模型在学会加法之前，就已经对答案的大小有了感觉。条形图统计第三幅地图中算错的算式：进位次数的影响
# 不如答案的末位数字大。在这次运行中，以 0 或 1 结尾、刚刚超过整十的答案最容易算错，而多数错误都是十位少了一
# （图下方的那一行给出了比例）。

# %%
stages = [2, 3, 4, 6]
watch = watched["plain"]
figure, panels = plt.subplots(1, len(stages) + 2, figsize=(14.5, 2.8), layout="constrained")
for axes, stage in zip(panels, stages, strict=False):
    wrong = 3 - watch.right[stage].sum(1).reshape(100, 100)
    axes.imshow(wrong, cmap="magma_r", vmin=0, vmax=3, origin="lower", interpolation="nearest")
    axes.set_title(f"step {watch.steps[stage]}: {(wrong == 0).mean():.0%} right", fontsize=10)
    axes.set(xlabel="b", xticks=[0, 50, 99], yticks=[0, 50, 99])
panels[0].set_ylabel("a")

wrong = ~watch.right[stages[2]].all(1)
carries = (every_sum % 10).sum(1) // 10 + every_sum.sum(1) // 100
for axes, groups, name in ((panels[-2], carries, "carries"), (panels[-1], every_sum.sum(1) % 10, "last digit")):
    values = np.unique(groups)
    axes.bar(values, [wrong[groups == value].mean() for value in values], color=BLUE)
    axes.set(xlabel=name, xticks=values, ylim=(0, 1))
    axes.set_title(f"share wrong, step {watch.steps[stages[2]]}", fontsize=10)
plt.show()
too_low = (watch.answers[stages[2]] - every_sum.sum(1))[wrong] == -10
print(f"step {watch.steps[stages[2]]}: {too_low.mean():.0%} of the wrong answers are exactly ten too low")

# %% [markdown] en
# ## The test, once
#
# The validation part has chosen the weights, so its figure flatters. The test part has not been used yet; each model is
# scored on it once. Then we let the plain model write, token by token, as it would for you: `generate` takes the
# question and adds the likeliest token three times.

# %% [markdown] zh
# ## 只测试一次
#
# 权重是用验证集选出来的，所以验证集上的数字会偏高。测试集至今没有用过，每个模型只在它上面评分一次。
# 然后让 plain 模型像实际使用时那样逐个词元地书写：`generate` 接收题目，连续三次追加最可能的词元。

# %%
for layout in LAYOUTS:
    figures = trainers[layout].score(RowBatches(*write_sums(parts["test"], layout, True), 1000))
    print(f"{layout:>8}: {round(figures['accuracy'] * figures['n'])} of {figures['n']} test sums right")

model = trainers["plain"].model
questions = [f"{a:02}+{b:02}=" for a, b in parts["test"].tolist()]
written = model.generate([tokenizer.encode(question) for question in questions], max_new_tokens=DIGITS + 1)
texts = tokenizer.batch_decode(written)
right = sum(int(text[ANSWER:]) == a + b for text, (a, b) in zip(texts, parts["test"].tolist(), strict=True))
print(f"written token by token: {right} of {len(texts)}, such as {', '.join(texts[:4])}")

# %% [markdown] en
# ## What the heads look at
#
# With `output_attentions=True` a model returns the attention weights of every layer too. Since all sums have the same
# layout, we can average them over the test part. The rows are the three places at which a digit of the answer is
# predicted; the columns are the tokens that can be looked at there: `A a` the digits of the first number, `B b` those
# of the second, then `=` and what has been written. A column that stands right of what has been written is white: the
# causal mask.

# %% [markdown] zh
# ## 注意力头在看什么
#
# 设置 `output_attentions=True` 后，模型还会返回每一层的注意力权重。由于所有算式的格式相同，可以在测试集上取平均。
# 各行是预测答案三位数字的三个位置；各列是此时可以关注的词元：`A a` 是第一个数的两位数字，`B b` 是第二个数的两位数字，
# 之后是 `=` 和已经写出的数字。位于已写内容右侧的列是白色的：这就是因果掩码。

# %%
seer = GPTLMHeadModel.from_pretrained(WORK / "plain" / "best", output_attentions=True)
input_ids, _ = write_sums(parts["test"])
_, attentions = seer.set_train(False)(Tensor(input_ids))
columns = ["A", "a", "+", "B", "b", "=", "1st", "2nd"]
figure, panels = plt.subplots(2, 4, figsize=(13, 3.8), sharex=True, sharey=True, layout="constrained")
for layer, weights in enumerate(attentions):
    mean = weights.asnumpy().mean(0)[:, ANSWER - 1 :]  # (heads, 3 answer places, 8 tokens)
    for head, axes in enumerate(panels[layer]):
        axes.imshow(np.where(mean[head] == 0, np.nan, mean[head]), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(mean[head]):
            if value >= 0.1:
                axes.text(column, row, f"{value:.1f}".lstrip("0"), ha="center", va="center", fontsize=8,
                          color="white" if value > 0.5 else "black")
        axes.set_title(f"layer {layer}, head {head}", fontsize=10)
        axes.set_xticks(range(8), columns)
        axes.set_yticks(range(3), ["hundreds", "tens", "units"])
plt.show()

# %% [markdown] en
# In the run shown the heads of the first layer have found what to add: for the hundreds they look at `A` and `B`, half
# and half, and for the units at `a` and `b`. The tens need `A` and `B` and also the carry from `a` and `b`: for them
# the first layer spreads its attention, and the second one looks at `b` again. Nobody has told the model where the
# columns are.
#
# ## The same in minGPT's words
#
# Programs written for minGPT need other imports only. `sample` is its function for generating:

# %% [markdown] zh
# 在这次运行中，第一层的注意力头已经找到了该相加的数字：对于百位，它们各用一半注意力看 `A` 和 `B`；
# 对于个位，则看 `a` 和 `b`。十位既需要 `A` 和 `B`，又需要 `a` 与 `b` 产生的进位：
# 这时第一层的注意力比较分散，第二层再次查看 `b`。没有人告诉过模型数位在哪里。
#
# ## minGPT 的写法
#
# 为 minGPT 编写的程序只需修改导入语句。`sample` 是它的生成函数：

# %%
from ms_gpt.mingpt import sample  # noqa: E402

question = Tensor([tokenizer.encode("17+26=")])
print(tokenizer.decode(sample(model, question, steps=3)[0]))

# %% [markdown] en
# ## Exercise
#
# How few sums are enough? Train the plain layout on a fifth of the pairs: `make_addition(DIGITS, shares=(0.2, 0.1,
# 0.7))`, and count the test sums that are right. Does the loss on the training part tell you? What helps more, more
# steps or more weight decay? If you have ten minutes more: does the reversed layout need fewer?
#
# <details><summary>Hint</summary>
#
# `parts` is a global that `train` reads, so set it anew and call `train("plain")`. Compare
# `trainer.score(RowBatches(*write_sums(parts["train"]), 1000))` with the same for `parts["test"]`: a model that has
# learnt its sums by heart is right on the first and wrong on the second. Then try `STEPS = 1500`, and
# `weight_decay=1.0`.
#
# Sums of three digits are one command: `python -m ms_gpt pretrain --recipe adder-3`.
#
# </details>

# %% [markdown] zh
# ## 练习
#
# 最少需要多少道算式？只用五分之一的数对训练 plain 写法：`make_addition(DIGITS, shares=(0.2, 0.1, 0.7))`，
# 然后统计测试集中算对的题数。训练集上的损失能告诉你答案吗？增加步数和增大权重衰减，哪个更有效？
# 如果还有十分钟：反写的布局需要的算式是否更少？
#
# <details><summary>提示</summary>
#
# `train` 读取的 `parts` 是全局变量，重新赋值后调用 `train("plain")` 即可。把
# `trainer.score(RowBatches(*write_sums(parts["train"]), 1000))` 与 `parts["test"]` 上的结果对比：
# 死记硬背的模型在前者上全对，在后者上出错。再试试 `STEPS = 1500` 和 `weight_decay=1.0`。
#
# 三位数加法只需一条命令：`python -m ms_gpt pretrain --recipe adder-3`。
#
# </details>
