"""Self-chat: models that talk with each other, thousands of dialogues at once.

Every round, all dialogues that go on are answered as one list, in batches of one program each: its axis B is what a
`vmap` over dialogues would map over, folded into the batch, with a random stream of its own for every dialogue. So
dialogue i is the same whatever others are held beside it.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.data import Dialogue
from blenderbot_jax.dialogue import Conversation, Turn
from blenderbot_jax.files import write_text
from blenderbot_jax.responses import Prompt

SPEAKERS = ("A", "B")
OPENINGS = (
    "Hi! How are you today?",
    "Hello, what do you do for a living?",
    "I just moved here and do not know anybody yet.",
    "Do you like to cook?",
    "I saw a film last night that I cannot stop thinking about.",
    "What kind of music do you listen to?",
    "My dog woke me up at five this morning.",
    "I am planning a trip and cannot decide where to go.",
)
"""For those who bring none."""
Personas = Mapping[str, Sequence[str]]
_TURN = tuple[str, str]


def self_chat(
    bot: Chatbot,
    partner: Chatbot | None = None,
    *,
    openings: Sequence[str | Sequence[str]],
    turns: int,
    personas: Sequence[Personas] | None = None,
    key: jax.Array | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> list[Dialogue]:
    """Let a model talk with itself, or with another one.

    A speaks first. Each speaker reads the whole dialogue so far, as far as its model's positions reach, with its own
    persona in front. A dialogue ends early where a model says nothing at all.

    Args:
        bot: speaks for A, and for B where it has no partner.
        partner: speaks for B.
        openings: of each dialogue, what was said before it goes on: A's first turn, or several in turn.
        turns: of each dialogue in all, its opening included.
        personas: of each dialogue, sentences by speaker, "A" and "B"; None for none.
        key: a `jax.random.key`, needed if one of them samples, refused otherwise. Round r of dialogue i draws from
            stream i of `fold_in(key, r)`.
        on_progress: called with the number of turns just said, after each batch.

    Returns:
        A dialogue for each opening, in their order.

    Raises:
        ValueError: no openings, one that is empty or as long as the dialogue is to be; personas that do not fit; a key
            too many or too few. All of it before anything is said.

    Example:
        >>> bot = Chatbot.from_pretrained("demo").configured(num_beams=1, max_length=12)
        >>> for dialogue in self_chat(bot, openings=["Hi!", "Do you like music?"], turns=3):
        ...     print([speaker for speaker, _ in dialogue.turns])
        ['A', 'B', 'A']
        ['A', 'B', 'A']
    """
    bots: dict[str, Chatbot] = {"A": bot, "B": partner or bot}
    said = [_opened(opening, turns) for opening in openings]
    traits = _personas(personas, len(said))
    _check(bots, said, traits, key)
    for number in range(min(map(len, said)), turns):
        # Those of longer openings wait until it is their turn; those that ended stay behind for good.
        due = [i for i, one in enumerate(said) if len(one) == number]
        speaker = SPEAKERS[number % 2]
        chats = {i: _heard(said[i], speaker, traits[i].get(speaker, ())) for i in due}
        for i, text in _round(bots[speaker], chats, number, key, on_progress).items():
            if text:
                said[i].append((speaker, text))
    return [
        Dialogue(tuple(one), {speaker: tuple(lines) for speaker, lines in personas.items()})
        for one, personas in zip(said, traits, strict=True)
    ]


def dialogue_lines(dialogues: Iterable[Dialogue], name: str = "self-chat") -> str:
    """Dialogues as JSON, one a line, as `blenderbot_jax.data` reads them.

    Args:
        dialogues: what to write.
        name: what their ids begin with.

    Example:
        >>> print(dialogue_lines([Dialogue((("A", "Hi!"),))]), end="")
        {"dialogue_id": "self-chat-00000", "turns": [{"speaker": "A", "text": "Hi!"}]}
    """
    return "".join(
        json.dumps(_as_json(f"{name}-{i:05}", dialogue), ensure_ascii=False) + "\n"
        for i, dialogue in enumerate(dialogues)
    )


def write_dialogues(path: Path, dialogues: Iterable[Dialogue]) -> None:
    """Write dialogues as `dialogue_lines` gives them, the whole file or nothing."""
    write_text(path, dialogue_lines(dialogues))


def _opened(opening: str | Sequence[str], turns: int) -> list[_TURN]:
    """An opening as turns of A and B, checked as any turn is."""
    texts = (opening,) if isinstance(opening, str) else tuple(opening)
    if not 1 <= len(texts) < turns:
        raise ValueError(
            f"a dialogue of {turns} turns has an opening of at least 1 and at most {turns - 1}, not {len(texts)}: "
            "turns counts those of the opening too"
        )
    return [(SPEAKERS[i % 2], Turn("user", text).text) for i, text in enumerate(texts)]


def _personas(personas: Sequence[Personas] | None, count: int) -> Sequence[Personas]:
    if personas is None:
        return [{}] * count
    if len(personas) != count:
        raise ValueError(f"every dialogue has its personas: there are {count} openings and {len(personas)} personas")
    for one in personas:
        if strange := sorted(set(one) - set(SPEAKERS)):
            raise ValueError(f"personas are those of the speakers A and B, not of {', '.join(map(repr, strange))}")
    return personas


def _check(
    bots: Mapping[str, Chatbot], said: Sequence[list[_TURN]], traits: Sequence[Personas], key: jax.Array | None
) -> None:
    """Refuse now what would fail after some rounds: missing keys, and personas that leave no room for a turn."""
    if not said:
        raise ValueError("a self-chat needs at least one opening, such as 'Hi!'")
    draws = any(bot.generation_config.do_sample for bot in bots.values())
    if draws and key is None:
        raise ValueError("replies are drawn at random (do_sample=True): pass key=jax.random.key(seed)")
    if key is not None and not draws:
        raise ValueError("a key was given, but nothing is drawn: set do_sample=True, or leave the key out")
    for turns, personas in zip(said, traits, strict=True):
        for speaker, lines in personas.items():
            bots[speaker].checkpoint.encode(_heard(turns, speaker, lines))


def _heard(said: Sequence[_TURN], speaker: str, persona: Sequence[str]) -> Conversation:
    """A dialogue as one of its speakers takes part in it."""
    turns = tuple(Turn("bot" if who == speaker else "user", text) for who, text in said)
    return Conversation(turns, tuple(persona))


def _round(
    bot: Chatbot,
    chats: Mapping[int, Conversation],
    number: int,
    key: jax.Array | None,
    on_progress: Callable[[int], object] | None,
) -> dict[int, str]:
    """What a bot says in all dialogues where it is its turn, by their places."""
    prompts = {i: Prompt(chat, bot.checkpoint.encode(chat)) for i, chat in chats.items()}
    drawn = jax.random.fold_in(key, number) if key is not None and bot.generation_config.do_sample else None
    replies: dict[int, str] = {}
    for found in bot.answers(prompts, key=drawn):
        replies |= {i: response.text for i, response in found.items()}
        if on_progress:
            on_progress(len(found))
    return {i: replies[i] for i in chats}


def _as_json(name: str, dialogue: Dialogue) -> dict[str, object]:
    turns = [{"speaker": speaker, "text": text} for speaker, text in dialogue.turns]
    personas = {speaker: list(lines) for speaker, lines in dialogue.personas.items()}
    return {"dialogue_id": name, **({"personas": personas} if personas else {}), "turns": turns}
