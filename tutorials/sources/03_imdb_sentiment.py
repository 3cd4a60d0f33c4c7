# %% [markdown] en
# # 03 IMDB: fine-tuning a sentiment classifier, done right
#
# This is the task of the GPT lesson in MindSpore's course on large models: take a GPT and fine-tune it until it tells
# positive film reviews from negative ones. Training is the easy part. What usually goes wrong is everything around it:
# validation reviews that were also trained on, a "best" model that was chosen on the test set, a figure without
# anything to compare it with. So this notebook does it by the book:
#
# 1. three parts, shown to be disjoint;
# 2. a simple baseline first;
# 3. a language model, then a classifier that starts from it, as in the GPT-1 paper;
# 4. the best epoch chosen on validation, the test set scored once;
# 5. the errors read.
#
# It takes 2 to 3 minutes on two CPU cores and runs unchanged on an Ascend NPU. With `MS_GPT_DATA` set it takes 6,000 of
# IMDB's 25,000 training reviews; without, it takes the built-in sample of short reviews. The figures and errors that
# the text talks about are those of IMDB, as the outputs show them.

# %% [markdown] zh
# # 03 IMDB：规范地微调一个情感分类器
#
# 这正是昇思 MindSpore 大模型课程中 GPT 一课的任务：微调 GPT，让它区分影评是正面还是负面。训练本身并不难，容易出错的是
# 训练之外的环节：验证集里混入训练过的影评、用测试集挑选“最佳”模型、给出一个没有参照的数字。本教程按规范来做：
#
# 1. 划分三个部分，并证明互不重叠；
# 2. 先做一个简单的基线；
# 3. 先训练语言模型，再以它为起点训练分类器，与 GPT-1 论文一致；
# 4. 用验证集选出最佳 epoch，测试集只评估一次；
# 5. 阅读预测错误的样本。
#
# 在两个 CPU 核上需要 2 到 3 分钟，在昇腾 NPU 上无需改动即可运行。设置了 `MS_GPT_DATA` 时，使用 IMDB 25000 条训练影评
# 中的 6000 条；否则使用内置的短影评样本。文中讨论的数字和错误样本来自 IMDB，见各单元格的输出。

# %%
import os
import shutil
from pathlib import Path

from ms_gpt import load_dataset
from ms_gpt.data import split

DATA = os.environ.get("MS_GPT_DATA")
work = Path("runs/tutorials/03")
shutil.rmtree(work, ignore_errors=True)

if DATA:
    imdb = load_dataset(f"{DATA}/imdb")
    chosen = imdb["train"].shuffle(seed=0).select(range(7000))
    parts = split(chosen, {"train": 6 / 7, "validation": 1 / 7}, seed=0)
    known = {text.strip() for text in chosen["text"]}
    new = [row for row, text in enumerate(imdb["test"]["text"]) if text.strip() not in known]
    print(f"{len(imdb['test']) - len(new)} of the official test reviews are training reviews too: left out")
    parts["test"] = imdb["test"].select(new).shuffle(seed=0).select(range(2000))
    settings = {"n_layer": 1, "n_head": 2, "max_length": 256, "dropout": 0.2, "word_dropout": 0.3, "lm_coef": 0.0,
                "pretrain_epochs": 0.1, "epochs": 3, "adam_beta2": 0.98}
else:
    parts = load_dataset("sample")
    settings = {"n_layer": 2, "n_head": 4, "max_length": 128, "dropout": 0.1, "word_dropout": 0.0, "lm_coef": 0.5,
                "pretrain_epochs": 6, "epochs": 16, "adam_beta2": 0.999}

names = parts["train"].label_names or ["negative", "positive"]  # IMDB's file says 0 and 1
for part, rows in parts.items():
    print(f"{part:<11}{len(rows):>6,} reviews", {name: rows["label"].count(i) for i, name in enumerate(names)})
print(f"\n{names[parts['train'][0]['label']]}: {parts['train'][0]['text'][:300]}")

