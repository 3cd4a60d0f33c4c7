"""GPT on MindSpore: GPT-1, GPT-2 and GPT-3 style models that train as one static graph on Ascend, GPU and CPU."""

import os

from ms_gpt._lazy import attach

# What MindSpore and its OpenMP read when they are loaded, so it cannot be set later; what the user has set stays.
# MindSpore warns about plug-ins that are merely absent; its errors still show. A thread that waits by spinning takes
# the core from the one it waits for as soon as another program is busy; on an idle machine spinning gains nothing.
os.environ.setdefault("GLOG_v", "3")
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "AutoModel": "heads",
        "Attention": "model",
        "Block": "model",
        "Conv1D": "layers",
        "GPT2Config": "config",
        "GPTConfig": "config",
        "GPTDoubleHeadsModel": "heads",
        "GPTForSequenceClassification": "heads",
        "GPTLMHeadModel": "heads",
        "GPTModel": "model",
        "MLP": "model",
        "Tokenizer": "tokenizer",
        "Trainer": "training",
        "TrainingArguments": "training",
        "UserError": "errors",
        "convert": "checkpoint",
        "export_mindir": "export",
        "generate": "generation",
        "load_dataset": "data",
        "predict": "training.scoring",
        # Hugging Face's names for the same classes.
        "GPT2DoubleHeadsModel": "heads:GPTDoubleHeadsModel",
        "GPT2ForSequenceClassification": "heads:GPTForSequenceClassification",
        "GPT2LMHeadModel": "heads:GPTLMHeadModel",
        "GPT2Model": "model:GPTModel",
        "OpenAIGPTConfig": "config:GPTConfig",
        "OpenAIGPTDoubleHeadsModel": "heads:GPTDoubleHeadsModel",
        "OpenAIGPTForSequenceClassification": "heads:GPTForSequenceClassification",
        "OpenAIGPTLMHeadModel": "heads:GPTLMHeadModel",
        "OpenAIGPTModel": "model:GPTModel",
    },
)
