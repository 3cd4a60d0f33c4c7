"""GPT on MindSpore: GPT-1, GPT-2 and GPT-3 style models that train as one static graph on Ascend, GPU and CPU."""

from ms_gpt._lazy import attach

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "AutoModel": "heads",
        "Attention": "model",
        "Block": "model",
        "Conv1D": "layers",
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
    },
)
