"""ParlAI's checkpoints for the tests, put together without ParlAI and PyTorch: weights, options and dictionaries.

Names are written out a second time, from the published ones, so that the table of the package is not its own witness.
"""

import json
import struct
import tarfile

import numpy as np

from blenderbot_jax.config import BlenderbotConfig, BlenderbotSmallConfig
from tests.checkpoint_files import SHARED, published_names, random_tensors
from tests.torch_pickles import (
    EMPTY_DICT,
    EMPTY_TUPLE,
    ORDERED_DICT,
    PROTO,
    call,
    group,
    items,
    legacy_bytes,
    number,
    storage,
    symbol,
    tensor,
    text,
    write_zip,
)

SPECIALS = ("__null__", "__start__", "__end__", "__unk__")
RAW_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
BYTE_MERGES = ("Ġ h", "Ġh e", "l l", "Ġhe ll", "Ġhell o")
SUBWORD_MERGES = (
    "_ _", "_ _</w>", "__ n", "__n e", "__ne w", "__new l", "__newl n", "__newln __</w>",
    "h i</w>", "t h", "th e</w>",
)  # fmt: skip
SUBWORDS = ("__newln__", "hi", "the", "th@@", ".", ",", "\\", *"abcdefghinotu", *(f"{c}@@" for c in "abcdefghinotu"))
_STORAGES = {"float16": "HalfStorage", "float32": "FloatStorage", "int64": "LongStorage", "float64": "DoubleStorage"}

# As the projects' README and presets give them; what is left out has the default of ParlAI's command line.
OPTIONS_3B = {
    "model": "transformer/generator", "variant": "prelayernorm", "activation": "gelu", "embedding_size": 2560,
    "ffn_size": 10240, "n_heads": 32, "n_encoder_layers": 2, "n_decoder_layers": 24, "n_positions": 128,
    "text_truncate": 128, "label_truncate": 128, "truncate": 128, "dropout": 0.1, "attention_dropout": 0,
    "relu_dropout": 0, "embeddings_scale": True, "learn_positional_embeddings": False, "dict_tokenizer": "bytelevelbpe",
    "delimiter": "  ", "fp16": True,
}  # fmt: skip
OPTIONS_9B = {
    **OPTIONS_3B, "embedding_size": 4096, "ffn_size": 16384, "n_encoder_layers": 4, "n_decoder_layers": 32,
    "delimiter": "\n",
}  # fmt: skip
OPTIONS_90M = {
    "model": "transformer/generator", "variant": "xlm", "activation": "gelu", "embedding_size": 512, "ffn_size": 2048,
    "n_heads": 16, "n_layers": 8, "n_encoder_layers": -1, "n_decoder_layers": -1, "n_positions": 512,
    "text_truncate": 512, "label_truncate": 128, "dropout": 0.1, "attention_dropout": 0.0, "relu_dropout": 0.0,
    "embeddings_scale": True, "learn_positional_embeddings": True, "dict_tokenizer": "bpe", "dict_lower": True,
    "output_scaling": 1.0, "n_segments": 0, "fp16": True, "delimiter": "\n",
}  # fmt: skip

_TINY = {"embedding_size": 24, "ffn_size": 40, "n_heads": 4, "n_positions": 24, "text_truncate": 24}
TINY = {
    "prelayernorm": {**OPTIONS_3B, **_TINY, "truncate": -1, "n_encoder_layers": 1, "n_decoder_layers": 2},
    "xlm": {**OPTIONS_90M, **_TINY, "n_layers": 1, "n_decoder_layers": 2},
}


