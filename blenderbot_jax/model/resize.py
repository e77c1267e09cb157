"""Changing the number of tokens a model knows."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from blenderbot_jax.model.base import Params, Pretrained

Model = TypeVar("Model", bound=Pretrained)


def resize_token_embeddings(model: Model, params: Params, vocab_size: int, key: jax.Array) -> tuple[Model, Params]:
    """Change the number of tokens, for a tokenizer that gained or lost some.

    New rows are drawn around the mean of the old ones, with 1e-9 of their covariance, as transformers does by default:
    the new tokens start out unlikely rather than loud. Their biases are zero.

    Args:
        model, params: the model and its parameters; neither is changed.
        vocab_size: the new V.
        key: a `jax.random.key`.

    Returns:
        A model for the new vocabulary, and its parameters.

    Example:
        >>> larger, more = resize_token_embeddings(model, params, len(tokenizer) + 2, jax.random.key(0))
        >>> len(more["model"]["shared"]["embedding"]) - len(tokenizer)
        2
    """
    resized = model.clone(config=model.config.replace(vocab_size=vocab_size))
    wanted = jax.eval_shape(resized.init_params, key)

    def fit(path: tuple[Any, ...], leaf: jax.Array, target: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.shape == target.shape:
            return leaf
        if path[-1].key == "final_logits_bias":
            return jnp.pad(leaf[:, :vocab_size], ((0, 0), (0, max(vocab_size - leaf.shape[1], 0))))
        # An untied head is a kernel [D, V]; every other table has a row per token.
        return _fit_rows(leaf.T, vocab_size, key).T if path[-1].key == "kernel" else _fit_rows(leaf, vocab_size, key)

    return resized, jax.tree_util.tree_map_with_path(fit, params, wanted)


def _fit_rows(table: jax.Array, rows: int, key: jax.Array) -> jax.Array:
    added = rows - len(table)
    if added <= 0:
        return table[:rows]
    old = table.astype(jnp.float32)
    centred = old - old.mean(axis=0)
    # A random mix of the centred rows has exactly their covariance; no matrix has to be factored.
    mix = jax.random.normal(key, (added, len(old))) * (1e-9 / len(old)) ** 0.5
    new = old.mean(axis=0) + jnp.matmul(mix, centred, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([table, new.astype(table.dtype)])
