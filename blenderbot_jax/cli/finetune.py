"""`blenderbot-jax finetune`: from files of dialogues to a folder that chats."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.progress import MofNCompleteColumn, Progress, TaskID, TextColumn

from blenderbot_jax.checkpoint import save_pretrained
from blenderbot_jax.cli.options import hub_options, progress_bar
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.data import (
    MAX_TARGET,
    Batches,
    Dialogue,
    Example,
    PackedExamples,
    dialogue_examples,
    read_dialogues,
)
from blenderbot_jax.dialogue import DialogueLayout
from blenderbot_jax.lora import LoraConfig, merge, save_lora
from blenderbot_jax.parallel import batch_share, gathered, initialize, make_mesh
from blenderbot_jax.planning import SIZES
from blenderbot_jax.pretrained import Checkpoint
from blenderbot_jax.processes import together
from blenderbot_jax.training import (
    TrainingConfig,
    TrainingFolderError,
    draw_curves,
    fit,
    read_log,
    tensorboard_log,
)
from blenderbot_jax.training.checkpoints import read_settings
from blenderbot_jax.training.config import PRESETS

# Option -> (field of TrainingConfig, type, help).
_SETTINGS: dict[str, tuple[str, Any, str]] = {
    "--steps": ("steps", click.IntRange(1), "Updates of the weights."),
    "--batch-size": ("batch_size", click.IntRange(1), "Examples of an update."),
    "--accumulate": ("accumulate", click.IntRange(1), "Parts in which a batch is computed, to save memory."),
    "--learning-rate": ("learning_rate", float, "At its highest."),
    "--optimizer": (
        "optimizer",
        click.Choice(["adamw", "adafactor", "adamax", "sgd"]),
        "Adafactor needs least memory.",
    ),
    "--schedule": ("schedule", click.Choice(["linear", "cosine", "constant", "plateau"]), "After the warm-up."),
    "--warmup-steps": ("warmup_steps", click.IntRange(0), "Steps until the rate is at its highest."),
    "--weight-decay": ("weight_decay", float, "Of kernels and embeddings."),
    "--clip-norm": ("clip_norm", float, "Longest gradient."),
    "--label-smoothing": ("label_smoothing", float, "Share of the mass that is spread over the vocabulary."),
    "--unlikelihood": ("unlikelihood", float, "Weight against words that a reply has had."),
    "--dtype": ("dtype", click.Choice(["float32", "bfloat16"]), "Of the computation; weights stay in float32."),
    "--remat/--no-remat": ("remat", bool, "Compute layers again instead of keeping them."),
    "--average": ("average", float, "Decay of a running mean of the weights, which is then kept."),
    "--seed": ("seed", click.IntRange(0, 2**32 - 1), "Of the order of examples and of dropout."),
    "--validate-every": ("validate_every", click.IntRange(1), "Steps between validations and checkpoints."),
    "--patience": ("patience", click.IntRange(1), "Validations without improvement until training ends."),
    "--metric": ("metric", click.Choice(["loss", "perplexity", "token_accuracy"]), "By which the best is told."),
}
WORK = "training"


def _settings(command: Any) -> Any:
    for flag, (field, kind, text) in reversed(_SETTINGS.items()):
        type_ = {} if kind is bool else {"type": kind}
        command = click.option(flag, field, default=None, help=text, **type_)(command)
    return command


@click.command(short_help="Train a model on dialogues.")
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="The new model's folder."
)
@click.option("--model", "name", default="demo", show_default=True, help="Folder, hub name, or demo, to begin with.")
@click.option("--valid", multiple=True, help="Files to validate on; repeatable.")
@click.option(
    "--preset", type=click.Choice([*PRESETS]), help="Published settings; without it, those of the model's size."
)
@click.option("--epochs", type=float, help="Times that every example is seen, instead of --steps.")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), help="Instead of the model's own.")
@click.option("--lora-rank", type=click.IntRange(1), help="Train adapters of this rank beside frozen weights.")
@click.option("--lora-alpha", type=float, default=16.0, show_default=True, help="Adapters count alpha / rank.")
@click.option("--lora-target", "targets", multiple=True, help="Kernels that are adapted; q_proj and v_proj without it.")
@click.option("--format", "format_", default=None, help="Of the files; told by their content without it.")
@click.option("--speaker", "speakers", multiple=True, help="Learn the replies of these speakers alone.")
@click.option("--skip-bad", is_flag=True, help="Leave out lines that cannot be read, and say so.")
@click.option("--max-source", type=click.IntRange(1), help="Tokens of context; the model's limit without it.")
@click.option("--max-target", type=click.IntRange(1), help=f"Tokens of a reply; {MAX_TARGET} without it.")
@click.option("--data", "data_axis", type=click.IntRange(1), help="Devices that share the batch; the rest without it.")
@click.option("--fsdp", type=click.IntRange(1), default=1, show_default=True, help="Devices that share weights too.")
@click.option("--tensor", type=click.IntRange(1), default=1, show_default=True, help="Devices that share each product.")
@click.option(
    "--keep", type=click.IntRange(1), default=2, show_default=True, help="Latest checkpoints kept, and the best."
)
@click.option("--coordinator", help="host:port of process 0, for processes that were started by hand.")
@click.option("--processes", type=click.IntRange(1), help="How many were started by hand.")
@click.option("--process", type=click.IntRange(0), help="Which of them this is.")
@click.option("--tensorboard", is_flag=True, help="Also write logs that TensorBoard shows.")
@click.option(
    "--resume", is_flag=True, help="Go on where a training in this folder was stopped; give the same options."
)
@_settings
@hub_options
def finetune(files: tuple[str, ...], output: Path, name: str, resume: bool, **options: Any) -> None:
    """Train a model on the dialogues of FILES, and write the result to a folder that chat, reply and transformers load.

    FILES hold dialogues as JSON Lines, in ParlAI's formats, or pairs of context and reply. Ctrl-C and SIGTERM save and
    end; the same command with --resume goes on as if nothing had happened.

    \b
    Examples:
      blenderbot-jax finetune talk.jsonl --output my-bot --steps 300
      blenderbot-jax finetune talk.jsonl --valid held-out.jsonl --output my-bot --lora-rank 8
      blenderbot-jax finetune talk.jsonl --model facebook/blenderbot-400M-distill --output my-bot --dtype bfloat16
      blenderbot-jax chat --model my-bot
    """
    initialize(options["coordinator"], options["processes"], options["process"])
    work = output / WORK
    _check_folder(output, work, resume)
    mesh = _mesh(options)
    checkpoint = _checkpoint(name, mesh, options)
    reading = _Reading(checkpoint, options, mesh)
    examples = reading.examples(files)
    if examples is None:
        raise click.UsageError("name files to learn from")
    config = _config(checkpoint.model.config, len(examples), options)
    data = reading.batches(examples, config, shuffle=True)
    held_out = reading.examples(options["valid"])
    valid = [*reading.batches(held_out, config, shuffle=False).epoch(0)] if held_out else None
    _say(
        f"{len(examples):,} examples in {len(data):,} batches of {config.batch_size}"
        + (f", {len(held_out):,} to validate on" if held_out else "")
        + f"; {config.steps:,} steps of {config.optimizer} at {config.learning_rate:g}"
    )
    with progress_bar(MofNCompleteColumn(), TextColumn("{task.fields[said]}")) as progress, together():
        shown = _Shown(progress, progress.add_task("steps", total=config.steps, said=""))
        trained = fit(
            checkpoint.model,
            checkpoint.params,
            data,
            config,
            valid=valid,
            folder=work,
            resume=resume,
            keep=options["keep"],
            mesh=mesh,
            logs=[shown, *([tensorboard_log(work / "tensorboard")] if options["tensorboard"] and _speaks() else [])],
            on_warning=lambda text: click.echo(f"warning: {text}", err=True),
        )
        weights, frozen = gathered((trained.weights, checkpoint.params if config.lora else {}))
    if trained.ended == "stopped":
        _say(f"Stopped after {trained.step:,} steps, and saved: go on with the same command and --resume.")
    elif _speaks():
        _write(output, replace(checkpoint, params=frozen), weights, config, name)
        _draw(work)
        _report(output, trained.step, trained.ended, trained.best, config)


def _speaks() -> bool:
    """Whether this process prints and writes: the first of them does."""
    return jax.process_index() == 0


def _say(text: str) -> None:
    if _speaks():
        click.echo(text)


def _mesh(options: Mapping[str, Any]) -> Mesh | None:
    if len(jax.devices()) > 1:
        return make_mesh(data=options["data_axis"] or -1, fsdp=options["fsdp"], tensor=options["tensor"])
    if options["fsdp"] * options["tensor"] * (options["data_axis"] or 1) > 1:
        raise click.UsageError("there is one device, so --data, --fsdp and --tensor are 1")
    return None


def _checkpoint(name: str, mesh: Mesh | None, options: Mapping[str, Any]) -> Checkpoint:
    found = Checkpoint.from_pretrained(
        name, mesh=mesh, revision=options["revision"], local_files_only=options["local_only"]
    )
    if options["dropout"] is None:
        return found
    return replace(found, model=found.model.clone(config=found.model.config.replace(dropout=options["dropout"])))


def _check_folder(output: Path, work: Path, resume: bool) -> None:
    there = read_settings(work) is not None
    if resume and not there:
        raise TrainingFolderError(f"{output} holds no training to resume: leave out --resume")
    if not resume and there:
        raise TrainingFolderError(f"{output} holds a training already: add --resume, or take another --output")
    if not resume and (output / "config.json").exists():
        raise TrainingFolderError(
            f"{output} holds a model already, and training would replace it: take another --output"
        )


def _config(model: BlenderbotConfig, examples: int, options: Mapping[str, Any]) -> TrainingConfig:
    given = {field: options[field] for field, _, _ in _SETTINGS.values() if options[field] is not None}
    size = options["preset"] or _size(model)
    if options["epochs"] is not None:
        if "steps" in given:
            raise click.UsageError("say --steps or --epochs: both tell how long to train")
        batch = given.get("batch_size", PRESETS[size].get("batch_size", TrainingConfig.batch_size))
        given["steps"] = max(math.ceil(options["epochs"] * examples / batch), 1)
    if "schedule" not in given and not options["valid"] and PRESETS[size].get("schedule") == "plateau":
        # Nothing tells a plateau without validation.
        given |= {"schedule": "linear", "patience": None}
    if options["lora_rank"] is not None:
        targets = options["targets"] or LoraConfig.targets
        given["lora"] = LoraConfig(options["lora_rank"], options["lora_alpha"], targets)
    config = TrainingConfig.preset(size, **given)
    return (
        config.replace(warmup_steps=min(config.warmup_steps, config.steps // 10))
        if "warmup_steps" not in given
        else config
    )


def _size(model: BlenderbotConfig) -> str:
    """The published size of this depth and width."""
    same = (name for name, made in SIZES.items() if _shape(made()) == _shape(model))
    return next(same, "demo")


def _shape(model: BlenderbotConfig) -> tuple[int, int]:
    return model.d_model, model.decoder_layers


@dataclass(frozen=True)
class _Reading:
    """How files become batches for a checkpoint."""

    checkpoint: Checkpoint
    options: Mapping[str, Any]
    mesh: Mesh | None

    def examples(self, files: tuple[str, ...]) -> PackedExamples | None:
        """Of all files, in their order; None of no files."""
        skip = self.options["skip_bad"]
        skipped = {"skip_bad": True, "on_bad": _left_out} if skip else {}
        dialogues = read_dialogues(files, format=self.options["format_"], **skipped)
        return PackedExamples.of(self._made(dialogues, skip)) if files else None

    def _made(self, dialogues: Iterable[Dialogue], skip: bool) -> Iterator[Example]:
        tokenizer, limit = self.checkpoint.tokenizer, self.checkpoint.model.config.max_position_embeddings
        layout, options = DialogueLayout.of(tokenizer), self.options
        for dialogue in dialogues:
            try:
                yield from dialogue_examples(
                    dialogue,
                    tokenizer,
                    max_source=min(options["max_source"] or tokenizer.model_max_length or limit, limit),
                    max_target=min(options["max_target"] or MAX_TARGET, limit),
                    speakers=options["speakers"] or None,
                    layout=layout,
                )
            except ValueError as error:  # such as a persona that leaves no room
                if not skip:
                    raise
                _left_out(error)

    def batches(self, examples: PackedExamples, config: TrainingConfig, *, shuffle: bool) -> Batches:
        """In fixed shapes, this process's share of each."""
        share, shares = (0, 1) if self.mesh is None else batch_share(self.mesh)
        pad = self.checkpoint.model.config.pad_token_id or 0
        return Batches(
            examples,
            config.batch_size,
            seed=config.seed,
            shuffle=shuffle,
            pad_token_id=pad,
            process_index=share,
            process_count=shares,
        )


