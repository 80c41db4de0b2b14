"""One score for each text of a batch, read at its true last token; texts of one prompt may share its computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bonmini_guard.reward.checkpoint import note_of

#: Rotary embeddings whose angles depend on the longest text of a batch.
_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")
_LIMITS = ("original_max_position_embeddings", "max_position_embeddings")
#: Most that a hidden state in a shared row may differ from a lone one, relative to their size.
_TOLERANCE = 1e-3


class PooledScorer(nn.Module):
    """A classifier, of whose logits (B, labels) ``reduce`` makes scores (B,); a decoder head reads the last *attended* token.

    Decoder classifiers of transformers read the last token that is not the pad token, so a text that really ends with
    that token (where padding and end of text share one) would be read at an earlier place than by servers that do not
    pad. Encoders pool at the front and are called as they are, with the segments of a pair where they tell them apart.
    """

    def __init__(self, model: Any, reduce: Callable[[Tensor], Tensor] = lambda logits: logits[:, 0]) -> None:
        super().__init__()
        self.model = model
        self._reduce = reduce
        self.decoder = isinstance(getattr(model, "score", None), nn.Linear)
        # What is sharded one by one, by FSDP's usual policy.
        self._no_split_modules = getattr(model, "_no_split_modules", None)
        self._separator: int | None = note_of(model.config).get("separator")
        self._shares: bool | None = None

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, ends: Tensor | None = None
    ) -> Tensor:
        """Scores, shape (texts,), of right-padded texts (ids and mask of shape (B, T)), or of rows of :func:`share`."""
        if not self.decoder:
            segments = {}
            if self._separator is not None:  # 1 behind the first separator of a text, 0 before
                separators = (input_ids == self._separator).int()
                segments["token_type_ids"] = ((separators.cumsum(dim=1) - separators) > 0).long()
            return self._reduce(self.model(input_ids=input_ids, attention_mask=attention_mask, **segments).logits)
        return self.head(self._read(input_ids, attention_mask, position_ids, ends))

    def _read(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None, ends: Tensor | None) -> Tensor:
        """Final hidden states, shape (texts, width), at the last token of each text."""
        placed = {} if position_ids is None else {"position_ids": position_ids}
        output = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **placed)
        if ends is None:
            rows = torch.arange(len(input_ids), device=input_ids.device)
            ends = rows * input_ids.shape[1] + attention_mask.sum(dim=1) - 1
        return output.last_hidden_state.flatten(0, 1).index_select(0, ends)  # type: ignore[no-any-return]

    def shares(self, pad_id: int) -> bool:
        """Whether rows of :func:`share` give what single texts do: asked of the model itself, for no list of kinds is whole.

        It is asked once, before its weights may be sharded.
        """
        if self._shares is None:
            self._shares = self._tried(pad_id)
        return self._shares

    @torch.no_grad()
    def _tried(self, pad_id: int) -> bool:
        if not (self.decoder and sees_everything(self.model.config.get_text_config())):
            return False
        tokens = torch.arange(24).remainder(self.model.config.get_text_config().vocab_size).tolist()
        texts, training = [tokens[:20], [*tokens[:12], *tokens[20:]]], self.training
        self.eval()
        try:
            (ids, mask), together = pad(texts, pad_id), share([texts], pad_id)
            device = self.model.device
            alone = self._read(ids.to(device), mask.to(device), None, None)
            difference = self._read(**{name: part.to(device) for name, part in together.items()}) - alone
            return bool(difference.abs().max() <= _TOLERANCE * (1 + alone.abs().max()))
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
        finally:
            self.train(training)

    def head(self, hidden: Tensor) -> Tensor:
        """Scores, shape (B,), of final hidden states, shape (B, width).

        In float32 whatever the model's precision: bfloat16 would round scores to two or three digits and make ties.
        """
        linear: nn.Linear = self.model.score
        bias = None if linear.bias is None else linear.bias.float()
        with torch.autocast(hidden.device.type, enabled=False):
            return self._reduce(nn.functional.linear(hidden.float(), linear.weight.float(), bias))


def pad(texts: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded token ids and their attention mask, each of shape (len(texts), longest)."""
    width = max(map(len, texts))
    ids = torch.tensor([text + [pad_id] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    return ids, mask


def share(rows: Sequence[Sequence[list[int]]], pad_id: int) -> dict[str, Tensor]:
    """Rows of texts behind the beginning that they share, each text blind to the others of its row: for decoder models.

    Args:
        rows: texts, token ids each, one or more a row.
        pad_id: what to fill with, on the right.

    Returns:
        ``input_ids`` and ``position_ids``, shape (rows, T); ``attention_mask``, bool, shape (rows, 1, T, T); ``ends``, shape
        (texts,): the last token of each text, in order, among the rows * T tokens.
    """
    laid = [_laid_out(texts) for texts in rows]
    width = max(len(ids) for ids, _, _, _ in laid)
    parts = [
        torch.tensor([row[part] + [fill] * (width - len(row[part])) for row in laid]) for part, fill in enumerate((pad_id, 0, -1))
    ]
    owner = parts[2]
    seen = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
    ends = torch.tensor([number * width + end for number, row in enumerate(laid) for end in row[3]])
    return {"input_ids": parts[0], "position_ids": parts[1], "attention_mask": seen.tril()[:, None], "ends": ends}


def _laid_out(texts: Sequence[list[int]]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Token ids, positions, owners (0 is the beginning) and ends of one row; every text keeps a token to be read at."""
    # What lies between the least and the greatest begins as both do.
    start = min(alike(min(texts), max(texts)), min(map(len, texts)) - 1) if len(texts) > 1 else 0
    ids, positions, owners = texts[0][:start], list(range(start)), [0] * start
    ends = []
    for number, text in enumerate(texts, start=1):
        ids = ids + text[start:]
        positions += range(start, len(text))
        owners += [number] * (len(text) - start)
        ends.append(len(ids) - 1)
    return ids, positions, owners, ends


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    least = min(len(one), len(other))
    return next((place for place in range(least) if one[place] != other[place]), least)


def sees_everything(config: Any, max_length: int | None = None) -> bool:
    """Whether every token sees all before it, at angles that depend on its place alone."""
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    kinds = set(getattr(config, "layer_types", None) or ("unknown",)) - {"full_attention"}
    window = min((size for size in windows if size), default=None) if kinds else None
    if kinds - {"unknown", "sliding_attention", "chunked_attention"} or (window and (max_length is None or max_length > window)):
        return False
    return batch_dependent(config) is None


def batch_dependent(config: Any) -> tuple[int, bool] | None:
    """How many tokens a text may have so that its angles depend on its places alone, and whether longer ones leave a trace.

    Beyond so many tokens, those of a batch's longest text change the angles of all ("longrope"), and with "dynamic" those of later
    batches, too, until a short one comes. None where angles never depend on the batch.
    """
    ropes = list(_ropes(getattr(config, "rope_parameters", None)))
    kinds = [kind for rope in ropes for kind in _BATCH_DEPENDENT_ROPE if kind in str(rope.get("rope_type", rope.get("type")))]
    if not kinds:
        return None
    limits = [getattr(config, name, None) for name in _LIMITS] + [rope.get(name) for rope in ropes for name in _LIMITS]
    return min((int(limit) for limit in limits if limit), default=0), "dynamic" in kinds


def _ropes(value: Any) -> Iterator[Mapping[str, Any]]:
    """The settings of rotary embeddings; some models have one for each kind of layer."""
    if isinstance(value, Mapping):
        yield value
        for part in value.values():
            yield from _ropes(part)
