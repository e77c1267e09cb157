"""How varied whole dialogues are: whether their speakers go round in circles."""

from collections import Counter
from collections.abc import Sequence

from blenderbot_jax.data import Dialogue
from blenderbot_jax.evaluation.diversity import inter_distinct, mean, mean_words
from blenderbot_jax.evaluation.text import ngrams, normalized, words


def dialogue_metrics(dialogues: Sequence[Dialogue], given: int = 0) -> dict[str, float]:
    """Measure dialogues that models held.

    Args:
        dialogues: what was said.
        given: turns at the beginning of each that no model said: they count as said before, and are not measured.

    Returns:
        Values by name:
        `turns`: mean number a dialogue, those given left out.
        `words`: mean number a turn, counted at white space.
        `distinct-1`, `distinct-2`: distinct n-grams / n-grams of a dialogue's turns, mean over dialogues.
        `interdistinct-1`, `interdistinct-2`: the same over all dialogues together.
        `repeated-3`: the share of trigrams that an earlier turn of the dialogue had, whoever said it.
        `repeating_turns`: the share of turns that say an earlier turn of the dialogue again, up to case, punctuation
        and articles.
        `circling`: the share of dialogues with such a turn.

    Raises:
        ValueError: no dialogues, or none with a turn past those given.

    Example:
        >>> said = (("A", "Hi!"), ("B", "Do you like music?"), ("A", "Do you like music?"), ("B", "I do."))
        >>> found = dialogue_metrics([Dialogue(said)], given=1)
        >>> found["turns"], found["repeating_turns"], found["repeated-3"], found["circling"]
        (3.0, 0.3333333333333333, 0.5, 1.0)
    """
    texts = [[text for _, text in dialogue.turns] for dialogue in dialogues]
    measured = [turns[given:] for turns in texts]
    if not any(measured):
        raise ValueError("there is nothing to measure: no dialogue has a turn that was not given")
    every = [text for turns in measured for text in turns]
    again = [_says_again(turns)[given:] for turns in texts]
    return {
        "turns": mean(map(len, measured)),
        "words": mean_words(every),
        **{f"distinct-{n}": mean(inter_distinct(turns, n) for turns in measured if turns) for n in (1, 2)},
        **{f"interdistinct-{n}": inter_distinct(every, n) for n in (1, 2)},
        "repeated-3": _repeated(texts, given, 3),
        "repeating_turns": mean(one for turns in again for one in turns),
        "circling": mean(any(turns) for turns in again),
    }


def _says_again(turns: Sequence[str]) -> list[bool]:
    """For each turn, whether an earlier one says the same."""
    said = [normalized(text) for text in turns]
    return [text in said[:i] for i, text in enumerate(said)]


def _repeated(texts: Sequence[Sequence[str]], given: int, n: int) -> float:
    """The share of all n-grams of the turns past those given that an earlier turn of their dialogue had."""
    old = total = 0
    for turns in texts:
        heard: set[tuple[str, ...]] = set()
        for i, text in enumerate(turns):
            found = Counter(ngrams(words(text), n))
            if i >= given:
                total += found.total()
                old += sum(times for ngram, times in found.items() if ngram in heard)
            heard |= found.keys()
    return old / total if total else 0.0
