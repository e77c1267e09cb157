"""transformers' own tests of these models, by what they assert.

`MAPPED` says which of our tests holds each; what no other file held is below. Tests that need published weights are not
among them, and neither are those of things that are not here (assisted decoding, gradient checkpointing, pruning).
"""

import inspect
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax import save_pretrained
from blenderbot_jax.generation import GenerationConfig, generate
from blenderbot_jax.model import (
    BlenderbotForCausalLM,
    BlenderbotForConditionalGeneration,
    BlenderbotModel,
    resize_token_embeddings,
    shift_tokens_right,
)
from blenderbot_jax.tokenizer import load_tokenizer
from tests.golden.fill import golden_params

TESTS = Path(__file__).parent.parent
# File and test of transformers (of 4.57 for Flax and TensorFlow, of 3.x where it says so) -> file and test of ours.
MAPPED = {
    "modeling_blenderbot: config (ConfigTester)": "test_config: transformers_reads_what_is_written",
    "modeling_blenderbot: save_load_strict": "test_checkpoint: what_is_saved_loads_bit_for_bit",
    "modeling_blenderbot: decoder_model_past_with_large_inputs": "parity/test_upstream: several_tokens_after_a_masked",
    "modeling_blenderbot: encoder_decoder_model_standalone": "parity/test_upstream: encoder_and_decoder_work_alone",
    "modeling_blenderbot: generate_fp16": "parity/test_upstream: half_precision_parameters_search_and_draw",
    "modeling_blenderbot: decoder_model_past (standalone)": "parity/test_causal: step_by_step_it_gives_the_logits",
    "modeling_blenderbot: decoder_model_attn_mask_past": "parity/test_upstream: what_is_masked_in_the_past",
    "modeling_common: determinism": "test_model: dropout_is_on_exactly_when_a_key_is_given",
    "modeling_common: forward_signature": "parity/test_upstream: arguments_come_in_the_order",
    "modeling_common: attention_outputs": "parity/test_outputs: every_field_is_that_of_transformers",
    "modeling_common: hidden_states_output": "parity/test_outputs: every_field_is_that_of_transformers",
    "modeling_common: inputs_embeds": "parity/test_outputs: embeddings_of_ones_own",
    "modeling_common: inputs_embeds_matches_input_ids": "parity/test_outputs: embeddings_of_ids",
    "modeling_common: initialization": "test_model: initial_values",
    "modeling_common: training": "parity/test_model: labels_alone_give_the_loss_and_all_gradients",
    "modeling_common: resize_tokens_embeddings": "test_model: resizing_keeps_the_old_tokens",
    "modeling_common: resize_embeddings_untied": "parity/test_upstream: every_table_of_an_untied_model_is_resized",
    "modeling_common: tied_weights_keys": "test_checkpoint: equal_aliases_are_accepted",
    "modeling_common: load_save_without_tied_weights": "test_checkpoint_kinds: what_is_saved_loads_again",
    "generation: greedy, beam_search": "parity/test_generation: replies_and_scores_equal_transformers",
    "generation: sample, beam_sample": "parity/test_generation_everything: replies_equal_transformers_under_all",
    "generation: *_dict_outputs": "parity/test_prompts: what_each_step_saw",
    "generation: generate_from_inputs_embeds": "parity/test_prompts: embeddings_stand_in_for_the_prompts_ids",
    "generation: generate_continue_from_past_key_values": "parity/test_prompts: a_reply_whose_beginning_is_given",
    "generation: left_padding_compatibility": "parity/test_outputs: padding_on_the_left_on_the_right_or_nowhere",
    "modeling_tf_blenderbot: resize_token_embeddings": "test_model: resizing_keeps_the_old_tokens",
    "modeling_flax_blenderbot: use_cache_forward": "test_cache: cached_decoding_equals_uncached",
    "modeling_flax_blenderbot: use_cache_forward_with_attn_mask": "parity/test_upstream: several_tokens_after_a_masked",
    "modeling_flax_blenderbot: encode, decode": "parity/test_upstream: encoding_and_decoding_give_the_same_under_jit",
    "modeling_flax_blenderbot: lm_forward": "test_reference_page: every_output_has_the_fields_and_shapes",
    "modeling_flax_blenderbot: lm_uneven_forward": "parity/test_layers: every_hidden_state_and_the_logits",
    "modeling_flax_blenderbot: shift_tokens_right": "parity/test_upstream: shifting_drops_one_pad_of_each_row",
    "modeling_blenderbot 3.x: initialization_module": "test_model: initial_values",
    "modeling_blenderbot 3.x: embed_pos_shape": "test_model: the_parameter_tree_is_the_documented_one",
    "tokenization_blenderbot: encode_decode_cycle": "parity/test_upstream: a_sentence_comes_back_from_the_published",
    "tokenization_blenderbot: 3B_tokenization_same_as_parlai": "test_tokenizer_byte_level: documented_ids_hold",
    "tokenization_blenderbot: tokenization_for_chat": "test_dialogue: ids_are_those_transformers_documents",
    "tokenization_blenderbot_small: full_tokenizer": "test_tokenizer_small: a_toy_vocabulary_gives_its_pieces",
    "tokenization_blenderbot_small: special_tokens_small_tok": "parity/test_upstream: a_sentence_comes_back_in_small",
    "tokenization_blenderbot_small: empty_word_small_tok": "parity/test_upstream: a_stop_is_the_same_token",
}
CLOSE = {"rtol": 0, "atol": 2e-5}
IDS = np.array([[5, 6, 7, 2], [8, 9, 2, 0]])
MASK = (IDS != 0).astype(np.int32)


