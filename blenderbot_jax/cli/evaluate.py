"""`blenderbot-jax eval`: how likely a model finds the replies of some files, and how good its own are."""

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.progress import MofNCompleteColumn
from rich.table import Table
from rich.text import Text

from blenderbot_jax import __version__
from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.cli.options import load_bot, model_and_decoding, output_console, progress_bar
from blenderbot_jax.data import FORMATS, Example, corpus_examples, read_dialogues
from blenderbot_jax.data.readers import data_files
from blenderbot_jax.evaluation.metrics import DEFAULT_METRICS, METRICS, check_metrics
from blenderbot_jax.evaluation.report import Report, evaluate
from blenderbot_jax.files import write_text
from blenderbot_jax.generation import Packing

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("eval", short_help="Measure a model on files of dialogues.")
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--format", "form", type=click.Choice(sorted(FORMATS)), help="Of the files; told by their lines if not given."
)
@click.option("--speaker", "speakers", multiple=True, help="Whose turns are measured; repeatable, all if not given.")
@click.option("--persona/--no-persona", default=True, help="Whether personas of the files stand before what is read.")
@click.option("--skip-bad", is_flag=True, help="Leave out lines that are no dialogue.")
@click.option("--limit", type=click.IntRange(min=1), help="Most examples of each file, its first ones.")
@click.option(
    "--generate/--no-generate", default=True, help="Whether the model gives replies of its own; likelihood needs none."
)
@click.option(
    "--metrics",
    metavar="NAMES",
    help=f"Of its replies, with commas: {', '.join(METRICS)}; all but sacrebleu if not given.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Most examples at once.")
@click.option("--output", type=_FILE, help="Write all figures here, as JSON.")
@click.option("--replies", "answers", type=_FILE, help="Write every reply beside its reference here, as JSON lines.")
@model_and_decoding
def evaluate_files(
    files: tuple[str, ...],
    form: Any,
    speakers: tuple[str, ...],
    persona: bool,
    skip_bad: bool,
    limit: int | None,
    generate: bool,
    metrics: str | None,
    batch_size: int,
    output: Path | None,
    answers: Path | None,
    **options: Any,
) -> None:
    """Measure a model on the dialogues in FILES: files, folders or patterns.

    Every turn from the second on is an example. Perplexity and token accuracy are of the replies in the files, by
    token; the other metrics are of the model's own, on words as ParlAI counts them.

    \b
    Examples:
      blenderbot-jax eval valid.jsonl --limit 200
      blenderbot-jax eval valid.jsonl --no-generate --model facebook/blenderbot-400M-distill
      blenderbot-jax eval a.jsonl b.jsonl --metrics f1,distinct --output report.json --replies replies.jsonl
    """
    names = _metrics(generate, metrics, answers)
    for path in (output, answers):
        check_writable(path)
    paths = [path for name in files for path in data_files(name)]
    described = {"model": options["name"], "dtype": options["dtype"], "quantize": options["quantize"]}
    seed = options["seed"]
    bot, key = load_bot(**options)
    bot = dataclasses.replace(bot, packing=Packing(batch_size=batch_size))
    reading = {"format": form, "skip_bad": skip_bad}
    asking = {"speakers": speakers or None, "persona": persona}
    corpora = {str(path): _examples(bot, path, limit, reading, asking) for path in paths}
    total = sum(map(len, corpora.values()))
    with progress_bar(MofNCompleteColumn()) as progress:
        stages = ("likelihood", "replies") if names else ("likelihood",)
        tasks = {stage: progress.add_task(stage, total=total) for stage in stages}
        report = evaluate(
            bot,
            corpora,
            metrics=names,
            batch_size=batch_size,
            key=key if names else None,
            on_progress=lambda stage, count: progress.advance(tasks[stage], count),
        )
    if output is not None:
        drawn = {"seed": seed} if key is not None and names else {}
        about = {"blenderbot_jax": __version__, **described, **drawn, "limit": limit}
        write_text(output, json.dumps({**about, **report.to_dict()}, indent=2, ensure_ascii=False) + "\n")
    if answers is not None:
        lines = (json.dumps(dataclasses.asdict(one), ensure_ascii=False) for one in report.answers)
        write_text(answers, "".join(f"{line}\n" for line in lines))
    output_console().print(_table(report))


def _metrics(generate: bool, metrics: str | None, answers: Path | None) -> Sequence[str]:
    """The metrics that are asked for, none without replies."""
    if not generate:
        for flag, given in (("--metrics", metrics), ("--replies", answers)):
            if given is not None:
                raise click.UsageError(f"{flag} is about the model's own replies, of which --no-generate asks for none")
        return ()
    if metrics is None:
        return DEFAULT_METRICS
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    if not names:
        raise click.UsageError(f"--metrics names at least one of {', '.join(METRICS)}; or say --no-generate")
    try:
        return check_metrics(names)
    except ImportError as error:
        raise click.UsageError(str(error)) from error


def _examples(
    bot: Chatbot, path: Path, limit: int | None, reading: Mapping[str, Any], asking: Mapping[str, Any]
) -> tuple[Example, ...]:
    """The first examples of a file, as the bot's model reads them."""
    tokenizer, positions = bot.checkpoint.tokenizer, bot.checkpoint.model.config.max_position_embeddings
    width = min(tokenizer.model_max_length or positions, positions)
    dialogues = read_dialogues(path, **reading)
    found = tuple(
        islice(corpus_examples(dialogues, tokenizer, max_source=width, max_target=positions, **asking), limit)
    )
    if not found:
        raise click.UsageError(f"{path} has no turn to measure: one that is measured has a turn before it")
    return found


def _table(report: Report) -> Table:
    """A row for each figure, a column for each file, and one for all where there are several."""
    columns = (
        [*report.by_corpus.items()]
        if len(report.by_corpus) == 1
        else [*report.by_corpus.items(), ("in all", report.in_all)]
    )
    table = Table("", box=box.SIMPLE_HEAD)
    for name, _ in columns:
        table.add_column(Text(name), justify="right", overflow="fold")
    figures = [scores.to_dict() for _, scores in columns]
    for row in figures[0]:
        table.add_row(row, *(shown(one.get(row)) for one in figures))
    return table


def check_writable(path: Path | None) -> None:
    """Refuse a file that could not be written before the work for it is done; its folder is made if it is missing."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()


def shown(value: float | None) -> str:
    """A figure for a reader: counts in full, the rest with four digits."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
