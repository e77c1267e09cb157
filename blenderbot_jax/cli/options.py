"""What the commands share: the options that say which model to load and how to decode, input, and output."""

import io
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

import click
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.cli.programs import program_cache_option
from blenderbot_jax.generation import Draft, GenerationConfig, ParlaiConfig
from blenderbot_jax.generation.phrases import sentence_ends
from blenderbot_jax.pretrained import Checkpoint
from blenderbot_jax.quantize import QUANTIZATIONS
from blenderbot_jax.responses import Blocked
from blenderbot_jax.safety import PhraseFilter, SafetyClassifier

DTYPES = ("float32", "bfloat16", "float16")
# Option name -> (field of GenerationConfig, type, help).
_DECODING: dict[str, tuple[str, Any, str]] = {
    "--beams": ("num_beams", int, "Width of the beam search; 1 decodes greedily."),
    "--sample/--no-sample": ("do_sample", bool, "Draw at random instead of searching for the best."),
    "--temperature": ("temperature", float, "With --sample: above 1 is bolder, below 1 safer."),
    "--top-k": ("top_k", int, "With --sample: draw among the k likeliest tokens."),
    "--top-p": ("top_p", float, "With --sample: draw among the likeliest that hold this probability."),
    "--min-p": ("min_p", float, "With --sample: drop tokens less than this fraction as likely as the likeliest."),
    "--min-length": ("min_length", int, "Fewest tokens of a reply, the start token included."),
    "--max-length": ("max_length", int, "Most tokens of a reply, the start token included."),
    "--length-penalty": ("length_penalty", float, "Under beams: above 0 favours longer replies."),
    "--no-repeat": ("no_repeat_ngram_size", int, "No n-gram of this size occurs twice in a reply; 0 allows it."),
    "--no-echo": (
        "encoder_no_repeat_ngram_size",
        int,
        "No n-gram of this size is repeated from the prompt; 0 allows it.",
    ),
    "--repetition-penalty": ("repetition_penalty", float, "Above 1 discourages tokens that the reply has already."),
    "--recipe": (
        "recipe",
        click.Choice(("published", "parlai")),
        "Decode as published with the large models, by transformers' rules or by ParlAI's; other options change that.",
    ),
    "--beam-delay": ("beam_delay", int, "With --recipe parlai --sample: tokens drawn before a search takes over."),
    "--top-p-decay": ("top_p_decay", float, "With --recipe parlai --top-p: it shrinks by this along a sentence."),
    "--top-p-floor": ("top_p_floor", float, "With --top-p-decay: the least it shrinks to."),
    "--full-context/--no-full-context": (
        "block_full_context",
        bool,
        "With --recipe parlai: --no-echo looks at turns that the model no longer reads, too.",
    ),
    "--block-list": (
        "block_list",
        click.File("r", encoding="utf-8-sig"),
        "File of phrases, one a line, that no reply holds, whatever their case.",
    ),
}
_RECIPES = {"published": GenerationConfig.recipe, "parlai": GenerationConfig.parlai}
_SPEAKING = ("filter_phrases", "filter_model", "presentable")
# What a recipe leaves to the checkpoint.
_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "beam_delay", "top_p_decay", "top_p_floor")
_PARLAI = ("beam_delay", "top_p_decay", "top_p_floor", "block_full_context")
# Of transformers' two names for a length the second wins, but not over what the command line says.
_LENGTHS = {"min_length": "min_new_tokens", "max_length": "max_new_tokens"}


