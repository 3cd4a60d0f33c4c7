# %% [markdown] en
# # 02 Loading and converting PyTorch checkpoints
#
# Most GPT weights in the world lie in files that PyTorch wrote. We take such a file into MindSpore and back, look at
# every name and shape on the way, and check that not one bit is lost. PyTorch is not needed: the library reads and
# writes its files by itself. Everything is made here, offline, in less than a minute.

# %% [markdown] zh
# # 02 加载与转换 PyTorch 检查点
#
# 绝大多数 GPT 权重都存放在 PyTorch 写出的文件里。本教程把这样的文件载入 MindSpore，再转换回去，
# 逐一查看其中的参数名和形状，并验证没有丢失任何一个比特。
# 整个过程不需要安装 PyTorch，本库能直接读写它的文件。
# 所有文件都在本地离线生成，全程不到一分钟。

# %%
import os
import shutil
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import mindspore as ms
import numpy as np
from mindspore import Tensor

from ms_gpt import GPTConfig, GPTForSequenceClassification, GPTLMHeadModel, UserError, convert
from ms_gpt.checkpoint import open_checkpoint, our_name, read_content

work = Path("runs/tutorials/02")
shutil.rmtree(work, ignore_errors=True)

config = GPTConfig(100, 32, n_layer=2, n_head=4, n_embd=48, model_type="gpt2", seed=3, initializer_range=0.2)
model = GPTLMHeadModel(config).set_train(False)
ids = Tensor(np.random.default_rng(0).integers(0, 100, (2, 16)).astype(np.int32))
logits = model(ids)[0].asnumpy()

model.save_pretrained(work / "hf")
convert(work / "hf", work / "torch" / "pytorch_model.bin")
for path in sorted(work.rglob("*.*")):
    print(f"{path.as_posix():<48} {path.stat().st_size:>8,} bytes")

# %% [markdown] en
# `hf/` is a folder as Hugging Face's transformers keeps models; `torch/pytorch_model.bin` is what `torch.save`
# writes. A small random model stands in for GPT-2 here: with a real one, or its name on the hub, every line below is
# the same.

# %% [markdown] zh
# `hf/` 是 Hugging Face transformers 存放模型的文件夹格式，`torch/pytorch_model.bin` 是 `torch.save` 写出的格式。
# 这里用一个随机初始化的小模型代替 GPT-2；换成真正的 GPT-2 文件，或它在 Hub 上的名字，下面每一行代码都不变。

# %% [markdown] en
# ## What is inside
#
# `open_checkpoint` recognises a file by its content, and reads no weights until they are asked for. On disk a tensor
# has Hugging Face's name; in memory it is a MindSpore `Parameter`, whose last name differs for embeddings and
# LayerNorm. This table is the whole conversion.

# %% [markdown] zh
# ## 文件里有什么
#
# `open_checkpoint` 根据内容识别文件格式，并且只在需要时才读取权重。
# 在磁盘上，张量使用 Hugging Face 的名字；在内存中，它是 MindSpore 的 `Parameter`，
# 其中嵌入和 LayerNorm 的末级名称不同。下面这张表就是转换的全部内容。

# %%
checkpoint = open_checkpoint(work / "torch" / "pytorch_model.bin")
print(f"recognised: {checkpoint.architecture} in a file of the kind {checkpoint.format!r}\n")
print(f"{'on disk':<38} {'in MindSpore':<44} shape")
for name, info in checkpoint.tensors.infos.items():
    if ".h.1." not in name:
        print(f"{name:<38} {our_name(name):<44} {info.shape}")

# %% [markdown] en
# The weights of the linear layers have the shape **(inputs, outputs)**: `c_attn` is 48 × 144. That is how OpenAI
# stored them, how Hugging Face keeps them, and how our `Conv1D` holds them, so they are *not* transposed. Who copies
# them into `nn.Dense`, which is (outputs, inputs), has to transpose; for a square matrix such as `attn.c_proj` a
# forgotten transposition raises no error and gives a model that talks nonsense. The check below is therefore not the
# shapes but the logits.

