"""Stage 5a: the base of both reward models, a small ModernBERT over the language model's tokens.

Mean pooling lets every token speak to the score at once, which a small model learns from far fewer labels than a decoder
that reads its last token. The embeddings come from the language model; everything else is new.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ModernBertConfig, ModernBertForSequenceClassification

from benchmarks.imdb.models import model_path
from benchmarks.tables import arguments


def build(source: Path, layers: int, seed: int) -> ModernBertForSequenceClassification:
    """A one-label ModernBERT whose token embeddings are the language model's."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(source)
    embeddings = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).get_input_embeddings().weight.detach()
    model = ModernBertForSequenceClassification(
        ModernBertConfig(
            vocab_size=embeddings.shape[0],
            hidden_size=embeddings.shape[1],
            intermediate_size=2 * embeddings.shape[1],
            num_hidden_layers=layers,
            num_attention_heads=embeddings.shape[1] // 32,
            max_position_embeddings=512,
            global_attn_every_n_layers=1,
            classifier_pooling="mean",
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            cls_token_id=tokenizer.bos_token_id,
            sep_token_id=tokenizer.eos_token_id,
        )
    )
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(embeddings)
    return model


def main() -> None:
    """Write WORK/reward-base."""
    parser = arguments(__doc__, work=Path("build/imdb"), layers=1, seed=0, output=Path)
    parser.add_argument("--model", type=Path, help="folder of the language model (default: the bundled one)")
    options = parser.parse_args()
    source = options.model or model_path("lm")
    output = options.output or options.work / "reward-base"
    build(source, options.layers, options.seed).save_pretrained(output)
    AutoTokenizer.from_pretrained(source).save_pretrained(output)


if __name__ == "__main__":
    main()
