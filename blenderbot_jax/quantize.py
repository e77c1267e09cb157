from typing import Any
import jax
from blenderbot_jax.kernels import Int8Kernel


def quantize(params: Any) -> Any:
    def pack(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jax.jit(Int8Kernel.pack)(leaf) if name.endswith("kernel") else leaf

    out = jax.tree_util.tree_map_with_path(pack, params)
    out["lm_head"] = {"kernel": jax.jit(Int8Kernel.pack)(params["model"]["shared"]["embedding"].T)}
    return out
