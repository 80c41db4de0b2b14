"""Tiny tokenizers and simulated choice rows for the reward tests."""

import json
import math
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = ["good", "fine", "dull", "awful", "film", "plot", "cast", "the", "and", "was", "very", "end"]
UTILITY = {"good": 2.5, "fine": 1.5, "dull": -1.5, "awful": -2.5}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(chat_template=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS), " " + " ".join(reversed(WORDS))] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    return fast


def text_of(word, source):
    return " " + " ".join([source.choice(WORDS[4:]), word, source.choice(WORDS[4:])])


def simulated_rows(prompts, seed, sizes=(1, 2, 3)):
    """Choices of labellers with Gumbel noise; the utility of an answer is that of the word in its middle."""
    source = random.Random(seed)
    rows = []
    for _ in range(prompts):
        responses = [text_of(source.choice(list(UTILITY)), source) for _ in range(source.choice(sizes))]
        noisy = [utility(text) + gumbel(source) for text in responses] + [gumbel(source)]
        best = max(range(len(noisy)), key=noisy.__getitem__)
        choice = best if best < len(responses) else "none"
        prompt = "the " + source.choice(WORDS[4:])
        rows.append({"prompt": prompt, "responses": responses, "choice": choice})
    return rows


def utility(text):
    return sum(UTILITY.get(word, 0.0) for word in text.split())


def gumbel(source):
    return -math.log(-math.log(source.random()))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
