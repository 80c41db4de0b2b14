"""Stage 1: a byte-level BPE of 4,096 tokens and a small Llama that writes IMDB reviews."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

from benchmarks.imdb.reviews import Review, read_split
from benchmarks.tables import arguments

VOCABULARY = 4096
CHUNK = 96
BEGIN, END, PAD = "<s>", "</s>", "<pad>"


def train_tokenizer(reviews: list[Review]) -> PreTrainedTokenizerFast:
    """Fit a byte-level BPE on the training reviews; it adds BEGIN in front of every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((review.text for review in reviews), trainer, length=len(reviews))
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=512,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def chunks(tokenizer: PreTrainedTokenizerFast, reviews: list[Review]) -> torch.Tensor:
    """All reviews one after the other, cut into rows of CHUNK tokens; shape (rows, CHUNK)."""
    flat: list[int] = []
    for start in range(0, len(reviews), 1000):
        batch = [review.text for review in reviews[start : start + 1000]]
        for ids in tokenizer(batch)["input_ids"]:
            flat.extend([*ids, tokenizer.eos_token_id])
    rows = len(flat) // CHUNK
    return torch.tensor(flat[: rows * CHUNK]).view(rows, CHUNK)


def build_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> LlamaForCausalLM:
    """A Llama with tied embeddings and heads of 32 dimensions."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def training_arguments(options: argparse.Namespace) -> TrainingArguments:
    """One pass with a cosine schedule; float32 on CPU, bfloat16 on CUDA."""
    cuda = options.device != "cpu"
    return TrainingArguments(
        output_dir=str(options.work / "lm-checkpoints"),
        per_device_train_batch_size=options.batch,
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.05,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        logging_steps=100,
        save_strategy="no",
        report_to=[],
        seed=options.seed,
        use_cpu=not cuda,
        bf16=cuda,
        dataloader_num_workers=0,
    )


def main() -> None:
    """Train the tokenizer and the language model, and write them to WORK/lm."""
    parser = arguments(
        __doc__, work=Path("build/imdb"), threads=2, width=192, layers=4, epochs=1.0, batch=32, learning_rate=2e-3, seed=0
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the IMDB reviews")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    reviews = read_split(options.data, "train")
    tokenizer = train_tokenizer(reviews)
    rows = chunks(tokenizer, reviews)
    model = build_model(tokenizer, options.width, options.layers)
    print(f"{rows.numel():,} tokens, {model.num_parameters():,} parameters")
    learnt = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(model=model, args=training_arguments(options), train_dataset=learnt)
    trainer.train()
    model.save_pretrained(options.work / "lm")
    tokenizer.save_pretrained(options.work / "lm")


if __name__ == "__main__":
    main()
