"""Which of the two tokenizers a folder holds."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from blenderbot_jax.hub import SMALL_FILES, locate
from blenderbot_jax.tokenizer.byte_level import BlenderbotTokenizer
from blenderbot_jax.tokenizer.small import BlenderbotSmallTokenizer
from blenderbot_jax.tokenizer.vocabulary import BYTE_LEVEL_TOKENS, SMALL_TOKENS, PathLike, read_json

TokenizerClass = type[BlenderbotTokenizer] | type[BlenderbotSmallTokenizer]
_NAMES: dict[str, TokenizerClass] = {
    "BlenderbotTokenizer": BlenderbotTokenizer,
    "BlenderbotTokenizerFast": BlenderbotTokenizer,
    "BlenderbotSmallTokenizer": BlenderbotSmallTokenizer,
    "BlenderbotSmallTokenizerFast": BlenderbotSmallTokenizer,
}
_MODEL_TYPES: dict[str, TokenizerClass] = {
    "blenderbot": BlenderbotTokenizer,
    "blenderbot-small": BlenderbotSmallTokenizer,
}


def load_tokenizer(
    name_or_folder: PathLike,
    *,
    revision: str | None = None,
    cache_dir: PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    **options: Any,
) -> BlenderbotTokenizer | BlenderbotSmallTokenizer:
    """Read the tokenizer of a checkpoint, of whichever family it is.

    Args:
        name_or_folder: a folder, a hub name, or "demo", the bundled checkpoint.
        revision, cache_dir, local_files_only, token: how a hub name is looked up; see `hub.locate`.
        **options: keywords of the tokenizer's constructor that replace what the files say.

    Raises:
        FileNotFoundError: the folder or its files are missing; the message names them.
        ValueError: the files tell of neither family, or one is damaged.

    Example:
        >>> type(load_tokenizer("demo", truncation_side="left")).__name__
        'BlenderbotTokenizer'
    """
    folder = locate(
        name_or_folder,
        SMALL_FILES,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
    )
    return tokenizer_class(folder).from_pretrained(folder, **options)


def tokenizer_class(folder: Path) -> TokenizerClass:
    """The class of a folder's tokenizer.

    Third parties have saved the 90M model under the other family's name, so what the vocabulary holds weighs most, then
    the `tokenizer_class` of `tokenizer_config.json`, then the `model_type` of `config.json`.

    Raises:
        FileNotFoundError: there is no vocabulary at all.
        ValueError: nothing tells.

    Example:
        >>> tokenizer_class(folder).__name__
        'BlenderbotTokenizer'
    """
    tokens = _tokens(folder)
    for cls, own in ((BlenderbotSmallTokenizer, SMALL_TOKENS), (BlenderbotTokenizer, BYTE_LEVEL_TOKENS)):
        if own <= set(tokens):
            return cls
    named = _said(folder / "tokenizer_config.json", "tokenizer_class")
    kind = _said(folder / "config.json", "model_type")
    found = _NAMES.get(named) or _MODEL_TYPES.get(kind)
    if found is None:
        raise ValueError(
            f"{folder}: a folder's tokenizer is told by its vocabulary ({', '.join(sorted(SMALL_TOKENS))} for the 90M "
            f"model, {', '.join(sorted(BYTE_LEVEL_TOKENS))} for the others), by tokenizer_class or by model_type; got "
            f"{len(tokens)} tokens without either three, {named!r} and {kind!r}. If it is one of ours, call "
            "from_pretrained of BlenderbotTokenizer or BlenderbotSmallTokenizer itself"
        )
    return found


def _tokens(folder: Path) -> Collection[str]:
    vocab, whole = folder / "vocab.json", folder / "tokenizer.json"
    if vocab.is_file():
        return read_json(vocab)
    if whole.is_file():
        model = read_json(whole).get("model")
        tokens = model.get("vocab") if isinstance(model, dict) else None
        return tokens if isinstance(tokens, dict) else ()
    raise FileNotFoundError(f"{str(folder)!r} has no vocab.json and no tokenizer.json: a tokenizer needs one of them")


def _said(file: Path, name: str) -> str:
    said = read_json(file).get(name) if file.is_file() else None
    return said if isinstance(said, str) else ""
