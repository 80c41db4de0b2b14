"""Reading and writing reward-model checkpoints: ordinary sequence classifiers, with a note about their zero."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from bonmini_guard.conversation import Turn
from bonmini_guard.errors import CheckpointError, ConfigurationError, InputError, Unscorable, first_line
from bonmini_guard.forks import Lock
from bonmini_guard.validation import is_number

if TYPE_CHECKING:
    # Tokenizers and configurations are read without torch, for models that run elsewhere.
    import torch
    from torch import nn

logger = logging.getLogger(__name__)
#: Models load one at a time: transformers tells how loudly it loads, and in which precision, for the whole process.
_loading = Lock()

#: Position tables of these models begin behind the padding index.
_OFFSET_POSITIONS = re.compile(r"(xlm-)?roberta(-prelayernorm|-xl)?|camembert|longformer|mpnet|data2vec-text|ibert|xmod")
_UNLIMITED = 10**9
#: What peft calls the settings of adapters.
_ADAPTERS = "adapter_config.json"
#: Those, beside rank and alpha, that say how much adapters count for.
_SCALES = ("rank_pattern", "alpha_pattern", "use_rslora")
#: Files that hold a tokenizer's tokens.
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")
#: A model id of a hub: owner/name, never a path.
_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_tokenizer(path: str, base: str | None = None) -> Any:
    """The tokenizer of a checkpoint, with a padding token and a chat template.

    One without a chat template gets one that writes the contents one after the other, with the control tokens that the
    tokenizer itself puts around a text. A folder of adapters without one has that of its ``base``; one with settings and template
    alone has these over the vocabulary of its ``base``. CheckpointError: there is none, or it is not the adapters' vocabulary.
    """
    folder = Path(path)
    place = None if any(any(folder.glob(kind)) for kind in _VOCABULARIES) else base_of(path, base)
    own = place is not None and (folder / "tokenizer_config.json").is_file()
    tokenizer = _tokenizer(path, path if own else place or path, place if own else None)
    if place is not None and base_note(load_config(path, base)).get("vocabulary") not in (None, vocabulary_digest(tokenizer)):
        raise CheckpointError(f"{path}: the tokenizer of {place} is not the one it was trained with; give the base that it names")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = concatenation_template(tokenizer)
    return tokenizer


def concatenation_template(tokenizer: Any) -> str:
    """A chat template that concatenates all contents, between the tokens that the tokenizer adds around a text."""
    before, after = (f"{{{{ {json.dumps(text)} }}}}" if text else "" for text in added_tokens(tokenizer))
    return before + "{% for message in messages %}{{ message['content'] }}{% endfor %}" + after


def added_tokens(tokenizer: Any) -> tuple[str, str]:
    """What a tokenizer itself puts before and behind a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
    before, after = whole[:start], whole[start + len(plain) :]
    return "".join(tokenizer.convert_ids_to_tokens(before)), "".join(tokenizer.convert_ids_to_tokens(after))


def load_config(path: str, base: str | None = None) -> Any:
    """The configuration of a checkpoint; a folder of adapters without one has that of its ``base``, with one label."""
    place = base_of(path, base)
    source = path if place is None or (Path(path) / "config.json").is_file() else place
    check_place(source)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # broken settings raise whatever they please
        if "custom code" in str(error):
            raise CheckpointError(
                f"{source}: needs code of its own, which is never run here: save it with an architecture of transformers, or serve "
                "it (vLLM) and use a scorer spec with kind = 'route', or a function"
            ) from error
        if "does not recognize" in str(error):
            raise CheckpointError(
                f"{source}: the installed transformers does not know this architecture ({first_line(error)[:120]}): upgrade it, or "
                "serve the model elsewhere and use a scorer spec with kind = 'route', or a function"
            ) from error
        found = Path(source).is_dir()
        wrong = "its config.json is broken" if found else "neither a folder here nor a model to be had"
        cure = "save it anew" if found else "check the name"
        raise CheckpointError(f"{source}: {wrong} ({first_line(error)}); {cure}") from error
    if place is not None:
        config.num_labels = 1
    return config