# %% [markdown] en
# ## Disjoint, and how they would not be
#
# `split` draws indices once, by seed, keeps equal texts together (IMDB has reviews that occur twice) and gives each
# part both labels in the same proportion. IMDB's official training and test sets share some reviews, too: those we have
# left out of the test. That no review stands in two parts can be checked, so we check it.
#
# The second half of the cell does what many notebooks do without noticing: the data set is shuffled anew each time it
# is read, and the parts are cut from two different orders. Four fifths of such a validation set have been trained on,
# and its accuracy says nothing about new reviews.

# %% [markdown] zh
# ## 互不重叠，以及怎样就会重叠
#
# `split` 按随机种子一次性抽取索引，把相同的文本放在同一部分（IMDB 中有重复的影评），并让各部分的类别比例一致。IMDB 官
# 方的训练集与测试集也有少量相同的影评，我们已将其从测试集中去掉。任何一条影评都不会同时出现在两个部分里。这一点可以检
# 查，那就检查一下。
#
# 单元格的后半段演示了许多 notebook 在不知不觉中犯的错误：数据集每次读取都重新打乱，而各部分是从两种不同的顺序中切出来
# 的。这样的验证集有五分之四已经训练过，它的准确率说明不了模型对新影评的表现。

# %%
import itertools

for one, two in itertools.combinations(parts, 2):
    shared = {text.strip() for text in parts[one]["text"]} & {text.strip() for text in parts[two]["text"]}
    print(f"{one} and {two} share {len(shared)} reviews")
    assert not shared

everything = parts["train"]
n = len(everything)
leaky_train = everything.shuffle(seed=1).select(range(int(0.8 * n)))
leaky_validation = everything.shuffle(seed=2).select(range(int(0.8 * n), n))
seen = set(leaky_train["text"])
leaked = sum(text in seen for text in leaky_validation["text"]) / len(leaky_validation)
print(f"cut from two shuffles: {leaked:.0%} of the validation reviews have been trained on")

# %% [markdown] en
# ## Tokens
#
# A byte pair encoding is learnt on the training reviews only: the vocabulary is part of the model, so it must not know
# the others either. To GPT-1's vocabulary belong a start token, and one at the end, `<extract>`, whose hidden state is
# classified: with causal attention only the last position has seen the whole review.
#
# Long reviews do not fit. Of those we keep the first quarter and the last three quarters of what fits (`head_tail`),
# since reviewers say at the beginning what it is about, and at the end what they think.

# %% [markdown] zh
# ## 分词
#
# 字节对编码（BPE）只在训练影评上学习：词表是模型的一部分，同样不应该见过其他部分的数据。 GPT-1 的输入以起始 token 开
# 头，以 `<extract>` 结尾，分类用的就是后者的隐藏状态：在因果注意力下，只有最后一个位置看到了整条影评。
#
# 过长的影评放不下，此时保留可用长度的前四分之一和后四分之三（`head_tail`）：影评人往往开头说片子讲什么，结尾才说自己
# 的看法。

# %%
import matplotlib.pyplot as plt
import numpy as np

from ms_gpt import Tokenizer
from ms_gpt.data.encode import clean_text, encode_texts
from ms_gpt.plots import BLUE, GREEN, ORANGE
from ms_gpt.tokenizer import GPT1_SPECIAL_TOKENS

texts = {part: [clean_text(text) for text in rows["text"]] for part, rows in parts.items()}  # <br /> is a line end
tokenizer = Tokenizer.train(texts["train"], vocab_size=8000, model_max_length=settings["max_length"])
tokenizer.add_special_tokens(GPT1_SPECIAL_TOKENS)
ids = {part: tokenizer.encode_batch(rows) for part, rows in texts.items()}

example = encode_texts(["Not bad at all!"], tokenizer, settings["max_length"]).sequences[0]
print(len(tokenizer), "tokens;", [tokenizer.id_to_token(token) for token in example])

lengths = [len(row) for row in ids["train"]]
plt.figure(figsize=(8, 2.4))
plt.hist(lengths, bins=60, range=(0, max(settings["max_length"] * 3, 120)), color=BLUE)
plt.axvline(settings["max_length"], color=ORANGE)
plt.text(settings["max_length"], plt.ylim()[1] * 0.9, " longest that fits", color=ORANGE)
plt.xlabel("tokens in a training review")
plt.ylabel("reviews")
plt.show()

