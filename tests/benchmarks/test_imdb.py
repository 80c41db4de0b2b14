"""The experiment's own arithmetic, by hand on small cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.imdb import sample
from benchmarks.imdb.choices import simulate
from benchmarks.imdb.models import model_path
from benchmarks.imdb.reviews import clean, read_split
from benchmarks.imdb.sentiment import SentimentTruth


def test_simulated_choices_follow_the_multinomial_logit():
    utilities, labellers = np.array([1.0, -0.5]), 200_000
    counts = simulate(utilities, labellers, np.random.default_rng(0))
    weights = np.exp([1.0, -0.5, 0.0])
    for choice, share in zip((0, 1, "none"), weights / weights.sum(), strict=True):
        assert counts[choice] / labellers == pytest.approx(share, abs=0.005)


def test_the_truth_survives_saving(tmp_path):
    truth = SentimentTruth(
        {"good": 0, "bad": 1}, np.array([1.0, 2.0], np.float32), np.array([1.5, -1.5], np.float32), 0.25, 2.0, 0.5
    )
    truth.save(tmp_path)
    again = SentimentTruth.load(tmp_path)
    assert again.log_odds(["good", "bad", "good bad", "unknown"]).tolist() == pytest.approx(
        [1.75, -1.25, 0.25 + (1.5 - 3.0) / math.sqrt(5), 0.25], abs=1e-6
    )
    assert again.utilities(["good"])[0] == pytest.approx(2.5)


def test_reviews_are_read_from_the_original_folders_too(tmp_path):
    for split, label, name, text in (
        ("train", "pos", "1_9.txt", "Fine<br /><br />film"),
        ("train", "neg", "2_1.txt", "Bad &amp; long"),
    ):
        folder = tmp_path / split / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    assert {(review.text, review.label) for review in read_split(tmp_path, "train")} == {("Fine film", 1), ("Bad & long", 0)}
    with pytest.raises(FileNotFoundError, match="pass its folder as --data"):
        read_split(tmp_path / "nowhere", "test")
    assert clean("a <br/>\n b") == "a b"


def test_a_prompt_that_is_read_once_is_continued_as_each_copy_would_be(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(sample, "TOP_K", 1)
    model = AutoModelForCausalLM.from_pretrained(model_path("lm"), dtype=torch.float32).eval()
    tokens = torch.randint(5, 4000, (2, 12), generator=torch.Generator().manual_seed(0))
    drawn = sample.draw(model, tokens, 3, 6)
    plain = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=6)[:, 12:]
    assert drawn.tolist() == plain.repeat_interleave(3, 0).tolist()
