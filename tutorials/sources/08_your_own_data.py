# %% [markdown] en
# # 08 Your own data: from a folder of texts or a csv to a model
#
# You have texts of your own. This notebook goes the whole way with them, once without labels and once with:
#
# - a **folder of text files** becomes a language model, with its perplexity on texts it has never seen;
# - a **csv** of labelled texts becomes a classifier that starts from that language model, is scored, and labels new
#   texts;
# - both are loaded again in Python, **converted** to other formats, and **exported** to a graph that runs without this
#   library.
#
# Training is done from the command line, where each step is one command; scripts read its results as JSON. It takes
# about 2 minutes on two CPU cores; the same commands use an Ascend NPU where there is one.

# %% [markdown] zh
# # 08 使用自己的数据：从文本目录或 csv 到模型
#
# 您手里有自己的文本。本教程带着它们走完全程，先是没有标签的，再是有标签的：
#
# - **文本文件目录**变成语言模型，并给出它在从未见过的文本上的困惑度；
# - 带标签的 **csv** 变成分类器：以上述语言模型为起点训练、评估，再为新文本打标签；
# - 两者都可在 Python 中重新加载、**转换**为其他格式，并**导出**为不依赖本库即可运行的图。
#
# 训练在命令行中完成，每一步只需一条命令，脚本可以读取 JSON 格式的结果。在两个 CPU 核上约需 2 分钟；有昇腾 NPU 时，同
# 样的命令会自动使用它。

# %% [markdown] en
# ## Two stand-ins for your data
#
# So that the notebook runs anywhere, we write the built-in film reviews out as if they were yours: 500 text files with
# ten reviews each, and a csv with the columns `comment` and `verdict`. A second, smaller csv stands for the reviews
# that come in next month. No review is in two of the three. To use your own data, leave this cell out and change the
# three paths.

# %% [markdown] zh
# ## 准备两份替代数据
#
# 为了让教程在任何地方都能运行，我们把内置影评写成文件，假装是您的数据：500 个文本文件，每个含十条影评；以及一个包含
# `comment` 和 `verdict` 两列的 csv。另一个较小的 csv 代表下个月才到的影评。任何一条影评都不会出现在两份数据中。要使用
# 自己的数据，跳过这个单元格并修改三个路径即可。

# %%
import csv
import shutil
from pathlib import Path

from ms_gpt.data import make_sample

work = Path("runs/tutorials/08")
shutil.rmtree(work, ignore_errors=True)
text_folder, labelled, later = work / "my_texts", work / "my_reviews.csv", work / "next_month.csv"

