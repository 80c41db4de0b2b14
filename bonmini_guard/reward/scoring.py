"""Scores of token sequences with one model: packed where the model allows it, else padded batches of like length."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bonmini_guard.reward.packed import PackedScorer, Segment, Trunk, install, read_only_ends
from bonmini_guard.reward.pooling import PooledScorer, batch_dependent, pad, sees_everything

logger = logging.getLogger(__name__)

Scores = tuple[Tensor, dict[Segment, Trunk]]
#: Most that scores may differ from those of the model alone when it is tried, relative to their size.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}


class SegmentScorer:
    """Scores segments of texts of at most ``max_length`` tokens (None: any) with a model in evaluation mode.

    Attributes:
        packs: whether texts are packed and may share beginnings; if not, no segment may have a past.
    """

    def __init__(self, model: Any, pad_id: int, max_length: int | None, reduce: Callable[[Tensor], Tensor]) -> None:
        self._scorer = PooledScorer(model, reduce).eval()
        self._pad_id = pad_id
        self._packed = _packed(self._scorer, pad_id, max_length)
        self.packs = self._packed is not None
        self._most, self._resets = (None, False) if self.packs else _paddable(self._scorer, pad_id)

    def batches(self, segments: Sequence[Segment], budget: int) -> Iterator[list[Segment]]:
        """What to compute together: at most ``budget`` tokens, padding included, but for a longer text alone."""
        if self.packs:
            yield list(segments)
            return
        batch: list[Segment] = []
        for segment in sorted(segments, key=lambda segment: len(segment.ids)):
            # Sorted by length, so the newest text is the batch's longest.
            if batch and (len(segment.ids) * (len(batch) + 1) > budget or self._apart(segment)):
                yield batch
                batch = []
            batch.append(segment)
        if batch:
            yield batch

    def _apart(self, segment: Segment) -> bool:
        """Whether a text would change the scores of others in its batch, or they its own."""
        return self._most is not None and len(segment.ids) > self._most

    @torch.inference_mode()
    def __call__(self, segments: Sequence[Segment]) -> Scores:
        """Scores of one batch, shape (len(segments),), and the trunks to keep."""
        if self._packed is not None:
            return self._packed(segments)
        if self._resets and self._apart(segments[-1]):
            _alone(self._scorer, [segments[-1].ids[:1]], self._pad_id)  # a short text takes back what an earlier one left
        return _alone(self._scorer, [segment.ids for segment in segments], self._pad_id), {}


def _packed(scorer: PooledScorer, pad_id: int, max_length: int | None) -> PackedScorer | None:
    """A packed scorer, if the model is one whose texts can be packed and a trial shows it."""
    model = scorer.model
    if not (scorer.decoder and sees_everything(model.config.get_text_config(), max_length)):
        return None
    lone = _trial(lambda texts: torch.cat([_alone(scorer, [text], pad_id) for text in texts]), model)
    if not install(model):
        return None
    trimmed = read_only_ends(model)
    packed = PackedScorer(scorer, trimmed and trimmed[0])
    reason = _difference(partial(_together, packed), model, lone)
    if reason and trimmed:
        trimmed[1]()
        packed = PackedScorer(scorer)
        reason = _difference(partial(_together, packed), model, lone)
    if not reason:
        return packed
    logger.warning("%s cannot be packed (%s): it is scored in padded batches, which is slower", type(model).__name__, reason)
    model.set_attn_implementation("sdpa")
    return None


def _paddable(scorer: PooledScorer, pad_id: int) -> tuple[int | None, bool]:
    """The longest text that may stand in a padded batch (None: any; 0: each stands alone), and whether longer ones leave a trace.

    Asked of the model itself, for no list of kinds is whole: some want their padding on the left, or look at it.
    """
    model = scorer.model
    most, resets = batch_dependent(model.config.get_text_config()) or (None, False)

    def padded(texts: list[tuple[int, ...]]) -> Tensor:
        return _alone(scorer, [text[:most] for text in texts], pad_id)

    try:
        lone = _trial(lambda texts: torch.cat([padded([text]) for text in texts]), model)
        reason = _difference(padded, model, lone)
    except Exception as error:
        reason = type(error).__name__
    if not reason:
        return most, resets
    logger.warning("%s cannot be padded (%s): its texts are scored one by one, which is slower", type(model).__name__, reason)
    return 0, resets


def _difference(score: Callable[[list[tuple[int, ...]]], Tensor], model: Any, lone: Tensor) -> str:
    """What is wrong with scores of the trial; nothing if they are as good as the lone ones."""
    try:
        difference = (_trial(score, model) - lone).abs().max().item()
    except Exception as error:
        return type(error).__name__
    return "" if difference <= TOLERANCE[model.dtype] * (1 + lone.abs().max().item()) else f"scores differ by {difference:.2g}"


def _trial(score: Callable[[list[tuple[int, ...]]], Tensor], model: Any) -> Tensor:
    """Scores of a few texts, some of which share a beginning."""
    source = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.get_text_config().vocab_size, (64,), generator=source).tolist()
    beginning = tuple(tokens[:24])
    texts = [beginning + tuple(tokens[24:27]), beginning + tuple(tokens[27:40]), tuple(tokens[40:])]
    with torch.inference_mode():
        return score(texts).float().cpu()


def _together(packed: PackedScorer, texts: list[tuple[int, ...]]) -> Tensor:
    root = Segment(texts[0][:24], keep=True)
    first, kept = packed([root, Segment(texts[0][24:], root), Segment(texts[2])])
    later, _ = packed([Segment(texts[1][24:], kept[root])])
    return torch.stack([first[1], later[0], first[2]])


def _alone(scorer: PooledScorer, texts: Sequence[tuple[int, ...]], pad_id: int) -> Tensor:
    input_ids, attention_mask = pad([list(text) for text in texts], pad_id)
    device = scorer.model.device
    return scorer(input_ids.to(device), attention_mask.to(device)).float()  # type: ignore[no-any-return]
