"""minGPT's usage example; only the imports and the sizes are changed."""

from sizes import MyDataset, batch_size, block_size, max_epochs, n_embd, n_head, n_layer, vocab_size  # noqa: I001

# you're on your own to define a class that returns individual examples as PyTorch LongTensors
import mindspore as torch

train_dataset = MyDataset(split="train")
test_dataset = MyDataset(split="test")

# construct a GPT model
from ms_gpt.mingpt import GPT, GPTConfig  # noqa: E402

mconf = GPTConfig(vocab_size, block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd)  # a GPT-1
model = GPT(mconf)

# construct a trainer
from ms_gpt.mingpt import Trainer, TrainerConfig  # noqa: E402

tconf = TrainerConfig(max_epochs=max_epochs, batch_size=batch_size)
trainer = Trainer(model, train_dataset, test_dataset, tconf)
trainer.train()
# (... enjoy the show for a while... )

# sample from the model (the [None, ...] and [0] are to push/pop a needed dummy batch dimension)
from ms_gpt.mingpt import sample  # noqa: E402

x = torch.tensor([1, 2, 3], dtype=torch.long)[None, ...]  # context conditioning
y = sample(model, x, steps=30, temperature=1.0, sample=True, top_k=5)[0]
print(y)  # our model filled in the integer sequence with 30 additional likely integers
