"""Phrases as ids that decoding can bar, in the forms that ParlAI's block list gives them; and how sentences end."""

from collections.abc import Callable, Iterable, Sequence

# (text) -> its ids, special tokens neither added nor recognised
Encode = Callable[[str], Sequence[int]]
_MARKS = (".", "?", "!")


def phrase_forms(phrase: str) -> tuple[str, ...]:
    """A phrase as given, in lower, upper and title case, and capitalised in two ways, each with and without an s.

    Source: ParlAI, `parlai/core/torch_generator_agent.py`, `SearchBlocklist.add`.

    Args:
        phrase: a text; one of white space has no forms.

    Example:
        >>> phrase_forms("bad Word")[:6]
        ('bad Word', 'bad Words', 'bad word', 'bad words', 'BAD WORD', 'BAD WORDS')
    """
    text = phrase.strip()
    if not text:
        return ()
    capitals, first = (text.upper(), text.title()), text[0].upper()
    forms = [text, text + "s", text.lower(), text.lower() + "s"]
    forms += [form + ending for form in capitals for ending in ("", "S")]
    forms += [form + ending for form in (first + text[1:], first + text[1:].lower()) for ending in ("", "s")]
    return tuple(dict.fromkeys(forms))


def block_list(phrases: Iterable[str], encode: Encode) -> tuple[tuple[int, ...], ...]:
    """Every form of some phrases as ids, for `bad_words_ids`.

    A tokenizer of the large models puts a space in front of a text, so a phrase is found where a word begins; ParlAI
    looks for it nowhere else either.

    Args:
        phrases: texts; empty ones are left out.
        encode: the tokenizer's, without special tokens.

    Example:
        >>> block_list(["hi"], lambda text: [ord(letter) for letter in text])[:3]
        ((104, 105), (104, 105, 115), (72, 73))
    """
    ids = [tuple(encode(form)) for phrase in phrases for form in phrase_forms(phrase)]
    return tuple(dict.fromkeys(word for word in ids if word))


def sentence_ends(encode: Encode) -> tuple[int, ...]:
    """The ids that `.`, `?` and `!` end a sentence as, behind a word and by themselves, for `sentence_end_ids`.

    ParlAI knows those by themselves alone.

    Args:
        encode: the tokenizer's, without special tokens.

    Example:
        >>> sentence_ends(lambda text: [ord(letter) for letter in text])
        (46, 63, 33)
    """
    return tuple(dict.fromkeys(encode(text)[-1] for mark in _MARKS for text in (mark, f"so{mark}")))