def byte_alphabet():
    """The 256 symbols of a byte-level vocabulary, in the order of the published one."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]


def raw_tokens():
    """The vocabulary that the byte-level tokenizer of a tiny model was trained to."""
    return [*RAW_SPECIALS, *byte_alphabet(), *(merge.replace(" ", "") for merge in BYTE_MERGES)]


def dictionary(variant):
    """The tokens of a tiny dictionary by id, with what half precision adds."""
    tokens = [*SPECIALS, *(raw_tokens() if variant == "prelayernorm" else SUBWORDS)]
    pads = [f"__FP16_PAD_{i}__" for i in range(-len(tokens) % 8)]
    return [*tokens, *(pads if variant == "prelayernorm" else map(str.lower, pads))]


def tiny_config(variant):
    """What must come of `TINY[variant]`."""
    cls = BlenderbotConfig if variant == "prelayernorm" else BlenderbotSmallConfig
    return cls(
        vocab_size=len(dictionary(variant)), max_position_embeddings=24, d_model=24, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=40,
        scale_embedding=True,
    )  # fmt: skip


def parlai_key(published):
    """ParlAI's name of a published key."""
    side = "encoder" if published.startswith("model.encoder.") else "decoder"
    norms = {"self_attn_layer_norm": "norm1", "encoder_attn_layer_norm": "norm2"}
    norms["final_layer_norm"] = "norm2" if side == "encoder" else "norm3"
    words = {
        "shared": "embeddings", "embed_positions": "position_embeddings", "fc1": "ffn.lin1", "fc2": "ffn.lin2",
        "self_attn": "attention" if side == "encoder" else "self_attention", "encoder_attn": "encoder_attention",
        "layer_norm": "norm_embeddings", "layernorm_embedding": "norm_embeddings", **norms,
        **{f"{x}_proj": f"{x}_lin" for x in ("q", "k", "v", "out")},
    }  # fmt: skip
    return ".".join(words.get(word, word) for word in published.removeprefix("model.").split("."))


