"""`blenderbot-jax explain`: how likely each token of a reply was, and which tokens of the context moved it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from blenderbot_jax.attribution import METHODS, Method, attribution
from blenderbot_jax.checks import check_positions
from blenderbot_jax.cli.options import load_checkpoint, model_options, output_console
from blenderbot_jax.dialogue import Conversation
from blenderbot_jax.generation import generate
from blenderbot_jax.plotting import check_picture, plot_attribution
from blenderbot_jax.pretrained import Checkpoint
from blenderbot_jax.quantize import is_quantized
from blenderbot_jax.scoring import token_log_probs

_RED, _BLUE, _WHITE = np.array([[244, 140, 110], [120, 170, 230], [255, 255, 255]])


@dataclass(frozen=True)
class _Explanation:
    """A reply of T tokens to a context of S."""

    context: tuple[str, ...]
    reply: tuple[str, ...]
    log_probs: np.ndarray
    """[T]."""
    weights: np.ndarray
    """[T, S]."""
    signed: bool
    """Whether the weights are nats that push either way, or shares."""

    @property
    def in_all(self) -> np.ndarray:
        """[S], for the reply as a whole: log-probabilities add up, and so do their gradients; shares are averaged."""
        return self.weights.sum(axis=0) if self.signed else self.weights.mean(axis=0)


@click.command(short_help="Show which tokens of a context moved a reply.")
@click.argument("context")
@click.argument("reply", required=False)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="gradient_x_input",
    show_default=True,
    help="What moved a token, in nats for or against it; or where the model looked, in shares.",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=3, show_default=True, help="Tokens of the context shown for each."
)
@click.option(
    "--plot",
    "picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw all weights as a heat map: a .png, .svg or .pdf file.",
)
@model_options
def explain(
    context: str,
    reply: str | None,
    method: Method,
    top: int,
    picture: Path | None,
    **loading: Any,
) -> None:
    """Show how likely each token of REPLY is after CONTEXT, and which tokens of the context moved it most.

    Without a REPLY, the model's own is explained. A token that the context holds twice is numbered: you#2 is the second
    "you". log p is in nats. Take the weights as a hint: a gradient sees small changes only, and attention is no proof
    that a token mattered.

    \b
    Examples:
      blenderbot-jax explain "Do you like dogs or cats?"
      blenderbot-jax explain "Do you like dogs or cats?" "I love dogs."
      blenderbot-jax explain "Hi there!" --method cross_attention --plot looks.png
    """
    if reply is not None and not reply.strip():
        raise click.UsageError("the REPLY is empty: leave it out to explain the model's own")
    chat = Conversation().add("user", context)
    if picture is not None:
        _check_picture(picture)
    checkpoint = load_checkpoint(**loading)
    if method == "gradient_x_input" and is_quantized(checkpoint.params):
        raise click.UsageError("weights in 8 bits have no gradients: take --method cross_attention, or other weights")
    console = output_console()
    explanation = _explain(checkpoint, _context_ids(checkpoint, chat), reply, method)
    console.print(_shaded(explanation))
    console.print(_table(explanation, top))
    if picture is not None:
        label = "nats" if explanation.signed else "share of attention"
        plot_attribution(explanation.weights, explanation.context, explanation.reply, picture, label=label)
        console.print(Text(f"drawn in {picture}", "dim"))


def _check_picture(path: Path) -> None:
    """Refuse what could not be drawn before a model is loaded for it."""
    try:
        check_picture(path)
    except ImportError as error:
        raise click.UsageError(str(error)) from error


def _context_ids(checkpoint: Checkpoint, chat: Conversation) -> list[int]:
    """The prompt as `Chatbot` would give it to the model."""
    encoded = checkpoint.encode(chat)
    if encoded.dropped_tokens:
        click.echo(f"the first {encoded.dropped_tokens} tokens of the context did not fit and are left out", err=True)
    return list(encoded.input_ids)


def _explain(checkpoint: Checkpoint, context: list[int], reply: str | None, method: Method) -> _Explanation:
    labels = _own_reply(checkpoint, context) if reply is None else _reply_ids(checkpoint, reply)
    source, target = np.array([context], np.int32), np.array([labels], np.int32)
    batch = (checkpoint.model, checkpoint.params, source, np.ones_like(source), target)
    return _Explanation(
        context=tuple(_shown(checkpoint, token) for token in context),
        reply=tuple(_shown(checkpoint, token) for token in labels),
        log_probs=np.asarray(token_log_probs(*batch))[0],
        weights=np.asarray(attribution(*batch, method=method))[0],
        signed=method == "gradient_x_input",
    )


def _own_reply(checkpoint: Checkpoint, context: list[int]) -> list[int]:
    """The ids of the model's best reply under its own recipe, without the start token."""
    config = checkpoint.generation_config
    key = jax.random.key(0) if config.do_sample else None
    out = generate(checkpoint.model, checkpoint.params, np.array([context]), config=config, key=key)
    return np.asarray(out.sequences)[0, 0, 1 : int(out.lengths[0, 0])].tolist()


