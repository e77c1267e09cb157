"""What is measured: workloads by name, and the prompts and decoding rules of each.

A workload's name says what it is: `400m-b8-beam10` is 8 prompts of 32 tokens under 10 beams and exactly 59 steps;
`-p64` and `-n20` change the prompt's and the reply's length; `-real` takes prompts and reply lengths of conversations.
"""

import fnmatch
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.calls import Call
from benchmarks.shapes import DEMO, config_of
from blenderbot_jax import BlenderbotTokenizer, Conversation
from blenderbot_jax.dialogue import DialogueTokenizer

PRECISIONS = ("f32", "bf16", "int8")
SETS = {
    "main": ("400m-b1-beam10", "400m-b1-greedy", "400m-b1-beam10-real", "demo-b1-beam10-real"),
    "batch": ("400m-b8-greedy", "400m-b8-beam10", "400m-b32-greedy-real", "demo-b32-beam10-real"),
    "sizes": (
        "1b-b1-greedy-n20",
        "1b-b1-beam10-n20",
        *(f"3b-b1-{rule}-n20-{precision}" for rule in ("greedy", "beam10") for precision in PRECISIONS[1:]),
    ),
    "quick": ("2x64-b1-beam4-n12", "2x64-b2-greedy-n12", "2x64-b1-greedy-real"),
}
SIX_PROMPTS = 6  # of a -real workload with batch 1, one after the other
PROMPT_TOKENS, NEW_TOKENS = 32, 59

_SHORTEST, _LONGEST = 20, 128  # prompts of -real workloads
# Replies of the real 2.7B model have 17 to 31 tokens, 90 % of them 19 to 25.
_REPLY_MEAN, _REPLY_SPREAD, _REPLY_RANGE = 22, 1.8, (17, 31)
_CONVERSATIONS = 300


@dataclass(frozen=True)
class Workload:
    """One row of the measurements, read from its name."""

    size: str
    batch: int
    beams: int
    prompt_tokens: int = PROMPT_TOKENS
    new_tokens: int = NEW_TOKENS
    real: bool = False

    @classmethod
    def parse(cls, name: str) -> "Workload":
        """Read a name.

        Raises:
            ValueError: a name that is none.

        Example:
            >>> Workload.parse("400m-b8-beam10-n20").name
            '400m-b8-beam10-n20'
        """
        found = re.fullmatch(r"(\w+)-b(\d+)-(?:greedy|beam(\d+))(?:-p(\d+))?(?:-n(\d+))?(-real)?", name)
        if found is None or (found[6] and (found[4] or found[5])):
            raise ValueError(
                f"{name!r} names no workload: say SIZE-bBATCH-greedy or SIZE-bBATCH-beamWIDTH, then -pPROMPT and "
                "-nREPLY in tokens, or -real, such as 400m-b8-beam10-p64"
            )
        config_of(found[1])
        prompt, new = int(found[4] or PROMPT_TOKENS), int(found[5] or NEW_TOKENS)
        return cls(found[1], int(found[2]), int(found[3] or 1), prompt, new, bool(found[6]))

    @property
    def name(self) -> str:
        """What `parse` reads."""
        parts = [self.size, f"b{self.batch}", "greedy" if self.beams == 1 else f"beam{self.beams}"]
        if self.prompt_tokens != PROMPT_TOKENS:
            parts.append(f"p{self.prompt_tokens}")
        if self.new_tokens != NEW_TOKENS:
            parts.append(f"n{self.new_tokens}")
        return "-".join([*parts, "real"] if self.real else parts)


def calls(workload: Workload) -> list[Call]:
    """The calls that make one round of a workload; the same for all programs."""
    if not workload.real:
        vocabulary = config_of(workload.size).vocab_size
        rows = np.random.default_rng(0).integers(4, vocabulary, (workload.batch, workload.prompt_tokens))
        rows[:, -1] = 2
        length = workload.new_tokens + 1
        return [Call(_rows(rows.tolist()), workload.beams, length, length)]
    prompts = _prompts(workload.size)
    batches = _spread(prompts, SIX_PROMPTS, 1) if workload.batch == 1 else _spread(prompts, 1, workload.batch)
    if workload.size == DEMO:  # it was trained, and ends its replies by itself
        return [Call(_rows(batch), workload.beams, 20, 60) for batch in batches]
    drawn = np.random.default_rng(1).normal(_REPLY_MEAN, _REPLY_SPREAD, (len(batches), workload.batch))
    lengths = np.clip(np.rint(drawn), *_REPLY_RANGE).astype(int).max(axis=1)  # a batch ends with its longest reply
    return [
        Call(_rows(batch), workload.beams, int(n), 60, stop=int(n)) for batch, n in zip(batches, lengths, strict=True)
    ]


