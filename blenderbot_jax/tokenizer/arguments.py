"""Early refusals for the tokenizers: each message states the rule, the value met and the way out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Published folders write "no limit" as int(1e30).
_NO_LIMIT = 10**20
_BOOLEANS = {True: True, False: False, "true": True, "false": False}


def refuse_unknown(where: str, given: Mapping[str, object], neutral: Mapping[str, tuple[object, ...]]) -> None:
    """Refuse arguments of transformers that would change the result, and those nobody knows.

    Args:
        where: who was called.
        given: name -> value.
        neutral: name -> the values that change nothing, the usual one first.

    Raises:
        TypeError: naming the first argument that is unknown or not neutral.
    """
    for name, value in given.items():
        if name not in neutral:
            raise TypeError(f"{where} takes no argument {name!r}; its docstring lists those it takes")
        if value not in neutral[name]:
            raise TypeError(f"{where} supports {name}={neutral[name][0]!r} only; got {value!r}. Leave it out")


def refuse_pair(second: object) -> None:
    """Refuse the second text of a pair, whatever it is."""
    if second is not None:
        raise ValueError(
            "these models read one text, and transformers drops or glues the second of a pair, which loses the user's "
            "message; join turns with Conversation, or pass a list for a batch"
        )


def one_of(name: str, value: Any, choices: Mapping[Any, Any]) -> Any:
    """What `value` stands for in `choices`; other values are a ValueError that lists them."""
    # 1 == True, yet a number here is a mistake: max_length in the wrong place.
    if isinstance(value, (bool, str)) and value in choices:
        return choices[value]
    raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def side(name: str, value: str) -> str:
    """`value` if it is `left` or `right`, else a ValueError."""
    return one_of(name, value, {"left": "left", "right": "right"})


def boolean(name: str, value: Any) -> bool:
    """A boolean, also as the string that hub files of 2020 and 2021 hold."""
    return one_of(name, value.lower() if isinstance(value, str) else value, _BOOLEANS)


def count(name: str, value: Any) -> int | None:
    """A whole number of at least 1, or None; else a ValueError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
    return int(value)


def length_limit(value: Any) -> int | None:
    """A model's longest input in ids; None for no limit, however it is written."""
    if isinstance(value, (int, float)) and value >= _NO_LIMIT:
        return None
    return count("model_max_length", value)


def special_token(name: str, token: Any) -> str | None:
    """The text of a special token: a string, the dict form of hub files, or an AddedToken."""
    text = token.get("content") if isinstance(token, Mapping) else getattr(token, "content", token)
    if text is None or (isinstance(text, str) and text):
        return text
    raise TypeError(f"{name} must be a non-empty string or an AddedToken; got {token!r}")


def delimiter(value: Any) -> str:
    """What stands between turns: a string of at least one character, else a ValueError or a TypeError.

    ParlAI takes the empty string too. Here it is refused: turns would run into each other, no BlenderBot is trained so,
    and what shows or counts the turns of a sequence of ids could no longer tell them apart.
    """
    if not isinstance(value, str):
        raise TypeError(f"delimiter must be a str; got {describe(value)}")
    if not value:
        raise ValueError("delimiter must not be empty; got ''. Two spaces are usual, and a newline for the 9.4B model")
    unicode("delimiter", value)
    return value


def texts(text: str | Sequence[str]) -> list[str]:
    """The texts of a call as a list; anything but a str or a list of str is refused, and so is broken Unicode."""
    listed = [text] if isinstance(text, str) else text
    if not isinstance(listed, (list, tuple)):
        raise TypeError(f"text must be a str or a list of str; got {describe(text)}")
    for one in listed:
        if not isinstance(one, str):
            raise TypeError(f"text must be a str or a list of str; the list holds {describe(one)}")
        unicode("text", one)
    return list(listed)


def unicode(name: str, text: str) -> None:
    """Refuse half a surrogate pair, which the tokenizers library would not survive."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} must be valid Unicode; {text[error.start]!r} at position {error.start} is half a surrogate pair. "
            "Repair it with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from None


def token_ids(ids: Any, vocab_size: int) -> list[int]:
    """One sequence of ids as a list.

    Args:
        ids: an id, a list, or a numpy or JAX array [T].
        vocab_size: V; ids lie in 0..V-1.

    Raises:
        TypeError: something that is not whole numbers.
        ValueError: several sequences, or an id outside the vocabulary.
    """
    try:
        array = np.asarray(ids)
    except ValueError:
        raise ValueError("one sequence of ids is wanted; got rows of different lengths: use batch_decode") from None
    if array.ndim > 1:
        raise ValueError(f"one sequence of ids [T] is wanted; got shape {array.shape}: use batch_decode, or pick a row")
    # An empty list becomes an array of floats.
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"ids must be whole numbers; got {describe(ids)}. A batch holds them in batch['input_ids']")
    bad = array[(array < 0) | (array >= vocab_size)] if array.size else array
    if bad.size:
        hint = ". Labels mark ignored positions with -100: drop those first" if bad.flat[0] == -100 else ""
        raise ValueError(f"a token id must lie in 0..{vocab_size - 1}, the vocabulary; got {bad.flat[0]}{hint}")
    return array.reshape(-1).tolist()


def describe(value: object) -> str:
    """A value's type and beginning, for a message."""
    return "None" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
