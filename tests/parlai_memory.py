"""What loading and converting a wide ParlAI checkpoint takes at its highest, beside what it must take; Linux only.

python -m tests.parlai_memory load FOLDER
"""

import json
import math
import re
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax import BlenderbotConfig, BlenderbotForConditionalGeneration, parlai
from blenderbot_jax.checkpoint.parlai_file import tensor_names
from blenderbot_jax.conversion import convert_checkpoint
from blenderbot_jax.parlai_conversion import convert_to_parlai
from tests.parlai_files import OPTIONS_9B, dictionary, write_small_files
from tests.torch_pickles import EMPTY_DICT, ORDERED_DICT, PROTO, items, storage, tensor

OPTIONS = {**OPTIONS_9B, "n_encoder_layers": 1, "n_decoder_layers": 2}
_MIB = 2**20


def write(folder: Path) -> int:
    """A checkpoint of random float16 weights, and as much again of an optimizer; the bytes of the weights."""
    write_small_files(folder, "prelayernorm", OPTIONS)
    config = BlenderbotConfig.from_dict(parlai.architecture(OPTIONS, len(dictionary("prelayernorm"))))
    shapes = {key: named.shape for key, named in tensor_names(config).items() if not named.alias}
    sizes = [math.prod(shape) for shape in shapes.values()]

    def entries(first: int) -> bytes:
        return ORDERED_DICT + items(
            **{
                key: tensor(
                    storage("torch.HalfStorage", str(first + number), math.prod(shape)),
                    0,
                    shape,
                    [math.prod(shape[axis + 1 :]) for axis in range(len(shape))],
                )
                for number, (key, shape) in enumerate(shapes.items())
            }
        )

    program = PROTO + EMPTY_DICT + items(optimizer=entries(len(sizes)), model=entries(0)) + b"."
    rng = np.random.default_rng(0)
    block = rng.normal(0, 0.02, 2**20).astype(np.float16).tobytes()
    with zipfile.ZipFile(folder / "model", "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for number, size in enumerate(sizes * 2):
            with archive.open(f"archive/data/{number}", "w", force_zip64=True) as record:
                for begin in range(0, 2 * size, len(block)):
                    record.write(block[: 2 * size - begin])
    return 2 * sum(sizes)


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the highest."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def main(what: str, folder: Path) -> None:
    """Measure, print, and fail if more was taken than the weights (for loading), the largest tensor, and half of it."""
    weights = write(folder / "source")
    largest = 2 * 16384 * 4096
    if what == "to":
        convert_checkpoint(folder / "source", folder / "published")
    jax.block_until_ready(jnp.zeros(1) + 1.0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident("VmRSS")
    held = []
    if what == "load":
        held.append(BlenderbotForConditionalGeneration.from_pretrained(folder / "source", dtype=jnp.float16))
    elif what == "from":
        convert_checkpoint(folder / "source", folder / "out")
    else:
        # The dictionary is tiny; ParlAI's own options would be kept, and are left out here to be made anew.
        (folder / "published" / "model.opt").unlink()
        convert_to_parlai(folder / "published", folder / "out")
    taken = resident("VmHWM") - before
    allowed = (weights if what == "load" else 0) + 3 * largest // 2
    print(json.dumps({"what": what, "weights": weights, "taken": taken, "allowed": allowed, "held": len(held)}))
    assert taken < allowed, f"{taken / _MIB:.0f} MiB were taken, {allowed / _MIB:.0f} are allowed"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