def check_place(path: str) -> None:
    """Raise CheckpointError at once for a folder that is no checkpoint, and for a name that is neither a folder nor a model id.

    Asking a hub about a mistyped folder takes half a minute of retries without a network.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{path}: no config.json in it; name a folder written by save_pretrained or 'bonmini-guard train'")
    if not folder.is_dir() and not _MODEL_ID.fullmatch(path):
        raise CheckpointError(f"{path}: no such folder; name a checkpoint's folder, or a model id like owner/name")


def load_classifier(path: str, config: Any, dtype: torch.dtype, base: str | None = None) -> tuple[Any, list[str]]:
    """A sequence classifier of a checkpoint, in this precision, and the names of the weights that the checkpoint lacked.

    Adapters are added to the weights of their base, or of ``base``; CheckpointError where it is not theirs, cannot classify, or is
    in no safetensors.
    """
    place = base_of(path, base)
    if place is None:
        return load_model(path, config, dtype)
    from bonmini_guard.reward.lora import with_adapters

    try:
        model, missing = load_model(place, config, dtype)
    except CheckpointError as error:
        if Path(place).is_dir() or not isinstance(error.__cause__, OSError):  # it is here, and wrong
            raise
        wrong = "an adapter whose base is neither here nor to be had"
        raise CheckpointError(f"{path}: {wrong}; say where it is with base=, or merge them ({error})") from error
    # Behind it, which fetches what a hub has.
    if (noted := base_note(config).get("digest")) is not None and noted != weights_digest(place):
        raise CheckpointError(f"{path}: {place} is not the base it was trained on, or has changed; give that one")
    model, whole = with_adapters(model, path)
    check_biases(path, model, whole)
    return model, [name for name in missing if name not in whole]


def load_model(path: str, config: Any, dtype: torch.dtype, kind: str = "sequence classifier") -> tuple[Any, list[str]]:
    """A model of a folder or an id, or a "language model"; see :func:`load_classifier`."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    loader: Any = AutoModelForCausalLM if kind == "language model" else AutoModelForSequenceClassification
    folder = Path(path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{path}: no safetensors weights; save the model anew with a current save_pretrained")
    with _loading.held:
        before = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        try:
            model, report = loader.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, by name, as all that matters of the report is
            )
        except ImportError as error:  # of the library that its weights are quantised with
            cure = "install that library, or use the model's weights as they were before"
            raise CheckpointError(f"{path}: its weights need a library that is missing ({first_line(error)}); {cure}") from error
        except Exception as error:  # broken settings raise whatever they please
            raise CheckpointError(f"{path}: cannot be loaded as a {kind} ({first_line(error)}); use another model") from error
        finally:
            transformers_logging.set_verbosity(before)
    for name, theirs, ours in sorted(report["mismatched_keys"]):
        shapes = f"{name} has the shape {list(theirs)}, and {list(ours)} is wanted"
        raise CheckpointError(f"{path}: cannot be loaded as a {kind} ({shapes}); use another model, or its own config.json")
    check_biases(path, model, report["unexpected_keys"])
    for name, stored in _stored(path) if getattr(model.config, "quantization_config", None) is None else ():
        if name.endswith("weight") and stored.get_slice(name).get_dtype().startswith(("I", "U", "BOOL")):
            wrong = f"{name} is of whole numbers, and config.json names no quantisation"
            raise CheckpointError(f"{path}: {wrong}; copy it anew, or save floats")
    return model, sorted(report["missing_keys"])


def load_language_model(path: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A model that draws, and its tokenizer as it is; CheckpointError where one is not there, or not whole."""
    model, missing = load_model(path, load_config(path), dtype, "language model")
    if missing:
        raise CheckpointError(f"{path}: without weights for {missing[0]}, which would be chance; name a causal language model")
    return model, _tokenizer(path, path)


def _tokenizer(path: str, place: str, vocabulary: str | None = None) -> Any:
    """The tokenizer at a place, perhaps over the vocabulary of another one, for the checkpoint at ``path``."""
    try:
        more = {} if vocabulary is None else {"tokenizer_file": cached_file(vocabulary, "tokenizer.json")}
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, **more)
    except Exception as error:  # broken settings raise whatever they please
        raise CheckpointError(f"{path}: no usable tokenizer ({first_line(error)}); save one into the checkpoint") from error


def check_biases(path: str, model: Any, names: Iterable[str]) -> None:
    """Raise CheckpointError where one of these weights is the bias of a layer that has none, so that what it adds would be lost."""
    layers = dict(model.named_modules())
    lost = tuple(name for name in names if getattr(layers.get(name.removesuffix(".bias")), "bias", 0) is None)
    for name, stored in _stored(path) if lost else ():
        if name.endswith(lost) and stored.get_tensor(name).any():  # zeros, as of GPTQ, add nothing
            raise CheckpointError(f"{path}: {name} is of a layer that has none here; save the model without, or as it was trained")


def _stored(path: str) -> Iterator[tuple[str, Any]]:
    """The names of a model's weights, each with the file that holds it, which is open until the next one is asked for."""
    from safetensors import safe_open

    for file in weight_files(path):
        with safe_open(file, framework="pt") as stored:
            yield from ((name, stored) for name in stored.keys())  # noqa: SIM118


def weight_files(path: str) -> list[Path]:
    """The safetensors files of a folder, or of a model id that has been loaded."""
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(path, allow_patterns=["*.safetensors"], local_files_only=True))
    return sorted(folder.glob("*.safetensors"))


