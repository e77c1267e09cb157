"""`blenderbot-jax chat`: a conversation in the terminal."""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import click
import jax
from rich.console import Console
from rich.text import Text

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.cli.options import blocked_note, load_bot, model_and_decoding, speaking_options, standard_input
from blenderbot_jax.cli.warming import Warming
from blenderbot_jax.dialogue import Conversation
from blenderbot_jax.files import write_text
from blenderbot_jax.long_conversations import explain_cut, explain_persona, room_for_turns, summary

_COMMANDS = """\
/persona TEXT   give the bot a trait, such as: /persona i love hiking.
/persona        show its traits (/persona clear takes them away)
/history        show what was said, and how much of it the model still reads
/reset          begin anew with the same traits
/save FILE      write the conversation as JSON
/help           show this
/quit           end (so do Ctrl-D and Ctrl-C)"""


@click.command(short_help="Talk with a model in the terminal.")
@click.option("--persona", multiple=True, metavar="TEXT", help="A trait of the bot, in the first person; repeatable.")
@speaking_options
@model_and_decoding
def chat(persona: tuple[str, ...], **options: Any) -> None:
    """Talk with a model; it remembers the conversation as far as its limit of tokens reaches.

    \b
    Examples:
      blenderbot-jax chat
      blenderbot-jax chat --persona "i love hiking." --persona "i have two dogs."
      blenderbot-jax chat --model facebook/blenderbot-400M-distill --dtype bfloat16
    """
    # Only a terminal has lines to break; a file or a pipe gets them whole. `:smile:` stays as it was said.
    console = Console(highlight=False, emoji=False)
    console.soft_wrap = not console.is_terminal
    conversation = Conversation(persona=persona)
    lines = _typed(console)
    _say(console, f"Loading {options['name']}.", "dim")
    bot, key = load_bot(**options)
    bot = bot.prepared(donate=True)
    _mind_persona(conversation, bot, console)
    told: tuple[str, ...] = ()
    _say(console, "Say something, or /help. The first reply of each length may take longer: it compiles.", "dim")
    # Somebody who types leaves time to compile in; a pipe does not.
    with Warming(bot, conversation) if _types() else nullcontext():
        for line in lines:
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                conversation = _obey(line, conversation, bot, console)
            elif line:
                asked = conversation.add("user", line)
                answered = _attempt(bot, asked, key, console)
                if answered is not None:
                    told, conversation = _tell_cuts(asked, told, bot, console), answered


def _attempt(bot: Chatbot, asked: Conversation, key: jax.Array | None, console: Console) -> Conversation | None:
    """Answer the newest turn; the conversation after it, or None if there is no answer."""
    try:
        return _answer(bot, asked, key, console)
    except ValueError as error:
        # Such as a persona that leaves no room: what was said so far must not be lost over it.
        _say(console, str(error), "red")
    except KeyboardInterrupt:
        _say(console, "stopped; your turn is forgotten", "dim")
    return None


def _tell_cuts(asked: Conversation, told: tuple[str, ...], bot: Chatbot, console: Console) -> tuple[str, ...]:
    """Say what the model could not read of a conversation, unless it was told after the turn before."""
    lines = explain_cut(asked, bot.checkpoint.tokenizer, _limit(bot))
    for line in lines:
        if line not in told:
            _say(console, line, "yellow")
    return lines


def _mind_persona(conversation: Conversation, bot: Chatbot, console: Console) -> None:
    """Say so where the persona leaves less than half of the tokens to what is said."""
    tokenizer, limit = bot.checkpoint.tokenizer, _limit(bot)
    if conversation.persona and 2 * room_for_turns(conversation, tokenizer, limit) < limit:
        _say(console, explain_persona(conversation, tokenizer, limit), "yellow")


def _limit(bot: Chatbot) -> int:
    """The most tokens that the bot reads."""
    return bot.checkpoint.encode(Conversation().add("user", "hi")).max_tokens


def _say(console: Console, text: str, style: str = "") -> None:
    """Print text as it is: no markup."""
    console.print(Text(text, style))


def _typed(console: Console) -> Iterator[str]:
    """The lines of standard input, without surrounding white space, until it ends."""
    if sys.stdin is None:
        raise click.UsageError("chat reads standard input, which is closed")
    return _from_keyboard(console) if _types() else _from_pipe(console)


def _types() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _from_keyboard(console: Console) -> Iterator[str]:
    with suppress(ImportError):  # not on every platform
        import readline  # noqa: F401, PLC0415  (its import gives `input` arrow keys and a history)
    # Between \001 and \002 stands what readline must not count as columns.
    prompt = "\001\033[1m\002you:\001\033[0m\002 " if console.is_terminal and console.color_system else "you: "
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            # readline lets bytes through that are no UTF-8; they become replacement characters.
            yield input(prompt).encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()
    console.print()


def _from_pipe(console: Console) -> Iterator[str]:
    for line in standard_input("replace"):
        # Nobody has seen it typed: repeated, what comes out reads as a dialogue.
        console.print(Text.assemble(("you: ", "bold"), line.strip()))
        yield line.strip()


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
    console.print(
        Text.assemble(("bot: ", "bold cyan"), response.text or "(nothing)", (f" ({', '.join(notes)})", "dim"))
    )
    for one in response.blocked:
        _say(console, blocked_note(one), "yellow")
    return response.conversation


def _obey(line: str, conversation: Conversation, bot: Chatbot, console: Console) -> Conversation:
    """Carry out a /command; the conversation after it."""
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command == "/persona":
        if rest:
            traits = () if rest == "clear" else (*conversation.persona, rest)
            conversation = dataclasses.replace(conversation, persona=traits)
        _say(console, "\n".join(conversation.persona) or "no traits", "" if conversation.persona else "dim")
        if rest:
            _mind_persona(conversation, bot, console)
    elif command == "/history":
        _show_history(conversation, bot, console)
    elif command == "/reset":
        conversation = conversation.without_turns()
        _say(console, "forgotten", "dim")
    elif command == "/save":
        _save(conversation, rest, console)
    else:
        if command != "/help":
            _say(console, f"there is no {command}", "red")
        _say(console, _COMMANDS)
    return conversation


def _show_history(conversation: Conversation, bot: Chatbot, console: Console) -> None:
    """Print what was said; dimmed, what the model does not read of it any more."""
    if not conversation.turns:
        _say(console, "nothing was said yet", "dim")
        return
    dropped, cut = 0, 0
    try:
        encoded = bot.checkpoint.encode(conversation)
        dropped, cut, said = encoded.dropped_turns, encoded.dropped_tokens, (summary(conversation, encoded), "dim")
    except ValueError as error:  # such as traits that leave no room
        said = (str(error), "red")
    for number, turn in enumerate(conversation.turns, start=1):
        unread = number <= dropped
        note = f" (its first {cut} tokens are not read)" if cut and number == len(conversation.turns) else ""
        parts = (f"{turn.speaker}: ", "bold"), turn.text, (" (no longer read)" if unread else note, "dim")
        console.print(Text.assemble(*parts, style="dim" if unread else ""))
    _say(console, *said)


def _save(conversation: Conversation, name: str, console: Console) -> None:
    if not name:
        _say(console, "not saved: name a file, as in /save talk.json", "red")
        return
    path = Path(name).expanduser()
    try:
        write_text(path, json.dumps(dataclasses.asdict(conversation), indent=2, ensure_ascii=False) + "\n")
        _say(console, f"saved to {path}", "dim")
    except (OSError, ValueError, RuntimeError) as error:
        # A slip of the pen must not end the conversation.
        _say(console, f"not saved: {error}", "red")