sample = make_sample(seed=0, train=8000)
reviews = list(dict.fromkeys(zip(sample["train"]["text"], sample["train"]["label"], strict=True)))
text_folder.mkdir(parents=True)
for i in range(500):
    lines = [text for text, _ in reviews[10 * i : 10 * i + 10]]
    (text_folder / f"notes-{i:03}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["comment", "verdict"])
        writer.writerows((text, ("negative", "positive")[label]) for text, label in rows)


write_csv(labelled, reviews[5000:7500])
write_csv(later, zip(sample["test"]["text"], sample["test"]["label"], strict=True))

print((text_folder / "notes-000.txt").read_text(encoding="utf-8")[:300], "...\n")
print(labelled.read_text(encoding="utf-8")[:300], "...")

# %% [markdown] en
# ## The commands
#
# `python -m ms_gpt VERB` (or `ms-gpt VERB`, once the package is installed) is what you would type in a terminal. The
# helper below runs a command with `--json` and returns what it says: every verb then prints one JSON object as its last
# line, and its progress goes elsewhere. `--help` after a verb shows each flag with its default.

# %% [markdown] zh
# ## 命令行
#
# `python -m ms_gpt VERB`（安装之后也可写作 `ms-gpt VERB`）就是您在终端里输入的内容。下面的辅助函数加上 `--json` 运行
# 一条命令并返回它的输出：此时每个子命令都会把一个 JSON 对象作为最后一行打印出来，进度信息则输出到别处。在子命令后加
# `--help` 可查看所有参数及其默认值。

# %%
import json
import shlex
import subprocess
import sys


def ms_gpt(command):
    print(f"$ python -m ms_gpt {command}")
    words = [sys.executable, "-m", "ms_gpt", *shlex.split(command), "--json"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


info = ms_gpt("info")
print(f"Python {info['python']}, known problems here: {info['problems'] or 'none'}")

# %% [markdown] en
# ## A language model of a folder
#
# `pretrain` takes any folder, file, or table with a column of texts. It
#
# - splits the documents 80/10/10 into training, validation and test texts, by seed and whole: no file is in two parts;
# - learns a byte-level BPE on the training texts only;
# - trains, scores the validation texts every 150 steps, and keeps the best weights;
# - scores the test texts once, at the end.
#
# Left out, every flag has a default that suits some megabytes of text (`--recipe small`: four layers, 2,000 steps). Our
# texts are small and simple, so two layers and 600 steps will do.

# %% [markdown] zh
# ## 用一个目录训练语言模型
#
# `pretrain` 接受任意目录、文件，或带文本列的表格。它会：
#
# - 按随机种子把文档以 80/10/10 划分为训练、验证和测试文本，文件不会被拆开，因此不会同时出现在两个部分；
# - 只在训练文本上学习字节级 BPE；
# - 训练，每 150 步在验证文本上评估一次，并保留最佳权重；
# - 最后在测试文本上评估一次。
#
# 不写的参数都有默认值，适合若干兆字节的文本（`--recipe small`：四层、2000 步）。我们的文本又少又简单，两层、600 步就
# 够了。

# %%
language_run = work / "language-model"
result = ms_gpt(f"pretrain --data {text_folder} --output-dir {language_run} --vocab-size 1000 --n-layer 2 "
                "--block-size 64 --max-steps 600 --eval-steps 150 --sample-tokens 0")
for part in ("best", "test"):
    figures = result[part]
    print(f"{'validation' if part == 'best' else part:<11} perplexity {figures['perplexity']:.2f} a token, "
          f"{figures['perplexity_per_word']:.2f} a word, over {figures['n']:,} tokens")

# %% [markdown] en
# Validation and test agree, so the model has not merely learnt its own texts by heart. The perplexity per word is the
# one to compare tokenizers by: tokens become rarer as they grow longer. These texts are very regular, hence the low
# figures; of a novel expect some hundreds a word from so small a model.
#
# The run has left a folder: every setting (`recipe.yaml`, which `--config` takes), the log, the loss curve, the
# figures, the best model and the whole state (`last/`, from which `--resume` goes on after an interruption).

# %% [markdown] zh
# 验证与测试结果一致，说明模型不只是背下了训练文本。比较不同分词器时应看每个单词的困惑度，因为 token 越长，数量就越
# 少。这些文本非常规整，所以数值很低；对一部小说，这么小的模型每个单词的困惑度会有几百。
#
# 这次运行留下了一个目录：全部设置（`recipe.yaml`，可交给 `--config`）、日志、损失曲线、各项指标、最佳模型，以及完整的
# 训练状态（`last/`，中断后用 `--resume` 继续）。

# %%
from IPython.display import Image

for path in sorted(language_run.iterdir()):
    print(path.name + ("/: " + ", ".join(sorted(item.name for item in path.iterdir())) if path.is_dir() else ""))
Image(filename=str(language_run / "loss.png"), width=420)

# %% [markdown] en
# It writes. From the command line, and from Python with the same result: generation is a function of the seed.

# %% [markdown] zh
# 让它写点东西。命令行与 Python 的结果相同：生成由随机种子决定。

# %%
from ms_gpt import AutoModel, Tokenizer, generate

prompts = ["The acting", "I had expected"]
written = ms_gpt(f"generate --model {language_run}/best {shlex.join(prompts)} --max-new-tokens 40 --temperature 0.7 "
                 "--seed 5")
language_model = AutoModel.from_pretrained(language_run / "best")
tokenizer = Tokenizer.from_pretrained(language_run / "best")
again = generate(language_model, tokenizer, prompts, max_new_tokens=40, temperature=0.7, seed=5)
print(type(language_model).__name__, "from Python writes the same:", again == written["texts"], "\n")
print("\n---\n".join(again))

# %% [markdown] en
# ## A classifier from a csv
#
# `finetune` guesses the columns when they have usual names (`text`, `review`, `label`, `sentiment` ...); ours have not,
# so we name them. What the user got wrong is said in one line, with exit code 2:

# %% [markdown] zh
# ## 用 csv 训练分类器
#
# 列名常见时（`text`、`review`、`label`、`sentiment` 等），`finetune` 会自动识别；我们的列名不常见，所以需要指定。用户
# 写错的地方会用一行文字指出，退出码为 2：

# %%
wrong = ["finetune", "--data", str(labelled), "--text-column", "coment", "--label-column", "verdict"]
done = subprocess.run([sys.executable, "-m", "ms_gpt", *wrong], capture_output=True, text=True)
print(done.returncode, done.stderr)

# %% [markdown] en
# `--model` makes it start from the language model that already knows this kind of text, with its tokenizer; without, it
# would start from scratch. (A folder with GPT-1 or GPT-2, or a name on the hub, goes there too.) A model this small
# wants a larger learning rate than GPT-1's 6.25e-5, which is the default for pre-trained weights.
#
# Of a single file a tenth is split off for validation and a tenth for the test, stratified, by seed, equal texts
# together.

# %% [markdown] zh
# `--model` 让训练从已经熟悉这类文本的语言模型及其分词器开始；不写则从零开始。（这里也可以是 GPT-1 或 GPT-2 的目录，或
# hub 上的名称。）预训练权重的默认学习率是 GPT-1 的 6.25e-5，这么小的模型需要更大的学习率。
#
# 单个文件会按随机种子分层划出十分之一用于验证、十分之一用于测试，相同的文本总在同一部分。

# %%
classifier_run = work / "classifier"
columns = "--text-column comment --label-column verdict"
result = ms_gpt(f"finetune --data {labelled} {columns} --model {language_run}/best --output-dir {classifier_run} "
                "--learning-rate 1e-3 --lr-scheduler-type cosine --num-train-epochs 6 --buckets 2")
for part in ("best", "test"):
    figures = result[part]
    print(f"{'validation' if part == 'best' else part:<11} accuracy {figures['accuracy']:.3f}, f1 {figures['f1']:.3f}, "
          f"{figures['n']} texts, confusion {figures['confusion']}")

# %% [markdown] en
# ## Will it hold next month?
#
# `evaluate` scores a saved model on any file. The texts of `next_month.csv` follow sentence plans that occur nowhere in
# `my_reviews.csv`. A random split cannot show what that costs, since its test texts resemble the training texts; data
# from another time or place can. If you have dates or authors, hold out the newest, or whole authors, and believe that
# figure.

# %% [markdown] zh
# ## 下个月还准吗？
#
# `evaluate` 可以在任意文件上评估已保存的模型。`next_month.csv` 中的句式在 `my_reviews.csv` 里从未出现。随机划分看不出
# 这会损失多少，因为它的测试文本与训练文本相似；来自另一时间或来源的数据才能看出来。如果您的数据带有日期或作者，就把最
# 新的、或某些作者的全部文本留作测试，并以那个数字为准。

# %%
figures = ms_gpt(f"evaluate --model {classifier_run}/best --data {later} {columns}")
print(f"next month: accuracy {figures['accuracy']:.3f}, confusion {figures['confusion']}, {figures['n']} texts")

# %% [markdown] en
# ## Labels for new texts
#
# From the command line `predict` takes texts, a file (`--file`), or lines from standard input (`-`).

# %% [markdown] zh
# ## 为新文本打标签
#
# 命令行的 `predict` 接受文本、文件（`--file`）或来自标准输入的行（`-`）。

# %%
new_texts = ["the story was not at all boring, and I found the music charming.",
             "I had expected something wonderful, but the plot turned out to be messy."]
answer = ms_gpt(f"predict --model {classifier_run}/best {shlex.join(new_texts)}")
for prediction in answer["predictions"]:
    print(f"{prediction['label']:<9}{prediction['probability']:.3f}  {prediction['text']}")

# %% [markdown] en
# And in Python, by the function of the same name; below it the same by hand, down to the logits: token ids with the
# start token and `<extract>` around them, one forward pass, a softmax.

# %% [markdown] zh
# 再用 Python 中同名的函数实现；其后手工重做一遍，直到 logits：前后加上起始 token 和
# `<extract>` 的 token 编号，一次前向计算，一次 softmax。

# %%
import numpy as np
from mindspore import Tensor

from ms_gpt import predict
from ms_gpt.data.encode import encode_texts

classifier = AutoModel.from_pretrained(classifier_run / "best")
tokenizer = Tokenizer.from_pretrained(classifier_run / "best")
for prediction in predict(classifier, tokenizer, new_texts):
    print(f"{prediction['label']:<9}{prediction['probability']:.3f}")

row = encode_texts(new_texts[:1], tokenizer, classifier.config.n_positions).sequences[0]
logits = classifier(Tensor([row]))[0].asnumpy()[0]
chances = np.exp(logits) / np.exp(logits).sum()
print([tokenizer.decode([token], skip_special_tokens=False) for token in row])
print({classifier.config.id2label[i]: round(float(chance), 3) for i, chance in enumerate(chances)})

# %% [markdown] en
# The first text is praise, and the model is 95 % sure of the opposite. The tokens show why: `t`, `he` and ` f`, `ou`,
# `nd` are crumbs. No text in our data begins with a small "the", and none says "I found", so tokenizer and model have
# never met these words; a probability means little so far from home. What helps is texts like those that will come:
# more of them, more varied, or a model pre-trained on a large part of the web.

# %% [markdown] zh
# 第一句其实是表扬，模型却有 95% 的把握认为相反。看 token 就明白原因：`t`、`he` 和 ` f`、`ou`、`nd` 都是碎片。我们的数
# 据中没有一条以小写的 “the” 开头，也没有出现过 “I found”，分词器和模型从未见过这些词；离训练数据这么远时，概率没
# 有多少意义。有帮助的是与将来输入相似的文本：更多、更多样；或者使用在大规模语料上预训练过的模型。

# %% [markdown] en
# ## Other formats
#
# `best/` is a folder in Hugging Face's layout, which `transformers` loads as it is
# (`GPT2ForSequenceClassification.from_pretrained`). `convert` writes MindSpore's `.ckpt`, a `.bin` for
# `torch.load(weights_only=True)` and others, and needs no PyTorch for it. What has been converted loads again as the
# same function, which we check.

# %% [markdown] zh
# ## 其他格式
#
# `best/` 采用 Hugging Face 的目录格式，`transformers` 可以直接加载
# （`GPT2ForSequenceClassification.from_pretrained`）。 `convert` 可写出 MindSpore 的 `.ckpt`、供
# `torch.load(weights_only=True)` 读取的 `.bin` 等格式，并且不需要安装 PyTorch。转换后的文件重新加载后仍是同一个函数，
# 下面加以验证。

# %%
from ms_gpt import GPTForSequenceClassification, convert

for name in ("classifier.ckpt", "pytorch_model.bin"):
    report = convert(classifier_run / "best", work / "converted" / name)
    loaded = GPTForSequenceClassification.from_pretrained(work / "converted" / name, num_labels=2, n_head=4)
    difference = np.abs(loaded(Tensor([row]))[0].asnumpy()[0] - logits).max()
    print(f"{name:<18} {report.target_format:<6} {len(report.rows)} tensors, logits differ by {difference}")

# %% [markdown] en
# ## A graph for another program
#
# `export_mindir` writes the classifier as a static graph of one shape with its weights: one text of 64 tokens here. It
# is loaded back and compared before it counts as written. Running it takes MindSpore and the token ids, and nothing of
# `ms_gpt`: pad to the length, and say with the mask what is real.

# %% [markdown] zh
# ## 供其他程序使用的图
#
# `export_mindir` 把分类器连同权重写成固定形状的静态图，这里是一条 64 个 token 的文本。写出后会重新加载并与原模型比
# 较，通过才算完成。运行它只需要 MindSpore 和 token 编号，不需要 `ms_gpt`：填充到固定长度，并用掩码标明哪些是真实的
# token。

# %%
import mindspore as ms

from ms_gpt import export_mindir

report = export_mindir(classifier, work / "classifier.mindir", batch_size=1, length=64)
print(f"{report.path.name}: inputs {[(item['name'], item['shape']) for item in report.inputs]}, "
      f"largest difference {report.largest_difference:.1e}")

graph = ms.nn.GraphCell(ms.load(str(report.path)))
input_ids, attention_mask = np.zeros((2, 1, 64), np.int32)
input_ids[0, : len(row)], attention_mask[0, : len(row)] = row, 1
found = graph(Tensor(input_ids), Tensor(attention_mask)).asnumpy()[0]
print("from the graph:", found.round(4), "from the model:", logits.round(4))

# %% [markdown] en
# ## Exercise
#
# How much is the language model worth? Make `my_reviews.csv` smaller, 250 rows say, and train the classifier from it
# twice: with `--model` as above, and from scratch (leave `--model` and the learning rate out, and give
# `--pretrain-epochs 0`). Compare the validation accuracies. Then bring your own folder and your own csv; with more than
# two classes nothing changes.
#
# <details><summary>Hint</summary>
#
# `write_csv(work / "few.csv", reviews[5000:5250])`, and a new `--output-dir` for each run: a folder that holds a run is
# not overwritten. With few rows more epochs help (`--num-train-epochs 20`), and a tenth of 250 rows is too few to
# choose by: give `--eval-data` a csv made of `reviews[7500:8000]`. For rare classes there is
# `--class-weights balanced`, and `--metric-for-best-model f1`.
#
# </details>

# %% [markdown] zh
# ## 练习
#
# 语言模型值多少？把 `my_reviews.csv` 缩小到比如 250 行，用它训练两次分类器：一次像上面那样使用 `--model`；另一次从零
# 开始（不写 `--model` 和学习率，并加上 `--pretrain-epochs 0`）。比较验证准确率。然后换上您自己的目录和 csv；类别多于
# 两个时，步骤完全相同。
#
# <details><summary>提示</summary>
#
# 用 `write_csv(work / "few.csv", reviews[5000:5250])` 生成文件，每次运行都要给新的 `--output-dir`：已有运行结果的目录
# 不会被覆盖。行数少时多训练几个 epoch 有帮助（`--num-train-epochs 20`）；250 行的十分之一太少，不足以据此做选择：用
# `reviews[7500:8000]` 写一个 csv 交给 `--eval-data`。类别不均衡时可以用 `--class-weights balanced`，以及
# `--metric-for-best-model f1`。
#
# </details>