@pytest.mark.parametrize("ours", sorted(set(MAPPED.values())))
def test_every_test_of_the_table_is_there(ours):
    file, name = ours.split(": ")
    text = (TESTS / f"{file}.py").read_text(encoding="utf-8")
    assert len(re.findall(rf"^def test_{name}\w*\(", text, re.MULTILINE)) == 1


@pytest.fixture(scope="module", params=["tiny_config", "tiny_small_config"])
def tiny(request):
    model = BlenderbotForConditionalGeneration(request.getfixturevalue(request.param).replace(decoder_layers=1))
    return model, golden_params(model)


def test_several_tokens_after_a_masked_prompt_are_those_of_the_whole(tiny):
    model, params = tiny
    variables = {"params": params}
    replies = np.random.default_rng(0).integers(3, 96, (2, 7))
    kept = np.ones((2, 7), bool)
    kept[1, :2] = False  # pads on the left of one prompt
    whole = jax.jit(model.apply)(variables, IDS, MASK, replies, decoder_attention_mask=kept).logits

    @jax.jit
    def in_two_parts(variables):
        encoded = model.apply(variables, IDS, MASK, method="encode")
        # Room for more than will be written: what is not written yet is never looked at.
        mask = jnp.pad(jnp.asarray(kept), ((0, 0), (0, 5)), constant_values=True)
        cache = model.apply(variables, encoded, MASK, capacity=12, target_mask=mask, method="prefill")
        first, cache = model.apply(variables, replies[:, None, :4], cache, method="decode_step")
        rest, cache = model.apply(variables, replies[:, None, 4:], cache, method="decode_step")
        return jnp.concatenate([first, rest], axis=2)[:, 0], cache.length

    logits, length = in_two_parts(variables)
    assert int(length) == 7
    np.testing.assert_allclose(np.asarray(logits)[kept], np.asarray(whole)[kept], **CLOSE)


def test_what_is_masked_in_the_past_changes_nothing(tiny):
    """Half the past is masked: another token there gives the same logits, where the mask is lifted it does not."""
    whole, params = tiny
    model = BlenderbotForCausalLM(whole.config)
    ids = np.random.default_rng(1).integers(3, 96, (2, 5))
    other = ids.copy()
    other[:, 1] = (ids[:, 1] + 1) % 96
    half = np.arange(5) >= 2

    @jax.jit
    def last(params, ids, mask):
        step = partial(model.apply, {"params": params}, method="decode_step")
        cache = model.apply({"params": params}, None, capacity=5, batch=2, target_mask=mask, method="prefill")
        _, cache = step(ids[:, None, :4], cache)
        return step(ids[:, None, 4:], cache)[0][:, 0, 0]

    masked, lifted = np.broadcast_to(half, (2, 5)), np.ones((2, 5), bool)
    np.testing.assert_allclose(last(params, ids, masked), last(params, other, masked), **CLOSE)
    assert np.abs(last(params, ids, lifted) - last(params, other, lifted)).max() > 1e-3
    uncached = jax.jit(model.apply)({"params": params}, ids, masked).logits[:, -1]
    np.testing.assert_allclose(last(params, ids, masked), uncached, **CLOSE)