# %% [markdown] en
# ## The baseline: a bag of words
#
# How far does one get without reading? A bag of words knows how often each token occurs, and nothing of their order.
# Logistic regression on weighted counts (TF-IDF) is a strong baseline for long reviews: "awful" and "waste" decide most
# of them. Its one free number, the strength of the regularisation, is chosen on validation, as ours will be.

# %% [markdown] zh
# ## 基线：词袋模型
#
# 不“阅读”能做到多好？词袋模型只知道每个 token 出现了多少次，不知道它们的顺序。对长影评来说，在加权词频（TF-IDF）上
# 做逻辑回归是很强的基线：大多数影评凭 “awful”“waste” 之类的词就能定论。它唯一的自由参数是正则化强度，在验证集上选
# 择；后面我们的模型也这样选择。

# %%
from scipy.optimize import minimize
from scipy.sparse import csr_matrix


def count(rows):
    places = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    tokens = np.concatenate([np.array(row, int) for row in rows])
    table = csr_matrix((np.ones(len(tokens)), (places, tokens)), shape=(len(rows), len(tokenizer)))
    table.data = 1 + np.log(table.data)
    return table


counts = {part: count(rows) for part, rows in ids.items()}
idf = np.log(len(ids["train"]) / (1 + np.bincount(counts["train"].indices, minlength=len(tokenizer))))
features = {}
for part, table in counts.items():
    weighted = table.multiply(np.maximum(idf, 0.0)).tocsr()
    norms = np.sqrt(weighted.multiply(weighted).sum(1)).A1
    features[part] = csr_matrix(weighted.multiply(1 / np.maximum(norms, 1e-9)[:, None]))
labels = {part: np.array(rows["label"]) for part, rows in parts.items()}
signs = 2 * labels["train"] - 1


def loss_and_gradient(w, strength):
    margins = signs * (features["train"] @ w)
    slope = -signs / (1 + np.exp(margins)) / len(signs)
    return np.logaddexp(0, -margins).mean() + strength * w @ w / 2, features["train"].T @ slope + strength * w


def accuracy(w, part):
    return float(((features[part] @ w > 0) == labels[part]).mean())


fits = [minimize(loss_and_gradient, np.zeros(len(tokenizer)), strength, jac=True, method="L-BFGS-B").x
        for strength in (1e-5, 3e-5, 1e-4, 3e-4)]
bag = max(fits, key=lambda w: accuracy(w, "validation"))
print(f"bag of words: validation accuracy {accuracy(bag, 'validation'):.3f}")
for name, order in (("most negative", np.argsort(bag)), ("most positive", np.argsort(-bag))):
    print(f"{name}: {', '.join(tokenizer.id_to_token(i).removesuffix('</w>') for i in order[:10])}")

# %% [markdown] en
# ## Stage 1: a language model
#
# GPT-1's idea is semi-supervised: learn the language from texts without labels, then fine-tune on the few labelled
# ones. Labels cost money, texts are everywhere. The objective of this stage is that of tutorial 04, $L_1 = \sum_i \log
# P(u_i \mid u_{i-k}, \ldots, u_{i-1})$.
#
# We have no month of eight GPUs. A few dozen steps on the training reviews stand in for it here, and they only begin to
# learn the language; the stage is here because it is what one replaces: put a folder with GPT-1's weights into
# `pretrained`, and stage 2 stays as it is.

# %% [markdown] zh
# ## 阶段一：语言模型
#
# GPT-1 的思路是半监督学习：先从没有标签的文本中学习语言，再在少量有标签的数据上微调。标注要花钱，而文本到处都是。这一
# 阶段的目标函数与教程 04 相同：$L_1 = \sum_i \log P(u_i \mid u_{i-k}, \ldots, u_{i-1})$。
#
# 我们没有八块 GPU 和一个月时间，这里只用训练影评训练几十步作为替代，模型刚刚开始学习语言。保留这个阶段，是因为它正是
# 您要替换的部分：把 `pretrained` 换成 GPT-1 权重所在的目录，阶段二完全不用改。

