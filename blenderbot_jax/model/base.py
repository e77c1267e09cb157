"""What the models share: random and published parameters, and which arguments of transformers they refuse.

A model holds no weights. `model.apply({"params": params}, ...)` is a pure function of a plain nested dict whose layout
`docs/params.md` fixes; it goes through `jit`, `grad`, `vmap` and `shard_map` as it is.
"""

import os
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from blenderbot_jax.absent import MODEL, refuse_attribute
from blenderbot_jax.checkpoint import CheckpointError, fetch, load_params
from blenderbot_jax.checks import Refusals, refuse_arguments
from blenderbot_jax.config import BlenderbotConfig
from blenderbot_jax.layers import DType
from blenderbot_jax.parallel import placing

Params = dict[str, Any]

# Arguments of transformers' forward -> the values that ask for nothing, and what to do instead.
FORWARD_REFUSALS: Refusals = {
    "past_key_values": ((None,), "decode step by step with the methods encode, prefill and decode_step"),
    "use_cache": ((None, True, False), ""),  # a forward pass keeps nothing in any case
    "return_dict": ((None, True), "the result is always a record with named fields"),
    "position_ids": ((None,), "positions are counted from the mask"),
    "decoder_position_ids": ((None,), "positions are counted from the mask"),
    "cache_position": ((None,), "a cache knows its own length"),
    "head_mask": ((None,), "scale the rows of out_proj/kernel that belong to a head"),
    "decoder_head_mask": ((None,), "scale the rows of out_proj/kernel that belong to a head"),
    "cross_attn_head_mask": ((None,), "scale the rows of out_proj/kernel that belong to a head"),
    "num_items_in_batch": ((None,), "scale the loss yourself"),
    "output_router_logits": ((None, False), "no BlenderBot routes among experts"),
    "is_causal": ((None,), "the decoder is causal, the encoder is not"),
    **dict.fromkeys(
        ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"),
        ((None,), "sequences are not packed: give each a row and mask the padding"),
    ),
}
_LOADING_REFUSALS: Refusals = {
    "device_map": ((None,), "say mesh=make_mesh(...), of blenderbot_jax.parallel"),
    "torch_dtype": ((None,), "say dtype=jnp.bfloat16"),
    "attn_implementation": ((None, "eager"), "there is one implementation"),
    "quantization_config": ((None,), 'Checkpoint.from_pretrained(name, quantize="int8") keeps kernels in 8 bits'),
    "low_cpu_mem_usage": ((None, True, False), ""),  # tensors are read one by one in any case
    "use_safetensors": ((None, True, False), ""),  # safetensors win where both are there
    "weights_only": ((None, True), "nothing in a checkpoint is ever executed"),
    "trust_remote_code": ((None, False), "no code of a checkpoint is ever run"),
    "config": ((None,), "the folder's config.json is read; change the model with model.clone(config=...)"),
    "state_dict": ((None,), "parameters are an argument of model.apply"),
    "from_flax": ((None, True, False), ""),  # the format is told by the file
    "from_tf": ((None, False), "convert the weights to safetensors with transformers 4 first"),
    "output_loading_info": ((None, False), "every misfit is an error that names the tensor"),
    "ignore_mismatched_sizes": ((None, False), "load the model as it is, then use resize_token_embeddings"),
    "fusion_config": ((None,), "XLA fuses by itself"),
    "disable_mmap": ((None, True, False), ""),  # files are read, never mapped
    "subfolder": ((None, ""), "give the subfolder's own path"),
    "proxies": ((None,), "set HTTPS_PROXY in the environment"),
    "force_download": ((None, False), "delete the repository from the hub cache"),
}
_HUB_OPTIONS = ("revision", "cache_dir", "local_files_only", "token")


class Pretrained(nn.Module):
    """Base of the models."""

    config: BlenderbotConfig
    dtype: DType = jnp.float32
    cache_dtype: DType | None = None
    """dtype of the keys and values kept between steps; None: `dtype`."""
    remat: bool = False
    """Compute each layer again in the backward pass, which then keeps the states between layers alone."""

    if TYPE_CHECKING:
        # linen's own annotation admits a second result, which only mutable collections bring.
        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...

    _root: ClassVar[str] = ""
    """Where the model's parameters stand in the tree of the model with head."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        dtype: DType = jnp.float32,
        mesh: Mesh | None = None,
        **hub_options: Any,
    ) -> tuple[Self, Params]:
        """Load a checkpoint.

        Args:
            name_or_folder: a folder in the published layout, a name on the Hugging Face Hub, or "demo", the bundled
                model.
            dtype: of the stored parameters and of the computation.
            mesh: of `parallel.make_mesh`; parameters are placed on it tensor by tensor, each device getting its own
                pieces. None: the first device.
            hub_options: `revision`, `cache_dir`, `local_files_only`, `token`.

        Returns:
            The model and its parameters, a plain nested dict of arrays.

        Raises:
            CheckpointNotFoundError: no such folder, and no such model to be had.
            CheckpointError: the weights are damaged or do not fit the configuration; every misfit is named.
            ValueError: a parameter that the mesh cannot split evenly; nothing has been read then.
            TypeError: an option of transformers that does nothing here, with what to do instead.

        Example:
            >>> model, params = BlenderbotForConditionalGeneration.from_pretrained("demo")
        """
        where = f"{cls.__name__}.from_pretrained"
        if isinstance(dtype, str) and dtype == "auto":
            raise TypeError(f"{where} takes no dtype='auto': name one, such as jnp.float32 or jnp.bfloat16")
        options = refuse_arguments(where, hub_options, _LOADING_REFUSALS, passed_on=_HUB_OPTIONS)
        folder = fetch(name_or_folder, **options)
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} holds no config.json, so it is no checkpoint folder")
        model = cls(BlenderbotConfig.from_json(folder / "config.json"), dtype)
        expected = jax.eval_shape(model.init_params, jax.random.key(0))
        return model, load_params(folder, model.config, expected, dtype, root=cls._root, place=placing(mesh, expected))

    def __getattr__(self, name: str) -> Any:
        if name in MODEL:
            refuse_attribute(f"a {type(self).__name__}", name, MODEL)
        return super().__getattr__(name)

    def init_params(self, key: jax.Array, dtype: DType = jnp.float32) -> Params:
        """Random parameters as the published models were begun: N(0, init_std), zero biases, a zero pad row.

        Args:
            key: a `jax.random.key`.
            dtype: storage; float32 is what training wants.
        """
        return _init_params(self, key, dtype)

    def example_inputs(self) -> dict[str, Any]:
        """The smallest inputs that reach every parameter."""
        raise AttributeError(f"{type(self).__name__} does not say which inputs reach its parameters")


@partial(jax.jit, static_argnums=(0, 2))
def _init_params(model: Pretrained, key: jax.Array, dtype: DType) -> Params:
    params = model.init(key, **model.example_inputs())["params"]
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)