# %% [markdown] zh
# 线性层权重的形状是 **(输入, 输出)**：`c_attn` 为 48 × 144。OpenAI 这样存，Hugging Face 这样保留，
# 本库的 `Conv1D` 也这样存放，因此*不需要*转置。如果要复制到 `nn.Dense`（形状为 (输出, 输入)），就必须转置；
# 而对于 `attn.c_proj` 这样的方阵，忘记转置并不会报错，只会得到一个胡言乱语的模型。
# 所以下面验证的不是形状，而是 logits。

# %% [markdown] en
# ## Loading it
#
# `from_pretrained` takes a folder, a bare file, or a name on the hub, in any format that `convert` reads. A
# classifier can be loaded from a language model's weights; its new output layer `score` is drawn at random, ready for
# fine-tuning.

# %% [markdown] zh
# ## 加载
#
# `from_pretrained` 可以接收文件夹、单个权重文件或 Hub 上的名字，`convert` 能读的格式它都能读。
# 也可以从语言模型的权重加载分类模型：新增的输出层 `score` 会随机初始化，等待微调。

# %%
def largest_difference(source, **known):
    loaded = GPTLMHeadModel.from_pretrained(source, **known)
    return float(np.abs(loaded(ids)[0].asnumpy() - logits).max())


print("logits after loading pytorch_model.bin differ by", largest_difference(work / "torch" / "pytorch_model.bin"))

classifier = GPTForSequenceClassification.from_pretrained(work / "torch" / "pytorch_model.bin", num_labels=3)
print("a classifier on the same weights gives logits of shape", classifier(ids)[0].shape)

# %% [markdown] en
# ## Converting, from the command line
#
# The same with one command, here to MindSpore's own format:
#
# ```bash
# python -m ms_gpt convert runs/tutorials/02/torch/pytorch_model.bin runs/tutorials/02/model.ckpt --verify
# ```
#
# `--verify` runs source and result on random ids, one of them through transformers if that is installed. `--dry-run`
# shows the table and writes nothing.

# %% [markdown] zh
# ## 用命令行转换
#
# 一条命令即可完成同样的事，这里转换为 MindSpore 自己的格式：
#
# ```bash
# python -m ms_gpt convert runs/tutorials/02/torch/pytorch_model.bin runs/tutorials/02/model.ckpt --verify
# ```
#
# `--verify` 会用随机的词元编号分别运行源模型和结果模型
# （如果装有 transformers，文件夹格式的模型由它运行）。`--dry-run` 只显示表格，不写任何文件。

# %%
command = "-m ms_gpt convert runs/tutorials/02/torch/pytorch_model.bin runs/tutorials/02/model.ckpt --verify"
done = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True, check=True,
                      env={**os.environ, "COLUMNS": "116", "TERM": "dumb"})
print(done.stdout)

# %% [markdown] en
# A `.ckpt` is MindSpore's own: its `load_checkpoint` reads it without this library.

# %% [markdown] zh
# `.ckpt` 是 MindSpore 自己的格式，不用本库，直接用 `load_checkpoint` 就能读取。

# %%
parameters = ms.load_checkpoint(str(work / "model.ckpt"))
print(len(parameters), "parameters, such as", *list(parameters)[6:8])

# %% [markdown] en
# ## There and back
#
# Through four formats and back to PyTorch's. Every tensor has to come back with every bit.

# %% [markdown] zh
# ## 往返转换
#
# 依次经过四种格式，最后回到 PyTorch 格式。每个张量都必须逐比特还原。

# %%
steps = ["torch/pytorch_model.bin", "way/one.ckpt", "way/two.safetensors", "way/three.npz", "way/folder",
         "back/pytorch_model.bin"]
for source, target in zip(steps, steps[1:], strict=False):
    report = convert(work / source, work / target)
    print(f"{report.source_format:>12} -> {report.target_format:<12} {len(report.rows)} tensors, "
          f"{len(report.missing)} missing, {len(report.unexpected)} left over")

first, last = (open_checkpoint(work / steps[i]).tensors for i in (0, -1))
assert set(first) == set(last)
print("every bit the same:", all(first[name].tobytes() == last[name].tobytes() for name in first))

# %% [markdown] en
# ## What PyTorch says
#
# If PyTorch is installed it can judge: does `torch.load` read our file, with `weights_only=True`, and does transformers
# compute the same logits from our folder?

