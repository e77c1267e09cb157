"""`blenderbot-jax chat`: a conversation in the terminal."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import click
import jax
from rich.console import Console
from rich.markup import escape

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.cli.options import load_bot, model_and_decoding
from blenderbot_jax.dialogue import Conversation
from blenderbot_jax.files import write_text

_COMMANDS = """\
/persona TEXT   give the bot a trait, such as: /persona i love hiking.
/persona        show its traits (/persona clear takes them away)
/history        show what was said
/reset          begin anew with the same traits
/save FILE      write the conversation as JSON
/quit           end (so does end of input)"""


@click.command()
@click.option("--persona", multiple=True, metavar="TEXT", help="A trait of the bot, in the first person; repeatable.")
@model_and_decoding
def chat(persona: tuple[str, ...], **options: Any) -> None:
    """Talk with a model; it remembers the conversation as far as its limit of tokens reaches.

    \b
    Examples:
      blenderbot-jax chat
      blenderbot-jax chat --persona "i love hiking." --persona "i have two dogs."
      blenderbot-jax chat --model facebook/blenderbot-400M-distill --dtype bfloat16
    """
    console = Console(highlight=False)
    conversation = Conversation(persona=persona)
    bot, key = load_bot(**options)
    console.print("[dim]Say something, or /help. The first reply takes longer: it compiles.[/]")
    while True:
        try:
            line = console.input("[bold]you:[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line in ("/quit", "/exit"):
            return
        if line.startswith("/"):
            conversation = _obey(line, conversation, console)
        elif line:
            try:
                conversation = _answer(bot, conversation.add("user", line), key, console)
            except ValueError as error:
                # Such as a persona that leaves no room: what was said so far must not be lost over it.
                console.print(f"[red]{escape(str(error))}[/]")


def _answer(bot: Chatbot, conversation: Conversation, key: jax.Array | None, console: Console) -> Conversation:
    """Print the reply; the conversation with it."""
    now = None if key is None else jax.random.fold_in(key, len(conversation.turns))
    started = time.perf_counter()
    with console.status("thinking"):
        response = bot.respond(conversation, key=now)
    took = time.perf_counter() - started
    notes = [f"{took:.2f} s"]
    if response.dropped_turns:
        notes.append(f"{response.dropped_turns} older turns no longer fit")
    if response.dropped_tokens:
        notes.append(f"the first {response.dropped_tokens} tokens of your turn did not fit")
    console.print(f"[bold cyan]bot:[/] {escape(response.text)} [dim]({', '.join(notes)})[/]")
    return response.conversation


def _obey(line: str, conversation: Conversation, console: Console) -> Conversation:
    """Carry out a /command; the conversation after it."""
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command == "/persona":
        if rest:
            traits = () if rest == "clear" else (*conversation.persona, rest)
            conversation = dataclasses.replace(conversation, persona=traits)
        console.print("\n".join(map(escape, conversation.persona)) or "[dim]no traits[/]")
    elif command == "/history":
        for turn in conversation.turns:
            console.print(f"[bold]{turn.speaker}:[/] {escape(turn.text)}")
    elif command == "/reset":
        conversation = conversation.without_turns()
        console.print("[dim]forgotten[/]")
    elif command == "/save" and rest:
        _save(conversation, Path(rest), console)
    else:
        console.print(_COMMANDS, markup=False)
    return conversation


def _save(conversation: Conversation, path: Path, console: Console) -> None:
    try:
        write_text(path, json.dumps(dataclasses.asdict(conversation), indent=2, ensure_ascii=False) + "\n")
        console.print(f"[dim]saved to {escape(str(path))}[/]")
    except OSError as error:
        # A slip of the pen must not end the conversation.
        console.print(f"[red]not saved: {escape(str(error))}[/]")