def weights_digest(path: str) -> str:
    """SHA-256 over names and float32 values of a model's weights, whatever the files they lie in."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(file, framework="pt")) for file in weight_files(path)]
        for name, file in sorted((name, number) for number, opened in enumerate(files) for name in opened.keys()):  # noqa: SIM118
            weight = files[file].get_tensor(name).float().contiguous()
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(weight.numpy())
    return f"sha256:{digest.hexdigest()}"


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 over a tokenizer's tokens and their ids, whatever the file they lie in."""
    return f"sha256:{hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()}"


def without_default_system(tokenizer: Any) -> str:
    """Keep a chat template from writing a system prompt that nobody gave; gives what it wrote, or nothing."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    try:
        once, twice = (tokenizer.apply_chat_template(turns * times, tokenize=False) for times in (1, 2))
    except TemplateError:
        return ""
    again, bos = twice.removeprefix(once), tokenizer.bos_token or ""
    written = once.removesuffix(again)
    # Where every turn begins with that token, it is none of the text's.
    unasked = written if again.startswith(bos) else written.removeprefix(bos)
    if not again or twice != written + again + again or not re.search(r"\w", re.sub(r"<[^<>]*>", "", unasked)):
        return ""
    cut = f"{{{{ text.replace({json.dumps(unasked)}, '', 1) if messages[0]['role'] != 'system' else text }}}}"
    # Of several templates the one that was asked.
    tokenizer.chat_template = f"{{% set text %}}{tokenizer.get_chat_template()}{{% endset %}}{cut}"
    return str(unasked)


def keep_layers(config: Any, layers: int) -> None:
    """Shorten a configuration to its first ``layers`` layers; ConfigurationError if it has not so many."""
    text = config.get_text_config()
    if not 1 <= layers <= text.num_hidden_layers:
        raise ConfigurationError(f"cannot keep {layers} layers: use 1 to {text.num_hidden_layers}")
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]


def check_whole(path: str, missing: Sequence[str]) -> None:
    """Raise CheckpointError where a model lacks weights: its scores would be a chance head's."""
    if missing:
        raise CheckpointError(f"{path}: without weights for {missing[0]}; train the model with 'bonmini-guard train'")


def check_vocabulary(path: str, tokenizer: Any, formatter: Any, model: Any) -> None:
    """Refuse a chat template that writes tokens for which a model has no embedding, and tell of those that texts may spell.

    It must write the end token that encoder-decoders (T5, BART) are read at.
    """
    known, config = int(model.get_input_embeddings().weight.shape[0]), model.config
    if len(tokenizer) <= known and not config.is_encoder_decoder:
        return
    try:
        written = formatter.encode([Turn("user", "a")], Turn("assistant", "a")).ids
    except (InputError, Unscorable):  # a template that wants another conversation
        written = []
    if config.is_encoder_decoder and written and config.eos_token_id not in written:
        end = tokenizer.eos_token
        raise CheckpointError(f"{path}: the model is read at {end!r}, and its chat template writes none; let it end in one")
    if len(tokenizer) <= known:
        return
    unknown = [text for text, index in tokenizer.get_vocab().items() if index >= known]
    what = f"the tokenizer has {len(unknown)} tokens, such as {unknown[0]!r}, for which the model has no embedding"
    if any(index >= known for index in written):
        cure = "call resize_token_embeddings(len(tokenizer)) and train, or use the tokenizer that the model was trained with"
        raise CheckpointError(f"{path}: {what}, and its chat template writes them; {cure}")
    logger.warning("%s: %s; a text that spells one has no score", path, what)


