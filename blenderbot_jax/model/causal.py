"""BlenderbotForCausalLM: the decoder alone, as a language model."""

from typing import Any

import jax
import jax.numpy as jnp

from blenderbot_jax.checks import check_ids, check_same_shape, refuse_arguments
from blenderbot_jax.model.base import FORWARD_REFUSALS
from blenderbot_jax.model.conditional import LanguageModel
from blenderbot_jax.model.objective import IGNORED_LABEL, cross_entropy
from blenderbot_jax.outputs import CausalLMOutput


class BlenderbotForCausalLM(LanguageModel):
    """The decoder with a head, over an encoder's states if some are given.

    Its parameters are a part of those of `BlenderbotForConditionalGeneration`, at the same paths, without
    `final_logits_bias`; the whole tree may be passed as it is. `from_pretrained` takes embedding and head from either
    kind of checkpoint and leaves an encoder aside.

    Args:
        config: the architecture; the model's own copy says `is_decoder=True, is_encoder_decoder=False`.
        dtype: the dtype of the computation.
        cache_dtype: the dtype of the keys and values kept between steps, and of the products with them; None: `dtype`.
        remat: compute each layer again in the backward pass, which then keeps the states between layers alone.

    Example:
        >>> lm, params = BlenderbotForCausalLM.from_pretrained("demo")
        >>> ids = jnp.array([[1, 300, 301]])
        >>> lm.apply({"params": params}, ids).logits.shape == (1, 3, lm.config.vocab_size)
        True
    """

    def __post_init__(self) -> None:
        self.config = self.config.replace(is_decoder=True, is_encoder_decoder=False)
        super().__post_init__()

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        *,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        labels: jax.Array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        logits_to_keep: int = 0,
        **others: Any,
    ) -> CausalLMOutput:
        """Logits for what follows every position, and the loss if labels are given.

        Args:
            input_ids: [B, T]; or `inputs_embeds`.
            attention_mask: [B, T], 1 where a token is kept, padding on either side; None keeps all.
            encoder_hidden_states: [B, S, D] for the cross-attention, which is left out without them.
            encoder_attention_mask: [B, S]; None keeps all.
            inputs_embeds: [B, T, D], used as they are: the method `embed_target` gives those of ids, already scaled.
            labels: [B, T], the token each position should predict. They are not shifted, as in transformers: for the
                next token pass `input_ids` moved one place to the left. -100 is left out of the loss.
            output_hidden_states: also return the states after each layer.
            output_attentions: also return the attention weights of each layer.
            logits_to_keep: n > 0 computes the logits of the last n positions only.
            others: further arguments of transformers, refused by name unless they ask for nothing.

        Raises:
            ValueError: ids out of the vocabulary (where they are concrete), too many positions, shapes that do not fit.
            TypeError: an argument there is nothing to do for, with what to do instead.
        """
        refuse_arguments(type(self).__name__, others, FORWARD_REFUSALS)
        if labels is not None:
            check_ids("labels", labels, self.config.vocab_size, ignore=IGNORED_LABEL)
        encoded = None
        if encoder_hidden_states is not None:
            encoded = self.model.given_encoder(encoder_hidden_states).last_hidden_state
        if encoded is None and encoder_attention_mask is not None:
            raise ValueError("encoder_attention_mask is a mask over encoder_hidden_states, and there are none")
        states, attentions, cross = self.model.run_decoder(
            input_ids, attention_mask, inputs_embeds, encoded, encoder_attention_mask, name="input"
        )
        logits = self.head(self.kept(states[-1], logits_to_keep, labels))
        if labels is not None:
            check_same_shape("labels", labels, "the input", logits.shape[:2])
        return CausalLMOutput(
            logits=logits,
            loss=None if labels is None else cross_entropy(logits, labels),
            hidden_states=states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
            cross_attentions=cross if output_attentions and encoded is not None else None,
        )

    def example_inputs(self) -> dict[str, Any]:
        """The smallest inputs that reach every parameter."""
        states = jnp.zeros((1, 1, self.config.d_model), self.dtype)
        return {"input_ids": jnp.zeros((1, 1), jnp.int32), "encoder_hidden_states": states}


class BlenderbotSmallForCausalLM(BlenderbotForCausalLM):
    """`BlenderbotForCausalLM` under the name transformers gives the 90M architecture."""