def select(names: Iterable[str]) -> Iterator[tuple[Workload, tuple[str, ...]]]:
    """Workloads and precisions from names: `400m-b1-beam10-f32` is one precision, `400m-b1-*` what the sets have of it.

    Raises:
        ValueError: a name that is no workload, or a pattern that nothing matches.
    """
    members = [name for key, found in SETS.items() if key != "quick" for name in found]
    known = list(dict.fromkeys(_split(name)[0] for name in members))
    chosen: dict[str, list[str]] = {}
    for name in names:
        bare, precisions = _split(name)
        matches = fnmatch.filter(known, bare) if "*" in bare else [Workload.parse(bare).name]
        if not matches:
            raise ValueError(f"no workload matches {name!r}; there are {', '.join(known)}")
        for match in matches:
            chosen.setdefault(match, []).extend(precisions)
    for name, precisions in chosen.items():
        yield Workload.parse(name), tuple(each for each in PRECISIONS if each in precisions)


def _split(name: str) -> tuple[str, tuple[str, ...]]:
    """A name without its precision, and the precisions it stands for."""
    bare, _, last = name.rpartition("-")
    return (bare, (last,)) if last in PRECISIONS else (name, PRECISIONS)


def _rows(rows: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    found = [tuple(row) for row in rows]
    width = max(map(len, found))
    return tuple(row + (0,) * (width - len(row)) for row in found)


def _spread(prompts: list[list[int]], batches: int, batch: int) -> list[list[list[int]]]:
    """Prompts evenly from the shortest to the longest, shuffled within a batch."""
    places = np.linspace(0, len(prompts) - 1, batches * batch).round().astype(int).reshape(batches, batch)
    return [[prompts[place] for place in np.random.default_rng(2).permutation(row)] for row in places]


@cache
def _prompts(size: str) -> list[list[int]]:
    """Prompts of 20 to 128 tokens, by length: conversations of the data folder, or random ids without one."""
    data, limit = os.environ.get("BLENDERBOT_JAX_DATA"), config_of(size).vocab_size
    if not data:
        rng = np.random.default_rng(3)
        lengths = sorted(rng.integers(_SHORTEST, _LONGEST + 1, _CONVERSATIONS).tolist())
        return [[*rng.integers(4, limit, n - 1).tolist(), 2] for n in lengths]
    name = DEMO if size == DEMO else Path(data, "tokenizers", "blenderbot-400M-distill")
    tokenizer = BlenderbotTokenizer.from_pretrained(name)
    found = [list(encoded) for encoded in _conversations(Path(data, "dialogues"), tokenizer)]
    clipped = ([min(token, limit - 1) for token in ids] for ids in found if _SHORTEST <= len(ids) <= _LONGEST)
    return sorted(clipped, key=len)


def _conversations(folder: Path, tokenizer: DialogueTokenizer) -> Iterator[tuple[int, ...]]:
    """The beginnings of dialogues, each cut at a random turn."""
    rng = np.random.default_rng(4)
    lines = [line for path in sorted(folder.glob("*.valid.jsonl")) for line in path.open(encoding="utf-8")]
    for index in rng.permutation(len(lines))[:_CONVERSATIONS]:
        turns = [turn["text"] for turn in json.loads(lines[index])["turns"] if turn["text"].strip()]
        conversation = Conversation()
        for place, text in enumerate(turns[: rng.integers(1, len(turns) + 1)]):
            conversation = conversation.add("user" if place % 2 == 0 else "bot", text)
        yield conversation.encode(tokenizer, _LONGEST).input_ids
