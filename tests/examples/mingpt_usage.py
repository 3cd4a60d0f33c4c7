"""The usage example of minGPT's README; the imports are changed, and the sizes come from a module."""

# ruff: noqa: E402, T201
# you're on your own to define a class that returns individual examples as PyTorch LongTensors
import mindspore as torch
from sizes import MyDataset, batch_size, block_size, max_epochs, n_embd, n_head, n_layer, vocab_size

train_dataset = MyDataset(70)
test_dataset = MyDataset(20)

# construct a GPT model
from ms_gpt.mingpt import GPT, GPTConfig

mconf = GPTConfig(vocab_size, block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd)  # a GPT-1
model = GPT(mconf)

# construct a trainer
from ms_gpt.mingpt import Trainer, TrainerConfig

tconf = TrainerConfig(max_epochs=max_epochs, batch_size=batch_size)
trainer = Trainer(model, train_dataset, test_dataset, tconf)
trainer.train()
# (... enjoy the show for a while... )

# sample from the model (the [None, ...] and [0] are to push/pop a needed dummy batch dimension)
from ms_gpt.mingpt import sample

x = torch.tensor([1, 2, 3], dtype=torch.long)[None, ...]  # context conditioning
y = sample(model, x, steps=30, temperature=1.0, sample=True, top_k=5)[0]
print(y)  # our model filled in the integer sequence with 30 additional likely integers
