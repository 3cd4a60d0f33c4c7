"""Training: arguments, schedule, optimizer, the train step as one Cell, callbacks, metrics and the trainer."""

from ms_gpt._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "AdamW": "optimizer",
        "LearningRate": "schedule",
        "TrainStep": "step",
        "Trainer": "trainer",
        "TrainingArguments": "arguments",
    },
)