def test_encoder_and_decoder_work_alone_from_a_saved_folder(tiny, tmp_path):
    model, params = tiny
    replies = np.array([[1, 17, 4], [1, 30, 31]])
    out = jax.jit(partial(model.apply, output_hidden_states=True))({"params": params}, IDS, MASK, replies)
    save_pretrained(tmp_path, model.config, params)
    headless, loaded = BlenderbotModel.from_pretrained(tmp_path)
    # The encoder reads its own part of the parameters, and no more.
    encoder_alone = {"shared": loaded["shared"], "encoder": loaded["encoder"]}
    encoded = jax.jit(partial(headless.apply, method="encode"))({"params": encoder_alone}, IDS, MASK)
    np.testing.assert_allclose(encoded, out.encoder_last_hidden_state, **CLOSE)
    lm, decoder_alone = BlenderbotForCausalLM.from_pretrained(tmp_path)
    assert set(decoder_alone["model"]) == {"shared", "decoder"}
    alone = jax.jit(partial(lm.apply, output_hidden_states=True))(
        {"params": decoder_alone}, replies, encoder_hidden_states=encoded, encoder_attention_mask=MASK
    )
    for ours, theirs in zip(alone.hidden_states, out.decoder_hidden_states, strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_half_precision_parameters_search_and_draw(tiny_config, dtype):
    model = BlenderbotForConditionalGeneration(tiny_config.replace(decoder_layers=1), dtype)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), golden_params(model))
    config = GenerationConfig(
        num_beams=4, do_sample=True, top_k=20, early_stopping=False, num_return_sequences=3, max_length=9
    )
    out = generate(model, params, IDS, MASK, config=config, key=jax.random.key(0))
    assert out.sequences.shape == (2, 3, 9)
    assert out.scores.dtype == jnp.float32
    assert np.isfinite(out.scores).all()
    assert (np.diff(out.scores, axis=1) <= 0).all()
    assert (np.asarray(out.lengths) > 1).all()


@pytest.mark.parametrize("tiny", ["tiny_config"], indirect=True)
def test_encoding_and_decoding_give_the_same_under_jit(tiny):
    model, params = tiny

    def steps(params):
        encoded = model.apply({"params": params}, IDS, MASK, method="encode")
        cache = model.apply({"params": params}, encoded, MASK, capacity=3, beams=2, method="prefill")
        tokens = jnp.array([[[1], [5]], [[1], [6]]])
        return encoded, *model.apply({"params": params}, tokens, cache, method="decode_step")

    plain, jitted = steps(params), jax.jit(steps)(params)
    assert jax.tree.structure(plain) == jax.tree.structure(jitted)
    for ours, theirs in zip(jax.tree.leaves(plain), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)


@pytest.mark.parametrize("model_class", [BlenderbotModel, BlenderbotForConditionalGeneration])
def test_arguments_come_in_the_order_of_transformers(model_class):
    order = ["self", "input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"]
    assert list(inspect.signature(model_class.__call__).parameters)[:5] == order


@pytest.mark.parametrize("vocab_size", [106, 81])
@pytest.mark.parametrize("model_class", [BlenderbotModel, BlenderbotForConditionalGeneration, BlenderbotForCausalLM])
def test_every_table_of_an_untied_model_is_resized(tiny_config, model_class, vocab_size):
    model = model_class(tiny_config.replace(tie_word_embeddings=False, encoder_layers=0, decoder_layers=0))
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)
    resized, new = resize_token_embeddings(model, params, vocab_size, jax.random.key(1))
    wanted = jax.eval_shape(resized.init_params, jax.random.key(0))
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(lambda leaf: leaf.shape, wanted)
    changed = 0
    for old, leaf in zip(jax.tree.leaves(params), jax.tree.leaves(new), strict=True):
        kept = tuple(slice(min(a, b)) for a, b in zip(old.shape, leaf.shape, strict=True))
        np.testing.assert_array_equal(leaf[kept], old[kept])
        changed += old.shape != leaf.shape
    # Three tables, a head, and the bias of the whole model.
    assert changed == {BlenderbotModel: 3, BlenderbotForConditionalGeneration: 5, BlenderbotForCausalLM: 2}[model_class]


def test_shifting_drops_one_pad_of_each_row_and_starts_with_the_start_token(tiny_config):
    labels = np.array([[71, 82, 18, 33, 2, 1, 1], [68, 34, 26, 58, 30, 82, 2]])
    shifted = shift_tokens_right(labels, tiny_config.replace(pad_token_id=1, decoder_start_token_id=2))
    assert shifted.shape == labels.shape
    assert (shifted == 1).sum() == (labels == 1).sum() - 1
    assert (shifted[:, 0] == 2).all()


@pytest.mark.parametrize("name", ["blenderbot-400M-distill", "blenderbot-1B-distill", "blenderbot-3B"])
def test_a_sentence_comes_back_from_the_published_vocabulary(data_folder, name):
    tokenizer = load_tokenizer(data_folder / "tokenizers" / name)
    sentence = " I am a small frog."
    ids = tokenizer([sentence], padding=False, truncation=False)["input_ids"]
    assert tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == [sentence]


def test_a_sentence_comes_back_in_small_letters_and_apart_from_the_90m_vocabulary(data_folder):
    tokenizer = load_tokenizer(data_folder / "tokenizers/blenderbot_small-90M")
    assert tokenizer("sam").input_ids == [1384]
    ids = tokenizer(["I am a small frog."], padding=False, truncation=False)["input_ids"]
    decoded = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert decoded == ["i am a small frog ."]


def test_a_stop_is_the_same_token_at_either_end(data_folder):
    tokenizer = load_tokenizer(data_folder / "tokenizers/blenderbot_small-90M")
    assert tokenizer("I am a small frog .")["input_ids"][-1] == tokenizer(".")["input_ids"][0]
