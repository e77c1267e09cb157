"""Run what `blenderbot-jax export` wrote: `python run.py "Hello!"`, or `Exported(folder).reply("Hello!")`.

It needs the folder it stands in, and jax, flatbuffers, numpy, safetensors and tokenizers.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from safetensors import safe_open
from tokenizers import Tokenizer


class Exported:
    """A decoding program, its weights and its tokenizer.

    Args:
        folder: what `blenderbot-jax export` wrote.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = folder = Path(folder)
        if not (folder / "manifest.json").is_file():
            raise FileNotFoundError(f"{folder} holds no manifest.json: give a folder that blenderbot-jax export wrote")
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        program = jax.export.deserialize(bytearray((folder / "decode.bin").read_bytes()))
        here = {"gpu": {"cuda", "rocm"}}.get(jax.default_backend(), {jax.default_backend()})
        if not here & set(program.platforms):
            raise ValueError(
                f"the program is for {', '.join(program.platforms)} and this is {jax.default_backend()}: export it "
                "again with --platform, or choose another device with JAX_PLATFORMS"
            )
        self._program = jax.jit(program.call)
        with safe_open(folder / "weights.safetensors", framework="flax") as file:
            self._weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        self.settings = {name: _array(value) for name, value in self.manifest["settings"].items()}
        self.tokenizer = None
        if self.manifest["end"] is not None:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.tokenizer.encode_special_tokens = True  # a typed </s> is text

    def generate(self, prompts: Sequence[Sequence[int]], seed: int | None = None, **settings: Any) -> dict[str, Any]:
        """Decode a batch of prompts.

        Args:
            prompts: ids of each, their end token included; no more and no longer ones than the program has room for.
            seed: where chance begins; needed if the program samples, refused otherwise.
            settings: numbers that replace those of the manifest, by their names there, such as `min_length=[5]`.

        Returns:
            tokens [B, R, C] with the start token first, lengths [B, R], scores [B, R] and log_probs [B, R, C].
        """
        rows, room, count = self.manifest["batch"], self.manifest["source_width"], len(prompts)
        width = max(map(len, prompts), default=0)
        if not (0 < count <= rows and all(prompts) and width <= room):
            raise ValueError(
                f"this program takes 1 to {rows} prompts of 1 to {room} tokens, not {count} of up to {width}: split "
                "the batch, drop the oldest turns, or export with a larger --batch or --source-width"
            )
        if (seed is None) == self.manifest["samples"]:
            raise ValueError("pass seed=..." if seed is None else "nothing is drawn at random: leave the seed out")
        ids, mask = np.zeros((rows, room), np.int32), np.zeros((rows, room), bool)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)], mask[row, : len(prompt)] = prompt, True
        mask[count:, 0] = True
        if ids.min() < 0 or ids.max() >= self.manifest["vocab_size"]:
            raise ValueError(f"ids are from 0 to {self.manifest['vocab_size'] - 1}, not {ids.min()} to {ids.max()}")
        key = [] if seed is None else [np.asarray(jax.random.key_data(jax.random.key(seed, impl="threefry2x32")))]
        data = {**self.settings, "source_width": np.full(rows, width, np.int32), **self._checked(settings)}
        found = jax.device_get(self._program(self._weights, ids, mask, np.arange(rows) < count, data, *key))
        return {name: values[:count] for name, values in found.items()}

    def _checked(self, given: dict[str, Any]) -> dict[str, np.ndarray]:
        for name, value in given.items():
            if name not in self.settings or np.shape(value) != self.settings[name].shape:
                shapes = ", ".join(f"{own} {list(array.shape)}" for own, array in self.settings.items())
                raise ValueError(f"{name}={value!r} is no setting of this program; they are {shapes}")
        length, capacity = int(given.get("max_length", [1])[0]), self.manifest["capacity"]
        if not 1 <= length <= capacity:
            raise ValueError(f"max_length is from 1 to {capacity}, the places this program has, not {length}")
        return {name: np.asarray(value, self.settings[name].dtype) for name, value in given.items()}

    def reply(self, *turns: str, seed: int | None = None) -> str:
        """The reply to a conversation, its turns oldest first."""
        if self.tokenizer is None:
            raise ValueError("this model's tokenizer is no tokenizer.json: call generate with ids")
        ids: list[int] = []
        for turn in turns:
            own = self.tokenizer.encode(turn.strip(), add_special_tokens=False).ids
            ids += [*self.manifest["separator"], *own] if ids else own
        found = self.generate([[*ids, *self.manifest["end"]]], seed)
        best = found["tokens"][0, 0, : found["lengths"][0, 0]].tolist()
        return self.tokenizer.decode(best, skip_special_tokens=True).strip()


def _array(value: dict[str, Any]) -> np.ndarray:
    return np.array(value["values"], value["dtype"]).reshape(value["shape"])


if __name__ == "__main__":
    exported = Exported(Path(__file__).parent)
    for text in sys.argv[1:] or sys.stdin.read().splitlines():
        print(exported.reply(text, seed=0 if exported.manifest["samples"] else None))