# %%
from ms_gpt import GPTConfig, GPTForSequenceClassification, GPTLMHeadModel, Trainer, TrainingArguments
from ms_gpt.console import Console
from ms_gpt.data import BlockBatches

roles = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")}
dropout = {"embd_pdrop": settings["dropout"], "resid_pdrop": settings["dropout"], "attn_pdrop": 0.0}
config = GPTConfig(len(tokenizer), settings["max_length"], model_type="gpt2", n_layer=settings["n_layer"],
                   n_head=settings["n_head"], n_embd=128, **dropout, **roles)
language_model = GPTLMHeadModel(config)

stream = np.concatenate([[tokenizer.bos_token_id, *row, tokenizer.cls_token_id] for row in ids["train"]])
blocks = BlockBatches(stream, block_size=128, batch_size=32, start_id=tokenizer.cls_token_id, shuffle=True)
arguments = TrainingArguments(
    str(work / "language-model"), num_train_epochs=settings["pretrain_epochs"], learning_rate=2e-3,
    lr_scheduler_type="cosine", warmup_ratio=0.05, adam_beta2=settings["adam_beta2"], save_strategy="no")
pretraining = Trainer(language_model, arguments, blocks, tokenizer=tokenizer, console=Console(quiet=True))
result = pretraining.train()
pretrained = work / "language-model"
pretraining.save_model(pretrained)
print(f"{language_model.num_parameters():,} parameters, {result['steps']} steps, "
      f"perplexity {len(tokenizer):,} -> {np.exp(result['train_loss']):.0f}")

# %% [markdown] en
# ## Stage 2: the classifier
#
# `from_pretrained` takes the transformer over and adds a new linear layer, `score`, on the hidden state of `<extract>`.
# With `lm_coef` $= \lambda > 0$ the language-model loss stays on as an auxiliary objective, $L_3 = L_2 + \lambda L_1$;
# that helps on the short sentences of the sample, and is too slow to pay off here. Against learning by heart: dropout,
# and word dropout, which replaces 30 % of the words by `<unk>`, so that no single word can decide.
#
# After each epoch the validation reviews are scored, and the best epoch's weights are kept. The test reviews are not
# touched.

# %% [markdown] zh
# ## 阶段二：分类器
#
# `from_pretrained` 接过 Transformer 的权重，并在 `<extract>` 的隐藏状态上新增一个线性层 `score`。当 `lm_coef`（即
# $\lambda$）大于 0 时，语言模型损失作为辅助目标保留下来：$L_3 = L_2 + \lambda L_1$。它对样本中的短句有帮助，在这里则
# 太慢，得不偿失。为防止死记硬背，使用 dropout 和词丢弃（word dropout）：后者把 30% 的词替换为 `<unk>`，使任何单个词都
# 无法独自决定结果。
#
# 每个 epoch 结束后在验证影评上评估，并保留最佳 epoch 的权重。测试影评不会被用到。

# %%
model = GPTForSequenceClassification.from_pretrained(
    pretrained, num_labels=len(names), id2label=dict(enumerate(names)), lm_coef=settings["lm_coef"],
    classifier_pdrop=settings["dropout"], **dropout)
arguments = TrainingArguments(
    str(work / "classifier"), num_train_epochs=settings["epochs"], per_device_train_batch_size=32,
    per_device_eval_batch_size=64, learning_rate=1e-3, lr_scheduler_type="cosine", warmup_ratio=0.1,
    adam_beta2=settings["adam_beta2"], word_dropout=settings["word_dropout"], eval_strategy="epoch", save_strategy="no",
    load_best_model_at_end=True, metric_for_best_model="accuracy")
trainer = Trainer(model, arguments, parts["train"], parts["validation"], tokenizer=tokenizer,
                  console=Console(quiet=True))
print(f"{model.num_parameters():,} parameters; batches are padded to {trainer.buckets} tokens, a graph for each")
result = trainer.train()

log = trainer.log.read()
for row in log:
    if "eval_loss" in row:
        best = "  <- best" if row["step"] == result["best_step"] else ""
        print(f"epoch {row['epoch']:>4.1f}: validation loss {row['eval_loss']:.3f}, "
              f"accuracy {row['eval_accuracy']:.3f}{best}")