# %% [markdown] zh
# ## 由 PyTorch 来评判
#
# 如果装有 PyTorch，就由它来检验：`torch.load` 能否在 `weights_only=True` 下读取我们写的文件？
# transformers 从我们写的文件夹加载后，能否算出同样的 logits？

# %%
if find_spec("torch") is None:
    print("PyTorch is not installed here: nothing to compare with (pip install torch transformers)")
else:
    import torch

    state = torch.load(work / "back" / "pytorch_model.bin", weights_only=True)
    is_equal = all(np.array_equal(state[name].numpy(), first[name]) for name in state)
    print(f"torch.load: {len(state)} tensors, equal to ours: {is_equal}")
    if find_spec("transformers") is None:
        print("transformers is not installed here: no logits to compare with")
    else:
        warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bars are wanted
        from transformers import GPT2LMHeadModel
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        with torch.no_grad():
            theirs = GPT2LMHeadModel.from_pretrained(work / "hf").eval()(torch.tensor(ids.asnumpy()).long()).logits
        difference = np.abs(theirs.numpy() - logits).max()
        print(f"logits of transformers: largest difference {difference:.0e}, largest logit {np.abs(logits).max():.1f}")

# %% [markdown] en
# ## minGPT and nanoGPT
#
# Andrej Karpathy's two teaching programs use `nn.Linear`, so here weights *are* transposed: the report says which.
# minGPT also saves its causal mask with every layer (it is made anew), and the one of 2020 has queries, keys and
# values apart.

# %% [markdown] zh
# ## minGPT 与 nanoGPT
#
# Andrej Karpathy 的这两个教学项目使用 `nn.Linear`，因此这里的权重*确实*要转置，报告会说明是哪些。
# minGPT 还把每一层的因果掩码也存了下来（转换时会重新生成），2020 年版的 minGPT 则把查询、键、值分开存放。

# %%
for layout in ("nanogpt", "mingpt", "mingpt-old"):
    report = convert(work / "hf", work / layout / "model.pt", to=layout)
    turned = [row for row in report.rows if row.transposed]
    print(f"{layout}: {len(report.rows)} tensors, {len(turned)} of them transposed")
    for row in report.rows:
        if row.source == "transformer.h.0.attn.c_attn.weight":
            print(f"    {row.source} (48, 144)  ->  {row.target} {row.shape}")
    for note in report.notes:
        print(f"    note: {note}")

name = "transformer.h.0.attn.c_attn.weight"
ours = open_checkpoint(work / "hf").tensors[name]
theirs = read_content(work / "nanogpt" / "model.pt").tensors[name]  # as it stands in the file
figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 4.4), layout="constrained", width_ratios=(3, 1))
for panel, title, values, sides in ((left, "Conv1D", ours[:8, :24], ("input", "output")),
                                    (right, "nn.Linear", theirs[:24, :8], ("output", "input"))):
    panel.imshow(values, cmap="RdBu", vmin=-0.6, vmax=0.6)
    panel.set(title=title, ylabel=sides[0], xlabel=sides[1], xticks=[], yticks=[])
figure.suptitle("the same corner of c_attn.weight", fontsize=11)
plt.show()
print("one is the other, transposed:", np.array_equal(ours, theirs.T))

# %% [markdown] en
# The note is worth a thought. GPT-2 was trained with the tanh form of GELU, nanoGPT computes the erf form. The
# weights are right in the file, yet the *function* is another one, by a little. No table of names can see that.

# %% [markdown] zh
# 这条提示值得留意。GPT-2 训练时用的是 GELU 的 tanh 形式，而 nanoGPT 计算的是 erf 形式。
# 文件里的权重完全正确，但*函数*却略有不同，仅靠参数名对照表是看不出来的。

# %% [markdown] en
# ## What a file does not say
#
# A bare file of weights holds no number of heads: they share one matrix, and 4 heads of 12 look like 3 of 16. Nor
# does it hold the activation. What is needed and missing is asked for, not guessed. (Above it stood in the
# `config.json` that `convert` had put beside each file.)