def model_and_decoding(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; it receives them as keywords and passes them to `load_bot`."""
    return model_options(draft_options(decoding_options(command)))


def speaking_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of what may be said, and how it is written: `filter_phrases`, `filter_model`, `presentable`."""
    phrases = click.option(
        "--filter-phrases",
        type=click.Path(exists=True, dir_okay=False),
        default=None,
        help="File of phrases, one a line: what users say with one of them is refused, a reply with one is replaced.",
    )
    model = click.option(
        "--filter-model",
        type=click.Path(exists=True),
        default=None,
        help="ParlAI's transformer/classifier, a folder or .tgz, that filters both sides likewise.",
    )
    presentable = click.option(
        "--presentable", is_flag=True, help="Write capitals and spaces as people do; the 90M model has none of its own."
    )
    return phrases(model(presentable(command)))


def draft_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that let a smaller model draft: `draft` and `draft_tokens`, None where not given."""
    tokens = click.option(
        "--draft-tokens",
        type=click.IntRange(min=1),
        default=None,
        help=f"With --draft: tokens drafted at a time; {Draft.tokens} if not given.",
    )
    name = click.option(
        "--draft",
        metavar="NAME",
        default=None,
        help="A smaller model that drafts, for --beams 1 or --sample; replies stay the same.",
    )
    return name(tokens(command))


def decoding_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how to decode: fields of `GenerationConfig`, and `seed`."""
    for flag, (field, kind, text) in reversed(_DECODING.items()):
        type_ = {} if kind is bool else {"type": kind}
        command = click.option(flag, field, default=None, help=text, **type_)(command)
    seed = click.option(
        "--seed",
        type=click.IntRange(0, 2**32 - 1),
        default=0,
        show_default="0",
        help="With --sample: where chance begins.",
    )
    return seed(command)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which model to load and how: `name`, and those of `loading_options`."""
    name = click.option("--model", "name", default="demo", show_default=True, help="Folder, hub name, or demo.")
    return name(loading_options(command))


def loading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how a model is loaded; a command passes them to `load_checkpoint` as they are."""
    dtype = click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Precision.")
    return dtype(quantize_option(hub_options(program_cache_option(command))))


def quantize_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option that puts weights into fewer bits: `quantize`, None where it is not given."""
    text = "Keep the weights of linear layers in 8 bits: a quarter of the memory of float32, and faster."
    return click.option("--quantize", type=click.Choice(QUANTIZATIONS), default=None, help=text)(command)


def hub_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how a hub name is looked up: `revision` and `local_only`."""
    command = click.option("--local-only", is_flag=True, help="Never use the network.")(command)
    return click.option("--revision", default=None, help="Branch, tag or commit on the hub.")(command)


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A bar on standard error, where that is a terminal, which is gone when the work is done."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def output_console() -> Console:
    """Standard output for tables; a file or a pipe, which has no width, gets lines of 120."""
    console = Console(highlight=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=120)


def load_checkpoint(
    *, name: str, dtype: str, quantize: str | None, revision: str | None, local_only: bool
) -> Checkpoint:
    """The checkpoint that `model_options` describe."""
    hub = {"revision": revision, "local_files_only": local_only}
    return Checkpoint.from_pretrained(name, dtype=jnp.dtype(dtype), quantize=quantize, **hub)


def load_bot(**options: Any) -> tuple[Chatbot, jax.Array | None]:
    """The bot that the options describe, and the key it draws with (None if it does not sample)."""
    seed = options.pop("seed")
    draft, draft_tokens = options.pop("draft", None), options.pop("draft_tokens", None)
    decoding = {field: options.pop(field) for field, _, _ in _DECODING.values()}
    phrases, speaking = decoding.pop("block_list"), {name: options.pop(name, None) for name in _SPEAKING}
    if draft is None and draft_tokens is not None:
        raise click.UsageError("--draft-tokens has no effect without a --draft to make them")
    checkpoint = load_checkpoint(**options)
    config = decoding_config(checkpoint.generation_config, decoding)
    if isinstance(config, ParlaiConfig) and config.top_p_decay is not None and config.sentence_end_ids is None:
        read = partial(checkpoint.tokenizer.encode, add_special_tokens=False, split_special_tokens=True)
        config = config.replace(sentence_end_ids=sentence_ends(read))
    bot, key = _speaking(Chatbot(checkpoint, config), **speaking), jax.random.key(seed) if config.do_sample else None
    if phrases is not None:
        bot = bot.avoiding(phrases)
    if draft is None:
        return bot, key
    if isinstance(config, ParlaiConfig):
        raise click.UsageError("--draft is not for ParlAI's decoding: leave out --draft, or --recipe parlai")
    if (config.num_beams or 1) > 1:
        raise click.UsageError(f"--draft has no effect on a search with {config.num_beams} beams: add --beams 1")
    other = load_checkpoint(**{**options, "name": draft, "revision": None})
    return bot.with_draft(other, draft_tokens or Draft.tokens), key


def _speaking(bot: Chatbot, filter_phrases: str | None, filter_model: str | None, presentable: bool | None) -> Chatbot:
    """The bot with what `speaking_options` ask for; phrases are cheaper to look for, so they come first."""
    if filter_phrases is not None:
        bot = bot.guarded(PhraseFilter.from_file(filter_phrases))
    if filter_model is not None:
        bot = bot.guarded(SafetyClassifier.from_parlai(filter_model))
    return bot.presentable() if presentable else bot


def decoding_config(config: GenerationConfig, decoding: dict[str, Any]) -> GenerationConfig:
    """A checkpoint's configuration, changed by what was given of the decoding options (None where one was not)."""
    changes = {field: value for field, value in decoding.items() if value is not None}
    if recipe := changes.pop("recipe", None):
        config = _RECIPES[recipe](**{name: getattr(config, name) for name in _IDS})
    parlai, samples = isinstance(config, ParlaiConfig), changes.get("do_sample", config.do_sample)
    given = {flag: field for flag, (field, _, _) in _DECODING.items() if field in changes}
    for flag, field in given.items():
        if field in _PARLAI and not parlai:
            raise click.UsageError(f"{flag} is of ParlAI's decoding: add --recipe parlai")
    if changes.get("do_sample") and not {"num_beams", "beam_delay"} & set(changes):
        changes["num_beams"] = 1
    changes |= {other: None for field, other in _LENGTHS.items() if field in changes}
    # Without draws there is nothing to delay, which is said below.
    config = config.replace(**{field: value for field, value in changes.items() if samples or field != "beam_delay"})
    for flag, field in given.items():
        if field in _SAMPLING and not samples and not (parlai and field == "temperature"):
            raise click.UsageError(f"{flag} has no effect unless replies are drawn at random: add --sample")
    return config


def blocked_note(blocked: Blocked) -> str:
    """What a filter held back, in a line."""
    whose = "what you said" if blocked.speaker == "user" else "a reply"
    return f"{whose} was held back: it {blocked.finding.reason} ({blocked.finding.filter})"


def standard_input(errors: str) -> TextIO:
    """Standard input as UTF-8, whatever the locale, without the mark that some editors put in front."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors=errors)
    return sys.stdin