# %%
train_points = [(row["step"], row["loss"]) for row in log if "loss" in row]
evaluations = [(row["step"], row["eval_loss"], row["eval_accuracy"]) for row in log if "eval_loss" in row]
steps, losses, accuracies = zip(*evaluations, strict=True)
figure, left = plt.subplots(figsize=(8, 3.2))
left.plot(*zip(*train_points, strict=True), color=BLUE, alpha=0.6, label="training loss")
left.plot(steps, losses, color=ORANGE, marker="o", label="validation loss")
left.set_xlabel("step")
left.set_ylabel("loss")
right = left.twinx()
right.plot(steps, accuracies, color=GREEN, marker="s", label="validation accuracy")
right.set_ylabel("accuracy", color=GREEN)
figure.legend(frameon=False, loc="upper center", ncol=3)
plt.show()

# %% [markdown] en
# The training loss is a mean over reviews with a third of their words missing, and with dropout: it looks worse than
# the validation loss for a while and still says the model is learning. Towards the end it falls well below, and the
# validation loss rises again: the model begins to learn reviews by heart, and becomes surer of its errors too. Its
# accuracy still rises a little. Which of the two chooses the epoch has to be decided beforehand; we report accuracy, so
# accuracy decides.
#
# ## The test set, once
#
# Everything has been chosen, so now the test set may be scored: the model once, the baseline once. With 2,000 reviews
# the accuracy itself is only known to within one and a half percentage points (95 % interval), so differences below
# that mean nothing.

# %% [markdown] zh
# 训练损失是在丢掉三成词、并启用 dropout 的条件下计算的，所以有一段时间它看起来比验证损失还差，但模型确实在学习。到后
# 期，训练损失明显更低，而验证损失重新上升：模型开始死记影评，对自己的错误也更有把握，不过准确率仍略有提高。用哪一个来
# 选 epoch 应当事先定好；我们报告的是准确率，所以由准确率决定。
#
# ## 测试集只用一次
#
# 所有选择都已完成，现在可以评估测试集了：模型一次，基线一次。2000 条影评下，准确率本身也只能精确到约 1.5 个百分点
# （95% 置信区间），小于这个幅度的差异没有意义。

# %%
from ms_gpt import predict
from ms_gpt.training.metrics import confusion_matrix

predictions = predict(model, tokenizer, parts["test"]["text"], batch_size=64)
predicted = np.array([names.index(prediction["label"]) for prediction in predictions])

n = len(predicted)
for name, answers in (("GPT", predicted), ("bag of words", features["test"] @ bag > 0)):
    p = (answers == labels["test"]).mean()
    print(f"{name:<13} test accuracy {p:.3f} +- {1.96 * np.sqrt(p * (1 - p) / n):.3f}")

