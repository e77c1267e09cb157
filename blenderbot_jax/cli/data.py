"""`blenderbot-jax data show`: what a model would learn from files of dialogues, before it does."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blenderbot_jax.cli.options import hub_options, output_console
from blenderbot_jax.conversion import read_config
from blenderbot_jax.data import (
    FORMATS,
    MAX_TARGET,
    Batches,
    Dialogue,
    Example,
    ExampleStats,
    dialogue_examples,
    read_dialogues,
)
from blenderbot_jax.dialogue import DialogueLayout
from blenderbot_jax.hub import SMALL_FILES, locate
from blenderbot_jax.pretrained import tokenizer_of
from blenderbot_jax.tokenizer import BlenderbotSmallTokenizer, BlenderbotTokenizer

# Of lines and dialogues that cannot be used, as many are named.
_NAMED = 5


@dataclass(frozen=True)
class _Maker:
    """How examples are made."""

    tokenizer: BlenderbotTokenizer | BlenderbotSmallTokenizer
    layout: DialogueLayout
    limits: dict[str, int]
    speakers: tuple[str, ...] | None

    def examples(self, dialogue: Dialogue) -> list[Example]:
        """Those of a dialogue."""
        options: dict[str, Any] = {**self.limits, "speakers": self.speakers, "layout": self.layout}
        return list(dialogue_examples(dialogue, self.tokenizer, **options))


@dataclass
class _Tally:
    """What has been met so far."""

    dialogues: int = 0
    bad: int = 0
    stats: ExampleStats = field(default_factory=ExampleStats)
    speakers: set[str] = field(default_factory=set)

    def skip(self, error: ValueError) -> None:
        """Count something that cannot be used, and name the first few."""
        self.bad += 1
        if self.bad <= _NAMED:
            click.echo(f"left out: {error}", err=True)
        elif self.bad == _NAMED + 1:
            click.echo("left out: more of them, which the table counts", err=True)


@click.group()
def data() -> None:
    """Look at dialogues as a model learns from them."""


@data.command(short_help="Show examples as the model sees them, and count all.")
@click.argument("files", nargs=-1, required=True, metavar="FILES...")
@click.option(
    "--model", "name", default="demo", show_default=True, help="Whose tokenizer: a folder, hub name, or demo."
)
@click.option("--format", "form", type=click.Choice(list(FORMATS)), help="That of the files; told by them without it.")
@click.option("--limit", type=click.IntRange(min=0), default=5, show_default=True, help="Examples shown.")
@click.option("--skip-bad", is_flag=True, help="Leave out lines and dialogues that cannot be used.")
@click.option("--speaker", "speakers", multiple=True, help="Learn this speaker's turns alone; repeatable.")
@click.option("--max-source", type=click.IntRange(min=2), help="Most tokens of a context; the model's without it.")
@click.option(
    "--max-target", type=click.IntRange(min=1), help=f"Most tokens of a reply; {MAX_TARGET} or the model's without it."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Examples of a batch.")
@hub_options
def show(
    files: tuple[str, ...],
    name: str,
    form: Any,
    limit: int,
    skip_bad: bool,
    speakers: tuple[str, ...],
    max_source: int | None,
    max_target: int | None,
    batch_size: int,
    revision: str | None,
    local_only: bool,
) -> None:
    """Show the first examples that FILES hold, and a table of all of them.

    FILES are files, folders or quoted patterns: JSONL of dialogues, of ParlAI's conversations or of pairs, pairs with a
    tab between them, or ParlAI's text. A context is shown turn by turn: <sep> stands for what the model reads between
    turns, \\n for a line break, and turns that did not fit are named. No weights are loaded.

    \b
    Examples:
      blenderbot-jax data show talk.jsonl
      blenderbot-jax data show "corpus/*.jsonl.gz" --model facebook/blenderbot-3B --speaker B --limit 2
      blenderbot-jax data show train.txt --format parlai --skip-bad --batch-size 64
    """
    folder = locate(name, SMALL_FILES, revision=revision, local_files_only=local_only)
    maker = _maker(folder, max_source, max_target, speakers or None)
    tally, console = _Tally(), output_console()
    on_bad = tally.skip if skip_bad else None
    dialogues = read_dialogues(files, format=form, skip_bad=skip_bad, on_bad=on_bad)
    found = _examples(dialogues, maker, tally, skip_bad)
    first = next(found, None)
    if first is None:
        raise click.UsageError(_nothing(tally, speakers))
    batches = Batches(
        _printed(chain([first], found), limit, maker, console), batch_size, pad_token_id=maker.tokenizer.pad_token_id
    )
    console.print(_table(tally, batches))


def _maker(folder: Path, max_source: int | None, max_target: int | None, speakers: tuple[str, ...] | None) -> _Maker:
    """A folder's tokenizer as its `Checkpoint` would have it, and as many tokens as its model reads and writes."""
    positions = read_config(folder).max_position_embeddings
    tokenizer = tokenizer_of(folder, positions)
    usual = min(tokenizer.model_max_length or positions, positions)
    limits = {
        "max_source": usual if max_source is None else max_source,
        "max_target": min(MAX_TARGET, positions) if max_target is None else max_target,
    }
    for limit, value in limits.items():
        if value > positions:
            flag = "--" + limit.replace("_", "-")
            raise click.UsageError(f"{flag} {value} is more than this model has positions for: {positions}")
    return _Maker(tokenizer, DialogueLayout.of(tokenizer), limits, speakers)