def _left_out(error: ValueError) -> None:
    click.echo(f"left out: {error}", err=True)


@dataclass(frozen=True)
class _Shown:
    """A log that moves the progress bar."""

    progress: Progress
    task: TaskID

    def __call__(self, record: Mapping[str, Any]) -> None:
        if "train/loss" in record:
            said = f"loss {record['train/loss']:.3f}, {record['train/tokens_per_second']:,.0f} tokens/s"
            self.progress.update(self.task, completed=record["step"], said=said)
        if "valid/perplexity" in record:
            self.progress.console.print(
                f"step {record['step']:,}: perplexity {record['valid/perplexity']:.2f}, "
                f"{record['valid/token_accuracy']:.1%} of tokens right"
            )


def _write(output: Path, checkpoint: Checkpoint, weights: Any, config: TrainingConfig, name: str) -> None:
    weights = jax.device_get(weights)
    params = weights
    if config.lora is not None:
        save_lora(output / "adapter", weights, config.lora, base=name)
        params = merge(checkpoint.params, jax.tree.map(jnp.asarray, weights), config.lora)
    save_pretrained(output, checkpoint.model.config, params, checkpoint.generation_config, checkpoint.tokenizer)


def _draw(work: Path) -> None:
    try:
        draw_curves(read_log(work), work / "curves.svg")
    except ImportError as error:
        click.echo(f"No picture of the curves: {error}", err=True)


def _report(output: Path, step: int, ended: str, best: float | None, config: TrainingConfig) -> None:
    best_said = "" if best is None else f", best {config.metric} {best:.4g}"
    click.echo(f"{output}: {step:,} steps ({ended}){best_said}")
    click.echo(f"Talk to it: blenderbot-jax chat --model {output}")