def zero_new_head(model: nn.Module, missing: list[str]) -> None:
    """Let a new head begin at score 0 for every text: no answer is acceptable or not before anything is learnt."""
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == 1 and f"{name}.weight" in missing:
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def pad_id(config: Any, tokenizer: Any) -> int:
    """The token to fill batches with: the model's own, else the tokenizer's, if the model has an embedding for it."""
    text = config.get_text_config()
    known = [index for index in (text.pad_token_id, tokenizer.pad_token_id) if index is not None]
    return next((index for index in known if 0 <= index < getattr(text, "vocab_size", 0)), 0)


def length_limit(config: Any, tokenizer: Any, requested: int | None = None) -> int | None:
    """Most tokens a text may have: the least that the model (if it is known), its tokenizer and the caller allow, if any does."""
    if requested is not None and requested < 1:
        raise ConfigurationError(f"max_length is {requested}: a text has at least one token; give a larger one, or None")
    positions = getattr(config and config.get_text_config(), "max_position_embeddings", None)
    if positions and _OFFSET_POSITIONS.fullmatch(config.model_type):
        positions -= (config.pad_token_id or 0) + 1
    own = tokenizer.model_max_length
    if not is_number(own or 0):
        raise CheckpointError(f"{tokenizer.name_or_path}: model_max_length is {own!r} in its tokenizer_config.json; write a number")
    limits = [limit for limit in (positions, own, requested) if limit and 0 < limit < _UNLIMITED]
    return int(min(limits)) if limits else None


def sidecar(objective: str) -> dict[str, Any]:
    """What ``config.bonmini_guard`` records of a model trained with an objective; adapters add their base's name and digest."""
    return {"zero": "outside_option" if objective == "outside_option" else None, "objective": objective, "version": 1}


def note_of(config: Any) -> dict[str, Any]:
    """What :func:`sidecar` recorded; nothing for a checkpoint trained elsewhere."""
    note = getattr(config, "bonmini_guard", None)
    return note if isinstance(note, dict) else {}


def inputs_of(config: Any) -> str | None:
    """What a checkpoint of ours says that it reads: "text" or "pair"; None for one trained elsewhere."""
    note = note_of(config)
    return note.get("inputs", "text") if note else None


def base_note(config: Any) -> dict[str, str]:
    """Of the base that adapters were trained on: ``name``, ``digest`` of the weights and ``vocabulary``, as far as it was noted."""
    note: Any = note_of(config).get("base") or {}
    if not isinstance(note, dict):
        raise CheckpointError(f"the base that config.json notes under bonmini_guard is {note!r}; copy the adapters anew")
    return note


def changed_scale(path: str) -> str:
    """The scale of a folder's adapters where it is not the one that ``training.json`` says they were trained with."""
    try:
        now, was = (json.loads((Path(path) / name).read_text(encoding="utf-8")) for name in (_ADAPTERS, "training.json"))
        rank, alpha = was["settings"]["lora_rank"], was["settings"]["lora_alpha"]
        scale = [now["r"], now["lora_alpha"], *(now.get(name) or None for name in _SCALES)]
    except (OSError, ValueError, LookupError, TypeError):  # trained elsewhere
        return ""
    return "" if scale == [rank, alpha or 2 * rank, *[None] * len(_SCALES)] else json.dumps(scale, sort_keys=True)


def base_of(path: str, base: str | None = None) -> str | None:
    """``base``, or the folder or id of an adapter's base: CheckpointError if it is not found. None for what is no adapter."""
    if not (Path(path) / _ADAPTERS).is_file():
        return None
    try:
        name = str(base or json.loads((Path(path) / _ADAPTERS).read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: its {_ADAPTERS} is broken ({first_line(error)}); save the adapters anew") from error
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bonmini-guard"
    places = [Path(name), Path(path) / name, Path(path).parent / name, cache / Path(name).name]
    found = next((str(place) for place in places if name and (place / "config.json").is_file()), None)
    if found is None and (name.count("/") != 1 or Path(name).is_absolute()):
        raise CheckpointError(f"{path}: an adapter whose base {name!r} is not here; say where it is with base=, or merge them")
    return found or name


def has_zero(config: Any) -> bool:
    """Whether a checkpoint's configuration says that score 0 is the outside option."""
    return note_of(config).get("zero") == "outside_option"
