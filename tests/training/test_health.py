"""What a run that went wrong tells its user; rows that share a prompt; templates that speak unasked."""

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForSequenceClassification

from bonmini_guard.reward.checkpoint import without_default_system
from bonmini_guard.reward.pooling import PooledScorer, pad, share
from bonmini_guard.training.batches import Judgement
from bonmini_guard.training.evidence import constant_loss, ties, troubles
from tests.reward.tiny import CHATML, make_tokenizer


def test_the_best_constant_has_the_entropy_of_the_labels():
    rows = [Judgement((n,), 0 if n < 2 else 1, 1.0) for n in range(8)]
    entropy = -(0.25 * torch.tensor(0.25).log() + 0.75 * torch.tensor(0.75).log())
    assert constant_loss(rows, outside=True) == pytest.approx(float(entropy), abs=1e-3)
    assert constant_loss([Judgement((0, 1), 0, 1.0, False)], outside=True) == pytest.approx(0.6931, abs=1e-3)


GOOD = torch.linspace(-3, 3, 400)


@pytest.mark.parametrize(
    ("losses", "scores", "said"),
    [
        ([0.5, 0.3, 0.2], GOOD, ""),
        ([0.5, 0.5, 0.5], GOOD, "nothing was learnt; try another --learning-rate"),
        ([0.5, 0.3, 0.6, 0.3], GOOD, "went back to 0.600"),
        ([0.5, 0.2], torch.cat([GOOD, torch.full((60,), 3.0)]), "14% of the held-out scores tie at the top"),
        ([0.5, 0.2], torch.cat([GOOD[:10], torch.full((190,), -3.5), torch.full((60,), 1.3)]), "lie on two values"),
        ([0.5, 0.2], torch.ones(39), ""),
        ([], None, ""),
    ],
)
def test_what_goes_wrong_is_told(losses, scores, said):
    found = " ".join(troubles(losses, 0.5, None if scores is None else ties(scores)))
    assert said in found
    assert bool(said) == bool(found)


def test_texts_of_one_prompt_share_it_exactly_in_scores_and_gradients(base):
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(base, num_key_value_heads=1, num_labels=1, pad_token_id=0)
    scorer = PooledScorer(LlamaForSequenceClassification(config))
    assert scorer.shares(0)
    assert scorer.training, "a trial leaves the mode as it was"
    beginning = list(range(5, 20))
    rows = [[beginning + [40 + n] * (n + 1) for n in range(4)], [beginning[:3]], [beginning, [*beginning, 7]]]
    texts = [text for row in rows for text in row]
    found = []
    for inputs in (share(rows, 0), dict(zip(("input_ids", "attention_mask"), pad(texts, 0), strict=True))):
        scorer.zero_grad()
        scores = scorer(**inputs)
        (scores * torch.arange(7.0)).sum().backward()
        found.append((scores.detach(), scorer.model.model.embed_tokens.weight.grad.clone()))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)
    assert share(rows, 0)["input_ids"].numel() < pad(texts, 0)[0].numel()


def test_a_model_with_a_window_does_not_share():
    class Windowed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.score = torch.nn.Linear(2, 1)
            self.config = LlamaConfig(num_hidden_layers=1, sliding_window=4, layer_types=["sliding_attention"])

    assert not PooledScorer(Windowed()).shares(0)


TURN = "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
DEFAULT = "{{ '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}"
UNASKED = f"{{% if loop.first and message['role'] != 'system' %}}{DEFAULT}{{% endif %}}"
ASKS = f"{{% for message in messages %}}{UNASKED}{TURN}{{% endfor %}}"
CHAT = [{"role": "user", "content": "You are a helpful assistant"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize("bos", ["", "{{ bos_token }}"])
def test_a_system_prompt_that_nobody_gave_stays_out(bos):
    tokenizer = make_tokenizer(bos + ASKS)
    given = tokenizer.apply_chat_template([{"role": "system", "content": "s"}, *CHAT], tokenize=False)
    assert "You are a helpful" in without_default_system(tokenizer)
    found = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert found.count("You are a helpful assistant") == 1
    assert found == ("<s>" if bos else "") + make_tokenizer(CHATML).apply_chat_template(CHAT, tokenize=False)
    assert tokenizer.apply_chat_template([{"role": "system", "content": "s"}, *CHAT], tokenize=False) == given


def test_of_several_templates_the_usual_one_loses_its_system_prompt():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": ASKS, "rag": CHATML}
    assert "You are a helpful" in without_default_system(tokenizer)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == make_tokenizer(CHATML).apply_chat_template(CHAT, tokenize=False)


@pytest.mark.parametrize(
    "template", [CHATML, "{{ bos_token }}" + CHATML, "{{ raise_exception('no') }}", "{{ messages[0]['content'] }}"]
)
def test_a_template_that_adds_nothing_is_left_alone(template):
    tokenizer = make_tokenizer(template)
    assert without_default_system(tokenizer) == ""
    assert tokenizer.chat_template == template
