"""More positions: old lengths are computed as before, formulas go on, and longer conversations can be learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blenderbot_jax import Checkpoint, quantize, save_pretrained
from blenderbot_jax.checkpoint.parlai_file import sinusoids
from blenderbot_jax.data import Batches, Dialogue, corpus_examples
from blenderbot_jax.dialogue import Conversation
from blenderbot_jax.model import (
    BlenderbotForCausalLM,
    BlenderbotForConditionalGeneration,
    BlenderbotModel,
    extend_positions,
)
from blenderbot_jax.parallel import make_mesh, shard
from blenderbot_jax.tokenizer import BlenderbotTokenizer
from blenderbot_jax.training import compile_step, init_state
from tests.training_batches import TINY

IDS = np.random.default_rng(0).integers(4, 96, (2, 24))
SIDES = ("encoder", "decoder")


@pytest.fixture(scope="module")
def model(tiny_config):
    return BlenderbotForConditionalGeneration(tiny_config)


@pytest.fixture(scope="module")
def params(model):
    return drawn(model)


def drawn(model):
    """Random parameters; nothing is compiled for them."""
    rng, wanted = np.random.default_rng(0), jax.eval_shape(model.init_params, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype), wanted)


def tables(params):
    root = params.get("model", params)
    return [root[side]["embed_positions"]["embedding"] for side in SIDES if side in root]


def with_tables(params, *replaced):
    inner = {side: {**params["model"][side], "embed_positions": {"embedding": table}}
             for side, table in zip(SIDES, replaced, strict=True)}  # fmt: skip
    return {**params, "model": {**params["model"], **inner}}


def computed(dtype):
    return jnp.asarray(sinusoids(24, 24)).astype(dtype)


def logits(model, params, ids=IDS):
    def forward(params):
        return model.apply({"params": params}, ids, decoder_input_ids=ids[:, ::-1]).logits

    return jax.jit(forward)(params)


def test_learned_rows_are_copied_and_short_texts_are_read_as_before(model, params):
    longer, more = extend_positions(model, params, 60)
    assert longer == model.clone(config=model.config.replace(max_position_embeddings=60))
    for old, new in zip(tables(params), tables(more), strict=True):
        assert new.dtype == old.dtype
        np.testing.assert_array_equal(new, np.concatenate([old, old, old[:12]]))
    np.testing.assert_array_equal(logits(model, params), logits(longer, more))
    assert jax.tree.structure(more) == jax.tree.structure(params)
    wanted = jax.eval_shape(longer.init_params, jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, more) == jax.tree.map(lambda leaf: leaf.shape, wanted)
    assert len(tables(params)[0]) == model.config.max_position_embeddings == 24


def test_more_positions_make_longer_texts_readable(model, params):
    longer, more = extend_positions(model, params, 60)
    ids = np.tile(IDS, (1, 2))
    with pytest.raises(ValueError, match="48"):
        logits(model, params, ids)
    assert np.isfinite(logits(longer, more, ids)).all()


@pytest.mark.parametrize(
    ("stored", "loaded"),
    [("float32", "float32"), ("float16", "float16"), ("float16", "float32"), ("bfloat16", "bfloat16"),
     ("float32", "bfloat16"), ("float16", "bfloat16")],
)  # fmt: skip
def test_a_computed_table_goes_on_by_its_formula_whatever_has_rounded_it(model, params, stored, loaded):
    old = computed(stored).astype(loaded)
    for rule in ("copy", "interpolate"):
        _, more = extend_positions(model, with_tables(params, old, tables(params)[1]), 100, learned=rule)
        new, other = tables(more)
        np.testing.assert_array_equal(new[:24], old)
        np.testing.assert_array_equal(new[24:], jnp.asarray(sinusoids(100, 24)[24:]).astype(loaded))
        assert len(other) == 100


def test_a_whole_computed_table_is_what_parlai_computes_for_the_new_length(model, params):
    _, more = extend_positions(model, with_tables(params, computed("float32"), computed("float32")), 77)
    for table in tables(more):
        np.testing.assert_array_equal(table, sinusoids(77, 24))


def test_a_table_that_has_been_trained_on_from_the_formula_is_a_learned_one(model, params):
    moved = computed("float32").at[3, 4].add(0.01)
    _, more = extend_positions(model, with_tables(params, moved, moved), 48)
    np.testing.assert_array_equal(tables(more)[0], np.concatenate([moved, moved]))


def test_interpolated_rows_lie_between_the_old_ones(model, params):
    _, more = extend_positions(model, params, 47, learned="interpolate")
    for old, new in zip(tables(params), tables(more), strict=True):
        np.testing.assert_array_equal(new[::2], old)
        np.testing.assert_allclose(new[1::2], (old[1:] + old[:-1]) / 2, atol=1e-6)
    _, more = extend_positions(model, params, 100, learned="interpolate")
    ends = [(table[0], table[-1]) for table in tables(more)]
    np.testing.assert_array_equal(ends, [(table[0], table[-1]) for table in tables(params)])


@pytest.mark.parametrize("cls", [BlenderbotModel, BlenderbotForCausalLM])
def test_the_other_models_have_their_part_of_it(tiny_config, cls):
    model = cls(tiny_config)
    params = drawn(model)
    longer, more = extend_positions(model, params, 30)
    assert type(longer) is cls
    assert [len(table) for table in tables(more)] == [30] * len(tables(params))
    jax.eval_shape(longer.apply, {"params": more}, **longer.example_inputs())


def test_the_90m_architecture_is_extended_alike(tiny_small_config):
    model = BlenderbotForConditionalGeneration(tiny_small_config)
    params = drawn(model)
    longer, more = extend_positions(model, params, 40)
    old, new = tables(params), tables(more)
    np.testing.assert_array_equal(new, [[*table, *table[:16]] for table in old])
    jax.eval_shape(longer.apply, {"params": more}, **longer.example_inputs())


def test_kernels_in_8_bits_stay_as_they_are(model, params):
    small = quantize(params)
    longer, more = extend_positions(model, small, 30)
    assert jax.tree.structure(more) == jax.tree.structure(small)
    assert [len(table) for table in tables(more)] == [30, 30]
    jax.eval_shape(longer.apply, {"params": more}, **longer.example_inputs())
    kept = with_tables(more, *tables(small))
    assert all(old is new for old, new in zip(jax.tree.leaves(small), jax.tree.leaves(kept), strict=True))


def test_parameters_stay_on_their_mesh(model, params):
    placed = shard(make_mesh(data=1, fsdp=2, tensor=2), params)
    _, more = extend_positions(model, placed, 30)
    for old, new in zip(jax.tree.leaves(placed), jax.tree.leaves(more), strict=True):
        assert new.sharding == old.sharding
    _, plain = extend_positions(model, params, 30)
    for one, other in zip(tables(more), tables(plain), strict=True):
        np.testing.assert_array_equal(one, other)


def test_parameters_on_the_host_may_be_numpy(model, params):
    _, more = extend_positions(model, jax.device_get(params), 30)
    _, same = extend_positions(model, params, 30)
    for one, other in zip(tables(more), tables(same), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_same_length_changes_nothing(model, params):
    longer, same = extend_positions(model, params, 24)
    assert longer == model
    assert all(old is new for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(same), strict=True))


@pytest.mark.parametrize("positions", [23, 0, -1, 24.5, True, "30", None])
def test_fewer_positions_are_refused_with_the_way_out(model, params, positions):
    with pytest.raises(ValueError, match=r"at least 24, which the model has; .* a smaller model_max_length"):
        extend_positions(model, params, positions)


def test_another_rule_and_tables_of_another_length_are_refused(model, params):
    with pytest.raises(ValueError, match="'copy' or 'interpolate'; got 'random'"):
        extend_positions(model, params, 30, learned="random")
    _, more = extend_positions(model, params, 30)
    with pytest.raises(ValueError, match=r"decoder/embed_positions/embedding has 30 rows, and .* says 24 positions"):
        extend_positions(model, more, 40)


def test_a_longer_model_is_saved_read_and_given_longer_conversations(tmp_path):
    demo = Checkpoint.from_pretrained("demo")
    longer, more = extend_positions(demo.model, demo.params, 160)
    reading = BlenderbotTokenizer.from_pretrained("demo", model_max_length=160)
    save_pretrained(tmp_path, longer.config, more, demo.generation_config, reading)
    again = Checkpoint.from_pretrained(tmp_path)
    assert again.model.config.max_position_embeddings == again.tokenizer.model_max_length == 160
    chat = Conversation()
    for number in range(30):
        chat = chat.add("user", f"I have {number} dogs.")
    before, after = demo.encode(chat), again.encode(chat)
    assert (before.max_tokens, after.max_tokens) == (128, 160)
    assert len(before.input_ids) <= 128 < len(after.input_ids) <= 160
    assert after.dropped_turns < before.dropped_turns


@pytest.mark.slow
@pytest.mark.usefixtures("ordinary_promotion")
def test_contexts_beyond_the_old_length_are_learned(tiny_config):
    tokenizer = Checkpoint.from_pretrained("demo").tokenizer
    small = BlenderbotForConditionalGeneration(tiny_config.replace(vocab_size=tokenizer.vocab_size))
    model, params = extend_positions(small, drawn(small), 96)
    turns = tuple((("A", "B")[i % 2], f"Number {i} has come to see you.") for i in range(24))
    examples = list(corpus_examples([Dialogue(turns)], tokenizer, max_source=96, max_target=20))
    data = Batches(examples, TINY.batch_size)
    assert max(len(example.input_ids) for example in examples) > 48
    batch = max(data.epoch(0), key=lambda batch: batch["input_ids"].shape[1])
    assert batch["input_ids"].shape[1] > 24
    state, metrics = compile_step(model, TINY)(init_state(params, TINY), {}, batch)
    assert np.isfinite(metrics.loss)
    # The rows beyond the old length have been learned: they have moved.
    [encoder, _] = tables(state.trained)
    assert (np.abs(encoder - tables(params)[0])[30:].max(axis=1) > 0).any()
