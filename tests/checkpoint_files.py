"""Checkpoint folders for the tests: the names that published files use, random content, and what must come of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from blenderbot_jax.checkpoint import CheckpointError
from blenderbot_jax.checkpoint.names import flatten, unflatten
from blenderbot_jax.model import BlenderbotForConditionalGeneration

SHARED = "model.shared.weight"
TABLES = ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"]


def published_names(config):
    """Key in the file -> leaf and whether it is transposed, written out a second time."""
    norms = {"weight": "scale", "bias": "bias"}
    names = {"final_logits_bias": ("final_logits_bias", False), SHARED: ("model/shared/embedding", False)}
    if not config.tie_word_embeddings:
        for side in ("encoder", "decoder"):
            names[f"model.{side}.embed_tokens.weight"] = (f"model/{side}/embed_tokens/embedding", False)
        names["lm_head.weight"] = ("lm_head/kernel", True)
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        at = f"model.{side}"
        names[f"{at}.embed_positions.weight"] = (f"model/{side}/embed_positions/embedding", False)
        own_norms = [f"{at}.{'layer_norm' if config.normalize_before else 'layernorm_embedding'}"]
        linears = []
        for i in range(layers):
            blocks = ["self_attn", "encoder_attn"] if side == "decoder" else ["self_attn"]
            linears += [f"{at}.layers.{i}.{block}.{x}_proj" for block in blocks for x in ("q", "k", "v", "out")]
            linears += [f"{at}.layers.{i}.fc1", f"{at}.layers.{i}.fc2"]
            own_norms += [f"{at}.layers.{i}.{block}_layer_norm" for block in [*blocks, "final"]]
        for name in linears:
            names[f"{name}.weight"] = (f"{name}/kernel".replace(".", "/"), True)
            names[f"{name}.bias"] = (f"{name}/bias".replace(".", "/"), False)
        names |= {f"{n}.{k}": (f"{n}/{v}".replace(".", "/"), False) for n in own_norms for k, v in norms.items()}
    return names


def expected_shapes(config):
    model = BlenderbotForConditionalGeneration(config)
    return {path: leaf.shape for path, leaf in flatten(jax.eval_shape(model.init_params, jax.random.key(0))).items()}


def random_tensors(config, dtype="float16"):
    """The content of a published file, every tensor different."""
    rng, shapes = np.random.default_rng(0), expected_shapes(config)
    names = published_names(config).items()
    stored = {key: shapes[path][::-1] if transposed else shapes[path] for key, (path, transposed) in names}
    return {key: rng.normal(size=shape).astype(dtype) for key, shape in stored.items()}


def expected_leaves(config, tensors, dtype):
    names = published_names(config).items()
    return {path: (tensors[key].T if flip else tensors[key]).astype(dtype) for key, (path, flip) in names}


def leaves_of(config, kind):
    """Random leaves of one kind of model by path in the whole model, cut out of those of the whole model by hand."""
    whole = expected_leaves(config, random_tensors(config), np.float32)
    if kind == "Model":
        return {path: leaf for path, leaf in whole.items() if path not in ("final_logits_bias", "lm_head/kernel")}
    if kind == "ForCausalLM":
        own = ("model/decoder/", "lm_head/", *(["model/shared/"] if config.tie_word_embeddings else []))
        return {path: leaf for path, leaf in whole.items() if path.startswith(own)}
    return whole


def tree_of(config, kind):
    """The same as a parameter tree: the model without head has no leading `model/`."""
    leaves = leaves_of(config, kind)
    return unflatten({path.removeprefix("model/") if kind == "Model" else path: leaf for path, leaf in leaves.items()})


def random_params(config, dtype=jnp.float32):
    leaves = expected_leaves(config, random_tensors(config, "float32"), dtype)
    return unflatten({path: jnp.asarray(leaf) for path, leaf in leaves.items()})


def write(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    config.save_json(folder / "config.json")
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_index(folder, weight_map, name="model.safetensors"):
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def load(folder, dtype=jnp.float32):
    return flatten(BlenderbotForConditionalGeneration.from_pretrained(folder, dtype=dtype)[1])


def refusal(folder):
    with pytest.raises(CheckpointError) as error:
        load(folder)
    return str(error.value)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        assert leaf.dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(np.asarray(leaf), theirs[name], err_msg=name)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