def _examples(
    dialogues: Iterable[Dialogue], maker: _Maker, tally: _Tally, skip_bad: bool
) -> Iterator[tuple[Dialogue, Example]]:
    """Each example with its dialogue; the tally is kept on the way."""
    for dialogue in dialogues:
        tally.dialogues += 1
        tally.speakers |= {speaker for speaker, _ in dialogue.turns}
        try:
            examples = maker.examples(dialogue)
        except ValueError as error:
            if not skip_bad:
                raise
            tally.skip(error)
            continue
        tally.stats += ExampleStats.of(examples)
        yield from ((dialogue, example) for example in examples)


def _nothing(tally: _Tally, speakers: Sequence[str]) -> str:
    """Why there is no example."""
    if not tally.dialogues:
        return "the files hold no dialogue"
    if speakers and not tally.speakers & set(speakers):
        return f"nobody is called {' or '.join(speakers)}: the speakers are {', '.join(sorted(tally.speakers)[:10])}"
    return f"{tally.dialogues} dialogues give no example: one needs a turn, and another that answers it"


def _printed(
    found: Iterable[tuple[Dialogue, Example]], limit: int, maker: _Maker, console: Console
) -> Iterator[Example]:
    """The examples, the first of them printed as they pass."""
    for number, (dialogue, example) in enumerate(found):
        if number < limit:
            console.print(_picture(dialogue, example, maker), soft_wrap=True)
        yield example


def _picture(dialogue: Dialogue, example: Example, maker: _Maker) -> Text:
    """An example as the model sees it."""
    before = [f"{name}: {text.strip()}" for name, text in dialogue.turns[: example.turn] if text.strip()]
    pieces = _pieces(example.input_ids, maker.layout.separator)
    context = [_visible(maker, piece) + " <sep>" for piece in pieces[:-1]] + [_visible(maker, pieces[-1])]
    front = f"(its first {example.dropped_tokens} tokens do not fit)"
    end = f"(its last {example.dropped_labels} tokens do not fit)"
    parts = {
        "dropped": ([text.replace("\n", "\\n") for text in before[: example.dropped_turns]], "dim"),
        f"context, {len(example.input_ids)}": (context + [front] * (example.dropped_tokens > 0), ""),
        f"reply, {len(example.labels)}": ([_visible(maker, example.labels), *[end] * (example.dropped_labels > 0)], ""),
    }
    text = Text()
    place = f"turn {example.turn + 1} of {len(dialogue.turns)}"
    text.append(f"{dialogue.where}, {place}, {dialogue.turns[example.turn][0]}\n", "bold")
    for label, (lines, style) in parts.items():
        for number, line in enumerate(lines):
            text.append(f"  {'' if number else label:<14}", "cyan").append(f"{line}\n", style)
    return text


def _pieces(ids: tuple[int, ...], separator: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The ids between separators."""
    starts, place, width = [0], 0, len(separator)
    ends = []
    while place < len(ids):
        if ids[place : place + width] == separator:
            ends.append(place)
            place += width
            starts.append(place)
        else:
            place += 1
    return [ids[start:end] for start, end in zip(starts, [*ends, len(ids)], strict=True)]


def _visible(maker: _Maker, ids: tuple[int, ...]) -> str:
    """What ids stand for, special tokens by name, on one line."""
    return maker.tokenizer.decode(ids).strip(" ").replace("\n", "\\n")


def _table(tally: _Tally, batches: Batches) -> Table:
    stats, size = tally.stats, batches.batch_size
    shapes = ", ".join(f"{S} x {T}" for S, T in batches.widths)
    rows = {
        "dialogues": f"{tally.dialogues:,}",
        "left out": f"{tally.bad:,} lines or dialogues",
        "examples": f"{stats.examples:,}",
        "contexts": _lengths(stats.source_tokens, stats.examples, stats.longest_source),
        "replies": _lengths(stats.target_tokens, stats.examples, stats.longest_target),
        "contexts that lost turns or tokens": _share(stats.cut_histories, stats.examples),
        "replies that lost their end": _share(stats.cut_replies, stats.examples),
        f"batches of {size}": f"{len(batches):,} an epoch",
        "source x target widths": shapes,
        "padding": f"{batches.padding:.1%} of places",
    }
    table = Table("examples")
    table.add_column("in all")
    for label, value in rows.items():
        table.add_row(label, Text(value))
    return table


def _lengths(tokens: int, examples: int, longest: int) -> str:
    return f"{tokens:,} tokens, {tokens / examples:.1f} on average, {longest} at most"


def _share(count: int, examples: int) -> str:
    return f"{count:,} ({count / examples:.1%})"
