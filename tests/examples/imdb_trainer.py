"""Fine-tuning on IMDB with a Trainer, as written for PyTorch; the imports and the model's name are changed."""

# ruff: noqa: I001, T201
from ms_gpt import GPTForSequenceClassification, Tokenizer, Trainer, TrainingArguments, load_dataset
from sizes import MODEL, TEST_ROWS, TRAIN_ROWS

# Load dataset (using IMDB for sentiment analysis as an example)
dataset = load_dataset('imdb')

# Load pre-trained tokenizer and model
tokenizer = Tokenizer.from_pretrained(MODEL)
model = GPTForSequenceClassification.from_pretrained(MODEL, num_labels=2)

# Tokenization function
def tokenize_function(examples):
    return tokenizer(examples['text'], padding='max_length', truncation=True)

# Tokenize dataset
tokenized_datasets = dataset.map(tokenize_function, batched=True)

# Prepare data for training and evaluation
train_dataset = tokenized_datasets['train'].shuffle(seed=42).select(range(TRAIN_ROWS))  # Subset for quick training
test_dataset = tokenized_datasets['test'].shuffle(seed=42).select(range(TEST_ROWS))  # Subset for quick evaluation

# Define training arguments
training_args = TrainingArguments(
    output_dir='./results',
    num_train_epochs=3,
    per_device_train_batch_size=8,
    per_device_eval_batch_size=8,
    warmup_steps=500,
    weight_decay=0.01,
    logging_dir='./logs',
    logging_steps=10,
    evaluation_strategy="epoch",
    save_strategy="epoch",
    load_best_model_at_end=True,
)

# Define trainer
trainer = Trainer(
    model=model,
    args=training_args,
    train_dataset=train_dataset,
    eval_dataset=test_dataset,
)

# Train the model
trainer.train()

# Evaluate the model
eval_results = trainer.evaluate()
print(eval_results)

# Save the model
model.save_pretrained('./sentiment-model')
tokenizer.save_pretrained('./sentiment-model')
