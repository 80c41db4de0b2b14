import random

import torch

from bonmini_guard.reward.checkpoint import load_tokenizer
from bonmini_guard.reward.formatting import Formatter
from bonmini_guard.training.batches import Collator, batches_of, encode_rows
from bonmini_guard.training.choices import ChoiceRow


def rows_of(prompts=6, answers=4):
    source = random.Random(0)
    rows = []
    for prompt in range(prompts):
        texts = [f" film {prompt} {answer}" + " end" * prompt for answer in range(answers)]
        pairs = [(a, b) for a in texts for b in texts if a < b]
        rows += [ChoiceRow((("user", f"the {prompt}"),), pair, source.choice([0, 1, "none"])) for pair in pairs * 2]
    return rows


def encoded(base, rows, batch_size=8, max_length=None):
    formatter = Formatter(load_tokenizer(str(base)), max_length)
    return formatter, encode_rows(rows, formatter, batch_size)


def test_every_text_is_encoded_once_and_equal_judgements_add_up(base):
    rows = rows_of()
    _, encoding = encoded(base, rows)
    assert len(encoding.texts) == 6 * 4
    judgements = [judgement for group in encoding.groups for judgement in group.judgements]
    assert sum(judgement.weight for judgement in judgements) == len(rows)
    assert len(judgements) == len(set(rows))


def test_a_pass_sees_every_judgement_once_within_the_batch_size(base):
    _, encoding = encoded(base, rows_of())
    one = batches_of(encoding, 8, 1.0, seed=1)
    seen = [judgement for batch in one for group in batch for judgement in group.judgements]
    assert len(seen) == len(set(seen)) == sum(len(group.judgements) for group in encoding.groups)
    assert all(sum(len(group.texts) for group in batch) <= 8 for batch in one)
    assert all(len(group.texts) == 4 for group in encoding.groups)
    half = batches_of(encoding, 8, 2.5, seed=1)
    assert len(half) == 2 * len(one) + round(0.5 * len(one))
    assert one == half[: len(one)]


def test_a_prompt_with_more_texts_than_a_batch_is_split(base):
    _, encoding = encoded(base, rows_of(1, 12), batch_size=5)
    assert len(encoding.groups) > 1
    assert all(len(group.texts) <= 5 for group in encoding.groups)


def test_collated_rows_point_at_their_texts(base):
    rows = rows_of(3)
    formatter, encoding = encoded(base, rows)
    batch = Collator(encoding.texts, 0)([encoding.groups])
    assert len(batch["input_ids"]) == 12
    flat = iter(batch["members"].tolist())
    found = set()
    for size, choice in zip(batch["sizes"].tolist(), batch["choices"].tolist(), strict=True):
        texts = [
            batch["input_ids"][place][batch["attention_mask"][place].bool()].tolist() for place in (next(flat) for _ in range(size))
        ]
        found.add((tuple(map(tuple, texts)), choice))
    expected = {(tuple(tuple(formatter.encode(row.prompt, text).ids) for text in row.responses), row.target) for row in rows}
    assert found == expected
    assert torch.equal(batch["attention_mask"].sum(1), (batch["input_ids"] != 0).sum(1))


def test_rows_that_do_not_fit_are_counted(base):
    long = ChoiceRow((("user", "the"),), (" film" * 60, " good"), 0, count=5)
    cut = ChoiceRow((("user", " end" * 30), ("assistant", "fine"), ("user", "the")), (" good",), "none")
    _, encoding = encoded(base, [long, cut, *rows_of(1)], max_length=30)
    assert (encoding.too_long, encoding.cut) == (5, 1)