def sinusoidal(positions, width):
    """The loop of ParlAI's `create_position_codes`, number by number."""
    table = np.zeros((positions, width), np.float32)
    for pos in range(positions):
        for j in range(width // 2):
            angle = pos / np.power(10000, 2 * j / width)
            table[pos, 2 * j], table[pos, 2 * j + 1] = np.sin(angle), np.cos(angle)
    return table


def published_tensors(variant, dtype="float16"):
    """Random tensors of a tiny model by published key, without final_logits_bias; positions as ParlAI makes them."""
    tensors = random_tensors(tiny_config(variant), dtype)
    del tensors["final_logits_bias"]
    if variant == "prelayernorm":
        table = sinusoidal(24, 24).astype(dtype)
        tensors |= {f"model.{side}.embed_positions.weight": table for side in ("encoder", "decoder")}
    return tensors


def state_of(tensors):
    """The state dict: START first, the embedding under all of its names."""
    state = {"START": np.array([1])} | {parlai_key(key): array for key, array in tensors.items()}
    return state | {f"{side}.embeddings.weight": tensors[SHARED] for side in ("encoder", "decoder")}


class Assembly:
    """Tensors as instructions, and their bytes by the keys of their storages; the same array has one storage."""

    def __init__(self):
        self.storages = {}

    def tensor(self, array):
        shared = next((key for key, other in self.storages.items() if other is array), None)
        key = str(len(self.storages)) if shared is None else shared
        self.storages[key] = array
        strides = [stride // array.itemsize for stride in array.strides]
        kind = f"torch.{_STORAGES[str(array.dtype)]}"
        return tensor(storage(kind, key, array.size), 0, array.shape, strides)

    def ordered(self, arrays):
        """An OrderedDict with the attribute that PyTorch gives state dicts."""
        metadata = EMPTY_DICT + items(_metadata=ORDERED_DICT) + b"b"
        return ORDERED_DICT + items(**{name: self.tensor(array) for name, array in arrays.items()}) + metadata

    def training(self, arrays):
        """What ParlAI pickles beside the model while it trains, loss scaler and numbered parameters among it."""
        sevens = {n: np.full_like(array, 7) for n, array in enumerate(arrays.values())}
        moments = {n: {"exp_avg": array, "exp_avg_sq": array + array} for n, array in sevens.items()}
        states = b"".join(
            number(n) + EMPTY_DICT + items(step=number(5), **{name: self.tensor(a) for name, a in one.items()})
            for n, one in moments.items()
        )
        groups = EMPTY_DICT + items(
            lr=b"G" + struct.pack(">d", 7e-6),
            betas=b"G" + struct.pack(">d", 0.9) + b"G" + struct.pack(">d", 0.999) + b"\x86",
            params=b"](" + b"".join(number(2**40 + n) for n in moments) + b"e",
        )
        scaler = symbol("parlai.utils.fp16.DynamicLossScaler") + EMPTY_TUPLE + b"\x81"
        scaler += EMPTY_DICT + items(loss_scale=number(131072)) + b"b"
        best = call("numpy.core.multiarray.scalar", symbol("numpy.dtype") + group(text("f8")) + b"R", text("0"))
        states = EMPTY_DICT + b"(" + states + b"u"
        optimizer = items(state=states, param_groups=b"](" + groups + b"e", loss_scaler=scaler)
        counts = call("collections.defaultdict", symbol("builtins.set")) + b"(" + text("a") + number(1) + b"u"
        worst = b"G" + struct.pack(">d", float("inf"))
        return {
            "optimizer": EMPTY_DICT + optimizer,
            "optimizer_type": text("mem_eff_adam"),
            "number_training_updates": number(1234),
            "lr_scheduler": EMPTY_DICT + items(best=best, mode_worse=worst, counts=counts),
        }


def write_weights(path, state, *, container="zip", training=False, more=None, first=False):
    """A file of weights around a state dict; `more` is instructions by name, beside `model`.

    Returns:
        The arrays of all storages, by key.
    """
    assembly = Assembly()
    entries = {"model": assembly.ordered(state)} | (assembly.training(state) if training else {}) | (more or {})
    entries = dict(reversed(entries.items())) if first else entries
    program = PROTO + EMPTY_DICT + items(**entries) + b"."
    if container == "zip":
        records = {f"data/{key}": array.tobytes() for key, array in assembly.storages.items()}
        write_zip(path, program, records)
    else:
        keys = sorted(assembly.storages)
        data = b"".join(struct.pack("<q", assembly.storages[k].size) + assembly.storages[k].tobytes() for k in keys)
        path.write_bytes(legacy_bytes(program, keys=keys, storages=data))
    return assembly.storages


def write_small_files(folder, variant, options=None, name="model"):
    """Options and dictionary, without the tokens that half precision adds: ParlAI makes them up itself."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.opt").write_text(json.dumps(TINY[variant] if options is None else options, indent=4))
    tokens = [token for token in dictionary(variant) if "fp16_pad" not in token.lower()]
    counts = [*range(1000000003, 999999999, -1), *(max(99 - i, 1) for i in range(len(tokens) - 4))]
    lines = [f"{token}\t{count}\n" for token, count in zip(tokens, counts, strict=True)]
    (folder / f"{name}.dict").write_text("".join(lines), encoding="utf-8")
    if variant == "xlm":
        (folder / f"{name}.dict.codecs").write_text(_merges("#version: 0.2", SUBWORD_MERGES), encoding="utf-8")
    else:
        vocab = {token: i for i, token in enumerate(raw_tokens())}
        (folder / f"{name}.dict-vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        merges = _merges("#version: 0.2 - Trained by `huggingface/tokenizers`", BYTE_MERGES)
        (folder / f"{name}.dict-merges.txt").write_text(merges, encoding="utf-8")
    return folder


def _merges(first, merges):
    return "".join(f"{line}\n" for line in (first, *merges))


def write_checkpoint(folder, variant, *, dtype="float16", options=None, name="model", tensors=None, **how):
    """A whole checkpoint.

    Returns:
        Its tensors by published key.
    """
    tensors = published_tensors(variant, dtype) if tensors is None else tensors
    write_small_files(folder, variant, options, name)
    write_weights(folder / name, state_of(tensors), **how)
    return tensors


def write_archive(path, folder, within="", leave_out=()):
    """A folder's files as a .tgz."""
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(folder.iterdir()):
            if file.name not in leave_out:
                archive.add(file, f"{within}{file.name}")
    return path


def published_keys(variant):
    """Every published key of a tiny model that ParlAI has too."""
    return [key for key in published_names(tiny_config(variant)) if key != "final_logits_bias"]
