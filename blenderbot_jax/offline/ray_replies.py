"""The same answers inside a Ray Data pipeline, for clusters that run one already."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import jax

from blenderbot_jax.chatbot import Chatbot
from blenderbot_jax.generation.inputs import check_key
from blenderbot_jax.generation.many import Packing
from blenderbot_jax.offline.answers import ADDED, answer_rows, prepared


class RayReplies:
    """What `ray.data.Dataset.map_batches` takes to answer the rows of a dataset; each actor loads the model once.

    Rows are as `conversation` reads them, columns that are null being absent. The columns `reply`, `score`,
    `dropped_turns`, `dropped_tokens` and `error` are added, and `alternatives` if several replies are asked for: a row
    has a reply, or an error. Ray may change the order of rows and the size of batches, neither of which changes a
    reply. Ray hides accelerators from actors that ask for none: say `num_gpus=1`.

    Args:
        name: a folder, a hub name, or "demo"; a folder must be there on every machine.
        decoding: fields of `GenerationConfig` to change.
        seed: where chance begins, if the bot samples.
        number: the column that numbers rows, from 0, which is needed if the bot samples: row i draws from
            `jax.random.fold_in(jax.random.key(seed), i)`.
        packing: how rows are put together; `Packing()` if None.
        loading: what else `Chatbot.from_pretrained` takes: `dtype`, `quantize`, `revision` and so on.

    Raises:
        ValueError: a seed too many or too few, and what `Chatbot.from_pretrained` refuses.

    Example:
        The dataset is one of `ray.data`; the batch format is not Ray's default.

            dataset.map_batches(
                RayReplies,
                fn_constructor_kwargs={"name": "demo", "decoding": {"num_beams": 1}},
                batch_format="pyarrow",
                batch_size=256,
                concurrency=4,
            )
    """

    def __init__(
        self,
        name: str = "demo",
        *,
        decoding: Mapping[str, Any] | None = None,
        seed: int | None = None,
        number: str = "row",
        packing: Packing | None = None,
        **loading: Any,
    ) -> None:
        bot = Chatbot.from_pretrained(name, **loading).configured(**(decoding or {}))
        self._key = None if seed is None else jax.random.key(seed)
        check_key(bot.generation_config, self._key)
        self._bot = prepared(Chatbot(bot.checkpoint, bot.generation_config, packing or Packing()), donate=True)
        self._number = number

    def __call__(self, table: Any) -> Any:
        """The table with the columns of the replies.

        Args:
            table: a batch as a `pyarrow.Table`, which `batch_format="pyarrow"` gives.

        Raises:
            TypeError: another batch format.
            ValueError: a table that has one of the columns already, or does not number its rows.
        """
        names = getattr(table, "column_names", None)
        if names is None:
            raise TypeError(f'RayReplies reads tables, not {type(table).__name__}: pass batch_format="pyarrow"')
        taken = [name for name in (*ADDED, "error") if name in names]
        if taken:
            raise ValueError(f"the dataset has the columns {', '.join(taken)} already: rename them")
        rows = table.to_pylist()
        answers = answer_rows(self._bot, rows if self._key is None else self._numbered(rows), key=self._key)
        for name, column in _columns(answers, (self._bot.generation_config.num_return_sequences or 1) > 1).items():
            table = table.append_column(name, column)
        return table

    def _numbered(self, rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        by_number: dict[Any, dict[str, Any]] = {row.get(self._number): row for row in rows}
        if len(by_number) < len(rows) or not all(isinstance(number, int) for number in by_number):
            raise ValueError(
                f"replies are drawn by the number of a row, and the column {self._number!r} does not number all rows "
                "by integers, each its own: add it, or name another with number="
            )
        return by_number


def _columns(answers: list[dict[str, Any]], several: bool) -> dict[str, Any]:
    """What answers add, typed even where all are null, so that the batches of a dataset have one schema."""
    pyarrow: Any = import_module("pyarrow")  # what made the table
    count = pyarrow.int64()
    types = {
        "reply": pyarrow.string(),
        "score": pyarrow.float64(),
        "dropped_turns": count,
        "dropped_tokens": count,
        "error": pyarrow.string(),
    }
    if several:
        one = pyarrow.struct([("text", types["reply"]), ("score", types["score"])])
        types["alternatives"] = pyarrow.list_(one)
    return {name: pyarrow.array([row.get(name) for row in answers], type_) for name, type_ in types.items()}