def _reply_ids(checkpoint: Checkpoint, reply: str) -> list[int]:
    """The ids of a reply with its end token, as the model would have written it."""
    tokenizer = checkpoint.tokenizer
    ids = tokenizer.encode(reply.strip(), add_special_tokens=False, split_special_tokens=True)
    labels = [*ids, tokenizer.eos_token_id]
    check_positions("the REPLY", len(labels), checkpoint.model.config.max_position_embeddings)
    return labels


def _shown(checkpoint: Checkpoint, token: int) -> str:
    """A token for a reader: its text, or its name in the vocabulary where it has none of its own."""
    text = checkpoint.tokenizer.decode([token]).strip()
    return checkpoint.tokenizer.convert_ids_to_tokens(token) if not text or "\ufffd" in text else text


def _shaded(explanation: _Explanation) -> Text:
    """The context, on red where a token made the reply likelier (or was looked at), on blue where less so."""
    weights = explanation.in_all
    strengths = weights / (np.abs(weights).max() or 1.0)
    text = Text.assemble(("context: ", "bold"))
    for token, strength in zip(explanation.context, strengths, strict=True):
        text.append(token, _shade(float(strength))).append(" ")
    return text


def _shade(strength: float) -> str:
    """The style of a token of strength -1 to 1; the weakest stay as they are."""
    if abs(strength) < 0.1:
        return ""
    colour = _WHITE + abs(strength) * ((_RED if strength > 0 else _BLUE) - _WHITE)
    return "black on #" + "".join(f"{round(part):02x}" for part in colour.tolist())


def _table(explanation: _Explanation, top: int) -> Table:
    table = Table("reply", box=box.SIMPLE_HEAD, show_footer=True)
    total = float(explanation.log_probs.sum())
    names = _numbered(explanation.context)
    table.columns[0].footer = Text("in all", "bold")
    table.add_column("log p", Text(f"{total:.2f}", "bold"), justify="right")
    last = _strongest(names, explanation.in_all, top, explanation.signed)
    table.add_column("moved most by" if explanation.signed else "looked most at", last, overflow="fold")
    for token, log_prob, weights in zip(explanation.reply, explanation.log_probs, explanation.weights, strict=True):
        table.add_row(Text(token), f"{log_prob:.2f}", _strongest(names, weights, top, explanation.signed))
    return table


def _numbered(tokens: tuple[str, ...]) -> list[str]:
    """Tokens that can be told apart: those that occur more than once carry their number."""
    often, seen = Counter(tokens), Counter[str]()
    names = []
    for token in tokens:
        seen[token] += 1
        names.append(f"{token}#{seen[token]}" if often[token] > 1 else token)
    return names


def _strongest(names: list[str], weights: np.ndarray, top: int, signed: bool) -> Text:
    """The tokens of largest weight, either sign, largest first."""
    text = Text()
    for place in np.argsort(-np.abs(weights), kind="stable")[:top]:
        weight = float(weights[place])
        shown, style = (f"{weight:+.2f}", _sign(weight)) if signed else (f"{weight:.0%}", "dim")
        text.append("  " if text else "").append(f"{names[place]} ").append(shown, style)
    return text


def _sign(weight: float) -> str:
    return "red" if weight > 0 else "blue"