matrix = confusion_matrix(labels["test"], predicted, len(names))
plt.figure(figsize=(3.6, 3))
plt.imshow(matrix / matrix.sum(1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
for i, j in itertools.product(range(len(names)), repeat=2):
    share = matrix[i, j] / matrix[i].sum()
    plt.text(j, i, f"{matrix[i, j]}\n{share:.1%}", ha="center", va="center", color="white" if share > 0.5 else "black")
plt.xticks(range(len(names)), names)
plt.yticks(range(len(names)), names)
plt.xlabel("predicted")
plt.ylabel("true")
plt.show()

# %% [markdown] en
# ## Reading the errors
#
# An accuracy says how often the model is wrong; only the texts say why. Most worth reading are the errors that it was
# surest of: those are no coin tosses.

# %% [markdown] zh
# ## 阅读错误样本
#
# 准确率只说明模型错得有多频繁，只有文本才能说明为什么错。最值得读的是模型最有把握的错误：那不是随手一猜。

# %%
wrong = np.flatnonzero(predicted != labels["test"])
surest = sorted(wrong, key=lambda i: -predictions[i]["probability"])
for i in surest[:5]:
    words = " ".join(texts["test"][i].split())
    shown = words if len(words) < 520 else f"{words[:230]} [...] {words[-270:]}"
    print(f"true: {names[labels['test'][i]]}, predicted: {predictions[i]['label']} "
          f"({predictions[i]['probability']:.1%})\n{shown}\n")

chances = np.array([prediction["probability"] for prediction in predictions])
for low, high in ((0.5, 0.7), (0.7, 0.9), (0.9, 0.97), (0.97, 1.01)):
    chosen = (chances >= low) & (chances < high)
    if chosen.any():
        print(f"probability {low:.2f} to {min(high, 1):.2f}: {chosen.sum():>5} reviews, "
              f"{(predicted == labels['test'])[chosen].mean():.1%} right")

# %% [markdown] en
# In the run shown here, the five surest errors are of three kinds, and only some are the model's fault:
#
# - **The label is wrong.** "Excellent movie", "Highly Recommended: 7/10", filed as negative; the Heffalump review is
#   hardly a condemnation either. No model can be right about such reviews, and one that is has learnt them by heart.
# - **What decides is a comparison.** "A long way from the wonderful Les enfants du paradis" praises another film, and
#   "the book was great" a book.
# - **The verdict is plain, and was missed.** "A rancid piece of garbage not worth viewing": "garbage" stands in 96
#   training reviews, 83 of them negative, and still other words outweighed it. This one is the model's own fault, and
#   the kind of error that more data, or a pre-trained model, mends.
#
# The table says something else: the probabilities are too high. Where the model claims 70 to 90 %, it is right three
# times out of five. After training by heart has set in, a probability is a ranking, not a promise; whoever needs one
# that holds calibrates it on validation (by a temperature, for example), and for rejecting doubtful cases the ranking
# will do.

# %% [markdown] zh
# 在这里展示的运行中，最有把握的五个错误可分为三类，其中只有一部分是模型的过失：
#
# - **标签本身有误。** “Excellent movie”“Highly Recommended: 7/10”，却被归为负面；评论 Heffalump 的那条也很难算是
#   批评。这样的影评任何模型都答不对，能答对的只是背下来了。
# - **起决定作用的是比较。** “A long way from the wonderful Les enfants du paradis” 夸的是另一部影片，
#   “the book was great” 夸的是书。
# - **结论很明白，却没读出来。** “A rancid piece of garbage not worth viewing”：“garbage” 出现在 96 条训练影评中，
#   其中 83 条是负面，可还是被别的词压了过去。这是模型自己的过失，也正是更多的数据或预训练模型能够改善的错误。
#
# 表格还说明了另一件事：概率偏高。模型声称有 70% 到 90% 把握时，五次里只对三次。开始死记之后，概率只能用来排序，不能当
# 作承诺；需要可信的概率，就要在验证集上校准（例如用温度缩放）；如果只是为了筛出可疑的样本，排序就够用了。

# %% [markdown] en
# ## Your own sentences
#
# The last one is a trap: every opinion word in it is praise, and negated.

# %% [markdown] zh
# ## 试试自己的句子
#
# 最后一句是个陷阱：其中表达观点的词都是褒义的，却都被否定了。

# %%
sentences = [
    "A wonderful film, not a minute too long.",
    "I want my two hours back. The plot made no sense and the acting was awful.",
    "The first half is slow, but the ending moved me to tears.",
    "I would not call it good, and the story was never interesting.",
]
for prediction in predict(model, tokenizer, sentences):
    print(f"{prediction['label']:<9}{prediction['probability']:.3f}  {prediction['text']}")

# %% [markdown] en
# In the run shown, on IMDB, all four are right. (The built-in sample is a made-up language: a model that has learnt it
# can only guess here.) That the trap did not work proves little: "not" and "never" are frequent in bad reviews, so a
# bag of words may fall on the right side as well. Try sentences that tell the two apart, such as "not bad at all".
#
# ## What this reaches, and how to go on
#
# | what | test accuracy |
# |---|---|
# | this notebook: 6,000 reviews, 256 tokens, under 3 minutes | .838 (bag of words .868) |
# | all 25,000 reviews, 512 tokens: `python -m ms_gpt finetune --data imdb` (about 15 minutes) | .882 |
# | bag of words and word pairs (TF-IDF, logistic regression) on all 25,000 | .911 |
# | GPT-1's pre-trained weights, fine-tuned (the course's own notebooks) | .918 to .925 |
#
# Plainly: a small transformer that has seen nothing but the labelled reviews does not beat counting words on IMDB. Long
# reviews name their verdict many times, and counting finds it. What lifts GPT-1 above is what it read before: that is
# the whole point of pre-training. With a network, or a folder that has the weights, the same two stages are one
# command, with the paper's fine-tuning recipe (for an NPU or a GPU: 117 million parameters):
#
#     python -m ms_gpt finetune --data imdb --model openai-community/openai-gpt
#
# On the built-in sample it is the other way round. There the label depends on word order ("not", "but", "less ...
# than"), the bag of words gets .6, and the small GPT gets more than .9. Which of the two your data is like, only a
# baseline tells.
#
# ## Exercise
#
# Does stage 1 help at this size? Train the classifier from scratch and compare. Then compare `truncation="head"` and
# `"tail"` with the default. Decide by validation accuracy only, and say how large a difference has to be to count.
#
# <details><summary>Hint</summary>
#
# `GPTForSequenceClassification(config.replace(num_labels=2, classifier_pdrop=0.2))` is a classifier from scratch;
# `truncation` is an argument of `TrainingArguments`. With 1,000 validation reviews an accuracy of .84 is known to
# within 2.3 points, and the choice of seed may move it by a point: train each variant with three seeds (`seed` in
# `TrainingArguments`, and in the config for the initial weights) before you believe a difference.
#
# </details>

# %% [markdown] zh
# 在这里展示的 IMDB 运行中，四句都判断正确。（内置样例是一种人造语言，只学过它的模型在这里只能猜。）陷阱没有奏效并不能
# 说明太多：差评里本来就常有 “not” 和 “never”，词袋模型也可能蒙对。请试试能区分两者的句子，例如 “not bad at all”。
#
# ## 能达到什么水平，如何继续
#
# | 内容 | 测试准确率 |
# |---|---|
# | 本教程：6000 条影评，256 个 token，不到 3 分钟 | .838（词袋 .868） |
# | 全部 25000 条影评，512 个 token：`python -m ms_gpt finetune --data imdb`（约 15 分钟） | .882 |
# | 全部 25000 条影评上的词与词对（TF-IDF、逻辑回归） | .911 |
# | 微调 GPT-1 预训练权重（课程自己的 notebook） | .918 到 .925 |
#
# 坦率地说，只见过标注影评的小型 Transformer 在 IMDB 上赢不了数词频。长影评会反复说出自己的结论，数一数就能找到。
# GPT-1 之所以更高，靠的是它之前读过的文本，这正是预训练的意义所在。有网络或本地有权重目录时，同样的两个阶段只需一条命
# 令，并采用论文的微调配方（1.17 亿参数，适合在 NPU 或 GPU 上运行）：
#
#     python -m ms_gpt finetune --data imdb --model openai-community/openai-gpt
#
# 在内置样本上情况正好相反：标签取决于词序（“not”“but”“less ... than”），词袋模型只有 .6，小型 GPT 则超过 .9。您
# 的数据属于哪一种，只有做了基线才知道。
#
# ## 练习
#
# 在这个规模上，阶段一有帮助吗？从零训练分类器并进行比较。再把 `truncation="head"`、`"tail"` 与默认值作比较。只根据验
# 证准确率做决定，并说明差异要多大才算数。
#
# <details><summary>提示</summary>
#
# `GPTForSequenceClassification(config.replace(num_labels=2, classifier_pdrop=0.2))` 就是从零开始的分类器；
# `truncation` 是 `TrainingArguments` 的参数。用 1000 条验证影评时，.84 的准确率误差约为 2.3 个百分点，换一个随机种子
# 也可能使它变动 1 个百分点：每种设置都用三个种子训练（`TrainingArguments` 的 `seed`，以及配置中决定初始权重的
# `seed`），再相信看到的差异。
#
# </details>