# %% [markdown] zh
# ## 文件里没有的信息
#
# 单独的权重文件不包含注意力头数：所有头共用一个矩阵，4 个 12 维的头与 3 个 16 维的头看起来毫无区别。
# 激活函数同样没有记录。凡是必需而又缺失的信息，本库会要求用户给出，而不是猜测。
# （上文之所以不需要，是因为 `convert` 在每个文件旁边写了 `config.json`。）

# %%
def attempt(title, action):
    try:
        action()
        print(f"{title}: loaded")
    except UserError as error:
        print(f"{title}: {error}\n")


alone = work / "alone"
alone.mkdir()
bare = Path(shutil.copy(work / "torch" / "pytorch_model.bin", alone))
bare_mingpt = Path(shutil.copy(work / "mingpt" / "model.pt", alone))
bare_nanogpt = Path(shutil.copy(work / "nanogpt" / "model.pt", alone / "ckpt.pt"))
attempt("not told anything", lambda: GPTLMHeadModel.from_pretrained(bare))
attempt("told 5 heads", lambda: GPTLMHeadModel.from_pretrained(bare, n_head=5))
attempt("weights of nn.Linear", lambda: GPTLMHeadModel.from_pretrained(bare_mingpt, n_head=4))
attempt("a typing error", lambda: GPTLMHeadModel.from_pretrained(work / "torch" / "model.bin"))

# All of these load. Only the first is the model.
print(f"4 heads: logits differ by up to {largest_difference(bare, n_head=4):.1g}")
print(f"3 heads: logits differ by up to {largest_difference(bare, n_head=3):.1g}")
print(f"GELU as nanoGPT has it: logits differ by up to {largest_difference(bare_nanogpt):.1g}")

# %% [markdown] en
# ## A file that attacks
#
# A `.bin` or `.pt` is a *pickle*, a small program that Python's own reader runs: whoever opens one that way runs what
# its author wrote. This one would make a file named `hacked.txt`. Our reader knows tensors and plain containers,
# refuses all else by name, and calls nothing.

# %% [markdown] zh
# ## 带攻击代码的文件
#
# `.bin` 和 `.pt` 文件是 *pickle*，也就是一段会被 Python 自带的读取器执行的小程序：
# 用那种方式打开它，就等于运行了文件作者写的代码。下面这个文件会创建 `hacked.txt`。
# 本库的读取器只认识张量和普通容器，其他内容一律按名字拒绝，绝不调用任何函数。

# %%
import pickle

trace = work / "hacked.txt"


class Attack:
    def __reduce__(self):
        return os.system, (f"echo hello > {trace.as_posix()}",)


(work / "gift.bin").write_bytes(pickle.dumps({"transformer.wte.weight": Attack()}))
attempt("gift.bin", lambda: convert(work / "gift.bin", work / "gift", n_head=4))
print("hacked.txt exists:", trace.exists())

# %% [markdown] en
# ## Exercise
#
# Convert `hf/` with `dtype="float16"` and with `dtype="bfloat16"` into `.safetensors` files. How large are they, and
# how far do the logits move? Which of the two keeps more digits, and why would one use the other all the same?
#
# <details><summary>Hint</summary>
#
# `convert(work / "hf", work / "half" / "model.safetensors", dtype="float16")`, then `largest_difference`. float16 has
# 10 bits of fraction and bfloat16 has 7, so bfloat16 moves the logits about eight times as far. But its exponent is
# that of float32: nothing overflows at 65,504, which matters in training.
#
# </details>

# %% [markdown] zh
# ## 练习
#
# 把 `hf/` 分别以 `dtype="float16"` 和 `dtype="bfloat16"` 转换成 `.safetensors` 文件。
# 文件各有多大？logits 变动了多少？两者中哪一个保留的有效位数更多？为什么有时仍要用另一个？
#
# <details><summary>提示</summary>
#
# 先执行 `convert(work / "hf", work / "half" / "model.safetensors", dtype="float16")`，
# 再用 `largest_difference`。float16 的尾数有 10 位，bfloat16 只有 7 位，
# 所以 bfloat16 的 logits 变动约为前者的 8 倍；但它的指数位数与 float32 相同，
# 不会在 65,504 处溢出，这在训练中很重要。
#
# </details>
