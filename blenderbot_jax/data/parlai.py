"""ParlAI's text: episodes of lines, each with what is said to the bot and its reply.

The labels are what is learned; what is said to the bot is context alone, as in ParlAI. Of several labels the first is
taken, where ParlAI draws one: examples are the same every time.

References:
    ParlAI, `parlai/core/teachers.py` (`ParlAIDialogTeacher`) and `parlai/utils/misc.py` (`str_to_msg`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from blenderbot_jax.data.lines import BadLineError, Line
from blenderbot_jax.data.records import BOT, SILENCE, USER, Dialogue, split_persona


def episodes(lines: Iterable[Line]) -> Iterator[Dialogue | BadLineError]:
    """The episodes of a file, and its bad lines; an episode with a bad line is left out whole."""
    episode = _Episode()
    for line in lines:
        try:
            episode = episode.with_exchange(line)
        except ValueError as error:
            yield BadLineError(((line.where, str(error)),))
            episode = _Episode(broken=True)
        if _is_last(line.text):
            yield from episode.dialogue()
            episode = _Episode()
    yield from episode.dialogue()


def is_parlai(text: str) -> bool:
    """Whether a line is of this format."""
    names = {field.partition(":")[0] for field in text.split("\t") if ":" in field}
    return "text" in names and bool(names & {"labels", "eval_labels"})


@dataclass(frozen=True)
class _Episode:
    """The lines of an episode read so far."""

    where: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    personas: tuple[tuple[str, str], ...] = ()
    """(speaker, sentence), each once."""
    targets: tuple[int, ...] = ()
    broken: bool = False

    def with_exchange(self, line: Line) -> "_Episode":
        """The episode with what one more line holds."""
        fields = dict(_named(field) for field in line.sound().split("\t") if field)
        labels = fields.get("labels", fields.get("eval_labels"))
        if "text" not in fields or labels is None:
            raise ValueError(f"a line has a text: and a labels: field; this one has {', '.join(fields) or 'none'}")
        if self.broken:
            return self
        personas, said = split_persona(_plain(fields["text"]))
        reply = _plain(labels.split("|")[0])
        asked = ((USER, said),) if said.strip() and said.strip() != SILENCE else ()
        answered = ((BOT, reply),) if reply.strip() else ()
        sentences = [(owner, sentence) for owner, lines in personas.items() for sentence in lines]
        return _Episode(
            where=self.where or line.where,
            turns=(*self.turns, *asked, *answered),
            personas=tuple(dict.fromkeys((*self.personas, *sentences))),
            targets=(*self.targets, *(len(self.turns) + len(asked) for _ in answered)),
        )

    def dialogue(self) -> Iterator[Dialogue]:
        """The dialogue, if there is one."""
        if self.turns and not self.broken:
            owners = dict.fromkeys(owner for owner, _ in self.personas)
            personas = {name: tuple(line for owner, line in self.personas if owner == name) for name in owners}
            yield Dialogue(self.turns, personas, self.where, self.targets)


def _named(field: str) -> tuple[str, str]:
    name, _, value = field.partition(":")
    return name, value


def _plain(value: str) -> str:
    return value.replace("\\t", "\t").replace("\\n", "\n").replace("__PIPE__", "|")


def _is_last(text: str) -> bool:
    done = [value for name, value in map(_named, text.split("\t")) if name == "episode_done"]
    return any(value.strip().lower() not in ("", "false", "0") for value in done)
