"""Those that answer many utterances: what a side is, and PyTorch transformers and CTranslate2 as sides.

Each works over the same weights, written once to a folder, and over the same ids. What is not installed is left out
with a line that says so.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from blenderbot_jax import Chatbot, GenerationConfig, save_pretrained

Prompt = tuple[int, ...]
START, END = 1, 2


@dataclass
class Side:
    """One of those that answer: the seconds it took and what it said, as ids."""

    name: str
    answer: Callable[[Sequence[str], Sequence[Prompt]], list[Prompt]]
    seconds: float = 0.0
    replies: list[Prompt] = field(default_factory=list)


def sorted_batches(prompts: Sequence[Prompt], batch_size: int) -> list[list[int]]:
    """Places of prompts in batches, longest first."""
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def transformers_side(folder: str, config: GenerationConfig, batch_size: int) -> Side:
    """PyTorch transformers; ImportError where it or torch is missing."""
    import torch
    import transformers

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config = transformers.GenerationConfig(
        **config.to_dict(), pad_token_id=0, bos_token_id=START, eos_token_id=END, decoder_start_token_id=START
    )

    def answer(texts: Sequence[str], prompts: Sequence[Prompt]) -> list[Prompt]:
        del texts
        replies: list[Prompt] = [()] * len(prompts)
        for places in sorted_batches(prompts, batch_size):
            width = max(len(prompts[place]) for place in places)
            rows = [(*prompts[place], *[0] * (width - len(prompts[place]))) for place in places]
            ids = torch.tensor(rows)
            with torch.inference_mode():
                found = model.generate(ids, attention_mask=(ids != 0).long())
            for place, row in zip(places, found.tolist(), strict=True):
                replies[place] = words(row)
        return replies

    return Side("transformers", answer)


def ctranslate2_side(folder: str, config: GenerationConfig, batch_size: int, compute_type: str) -> Side:
    """CTranslate2, whose BART graph covers the pre-norm model; ImportError where it is missing."""
    import ctranslate2  # pyright: ignore[reportMissingImports]

    convert_to_ctranslate2(folder)
    translator = ctranslate2.Translator(
        f"{folder}/ctranslate2", compute_type=compute_type, intra_threads=os.cpu_count() or 1
    )
    assert config.max_length is not None
    options: dict[str, Any] = {
        "beam_size": config.num_beams or 1,
        "length_penalty": config.length_penalty or 1.0,
        "no_repeat_ngram_size": config.no_repeat_ngram_size or 0,
        # Its lengths count neither the start token nor the end token of a reply.
        "min_decoding_length": max((config.min_length or 0) - 1, 1),
        "max_decoding_length": config.max_length - 1,
        "max_batch_size": batch_size,
    }

    def answer(texts: Sequence[str], prompts: Sequence[Prompt]) -> list[Prompt]:
        del texts
        found = translator.translate_batch([list(map(str, prompt)) for prompt in prompts], **options)
        return [words([int(token) for token in reply.hypotheses[0]]) for reply in found]

    return Side(f"CTranslate2 {compute_type}", answer)


def convert_to_ctranslate2(folder: str) -> None:
    """Write folder/ctranslate2, in which the tokens are called by their ids."""
    from ctranslate2.converters import transformers as converters  # pyright: ignore[reportMissingImports]

    class Loader(converters.BartLoader):
        """BART's graph with the norms of BlenderBot."""

        @property
        def architecture_name(self) -> Any:
            """The class in transformers."""
            return "BlenderbotForConditionalGeneration"

        def get_model_spec(self, model: Any) -> Any:
            """The graph: norms in front, none on the embeddings."""
            model.config.normalize_before, model.config.normalize_embedding = True, False
            return super().get_model_spec(model)

        def get_vocabulary(self, model: Any, tokenizer: Any) -> list[str]:
            """Ids as tokens."""
            del tokenizer
            return list(map(str, range(model.config.vocab_size)))

        def set_config(self, config: Any, model: Any, tokenizer: Any) -> None:
            """The special ids."""
            del model, tokenizer
            config.bos_token = config.decoder_start_token = str(START)
            config.eos_token, config.unk_token = str(END), "3"

    converters.register_loader("BlenderbotConfig")(Loader)
    converters.TransformersConverter(folder).convert(f"{folder}/ctranslate2", force=True)


def words(ids: Sequence[int]) -> Prompt:
    """A reply without start, end and padding."""
    return tuple(token for token in ids if token not in (0, START, END))


def peers(bot: Chatbot, folder: str, compute_types: Sequence[str], size: int) -> list[Side]:
    """The peers that are installed, over the bot's weights; the others are named with the reason."""
    checkpoint, config = bot.checkpoint, bot.generation_config
    if not checkpoint.model.config.normalize_before:
        click.echo("skipped transformers and CTranslate2: only the pre-norm models are compared")
        return []
    save_pretrained(folder, checkpoint.model.config, checkpoint.params, config, checkpoint.tokenizer)
    makers: dict[str, Callable[[], Side]] = {"transformers": lambda: transformers_side(folder, config, size)}
    for kind in compute_types:
        makers[f"CTranslate2 {kind}"] = lambda kind=kind: ctranslate2_side(folder, config, size, kind)
    found = []
    for name, make in makers.items():
        try:
            found.append(make())
        except (ImportError, RuntimeError, ValueError) as error:
            click.echo(f"skipped {name}: {type(error).__name__}: {error}")
    return found
