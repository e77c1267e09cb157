"""ParlAI's options become configurations and come back; what no BlenderBot has is refused by name."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blenderbot_jax import parlai
from blenderbot_jax.config import BlenderbotConfig, BlenderbotSmallConfig
from blenderbot_jax.generation import GenerationConfig
from blenderbot_jax.parlai.options import longest_text, position_count
from tests.parlai_files import OPTIONS_3B, OPTIONS_9B, OPTIONS_90M, TINY, tiny_config


def config_of(options, vocab_size=8008):
    return BlenderbotConfig.from_dict(parlai.architecture(options, vocab_size))


@pytest.mark.parametrize(
    ("options", "vocab_size", "expected"),
    [
        (OPTIONS_3B, 8008, BlenderbotConfig.blenderbot_3b()),
        (OPTIONS_9B, 8008, BlenderbotConfig.blenderbot_9b()),
        (OPTIONS_90M, 54944, BlenderbotConfig.blenderbot_small_90m()),
        (TINY["prelayernorm"], tiny_config("prelayernorm").vocab_size, tiny_config("prelayernorm")),
        (TINY["xlm"], tiny_config("xlm").vocab_size, tiny_config("xlm")),
    ],
    ids=["3B", "9B", "90M", "tiny prelayernorm", "tiny xlm"],
)
def test_the_options_of_published_models_are_their_configurations(options, vocab_size, expected):
    found = config_of(options, vocab_size)
    assert found == expected
    assert type(found) is type(expected)


def test_what_a_file_lacks_has_the_default_of_the_command_line():
    least = {"variant": "prelayernorm", "dict_tokenizer": "bytelevelbpe"}
    found = config_of(least)
    assert (found.d_model, found.encoder_layers, found.decoder_layers, found.encoder_attention_heads) == (300, 2, 2, 2)
    assert (found.scale_embedding, found.activation_function, found.dropout) == (True, "relu", 0.0)
    assert config_of(least | {"n_heads": None, "n_segments": None}) == found


@pytest.mark.parametrize(
    ("layers", "expected"),
    [({"n_layers": 3}, (3, 3)), ({"n_layers": 3, "n_encoder_layers": 1}, (1, 3)),
     ({"n_layers": 3, "n_encoder_layers": -1, "n_decoder_layers": 5}, (3, 5)), ({"n_decoder_layers": 0}, (2, 2))],
)  # fmt: skip
def test_each_side_has_its_own_layers_or_those_of_both(layers, expected):
    options = {key: value for key, value in OPTIONS_3B.items() if not key.endswith("_layers")}
    found = config_of(options | layers)
    assert (found.encoder_layers, found.decoder_layers) == expected


@pytest.mark.parametrize(
    ("limits", "positions", "text"),
    [
        ({"n_positions": 128, "text_truncate": 100}, 128, 100),
        ({"n_positions": 128, "text_truncate": 512}, 128, 128),
        ({"truncate": 64, "label_truncate": 80}, 80, 64),
        ({"n_positions": None, "text_truncate": 32}, 32, 32),
        ({"truncate": -1}, 1024, 1024),
        ({"truncate": 50, "text_truncate": -1}, 50, 50),
        ({}, 1024, 1024),
    ],
)
def test_positions_follow_parlais_rule(limits, positions, text):
    assert (position_count(limits), longest_text(limits)) == (positions, text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "aiayn"}, "variant must be 'prelayernorm' or 'xlm', not 'aiayn'"),
        ({"variant": "bart"}, "variant must be"),
        ({"variant": None}, "not 'aiayn'"),
        ({"activation": "swish"}, "activation must be 'gelu' or 'relu', not 'swish'"),
        ({"output_scaling": 0.5}, r"output_scaling must be 1\.0, not 0\.5"),
        ({"n_segments": 2}, "n_segments must be 0, not 2"),
        ({"person_tokens": True}, "person_tokens must be False"),
        ({"dict_tokenizer": "gpt2"}, "dict_tokenizer must be 'bytelevelbpe' or 'bpe', not 'gpt2'"),
        ({"dict_lower": True}, "dict_lower must be False, not True"),
        ({"dict_tokenizer": "bpe"}, "dict_lower must be True, not False"),
        ({"dict_endtoken": "</s>"}, "dict_endtoken must be '__end__', not '</s>'"),
        ({"n_positions": -5}, "n_positions must not be negative, it is -5"),
        ({"embedding_size": "2560"}, "embedding_size must be a whole number, not '2560'"),
        ({"n_heads": True}, "n_heads must be a whole number, not True"),
        ({"embeddings_scale": 1}, "embeddings_scale must be true or false, not 1"),
        ({"dropout": "0.1"}, r"dropout must be a number, not '0\.1'"),
        ({"n_heads": 33}, "embedding_size=2560 must be a multiple of n_heads=33"),
        ({"n_heads": 0}, "n_heads must be at least 1, it is 0"),
        ({"ffn_size": -1}, "ffn_size must be at least 1, it is -1"),
        ({"relu_dropout": 1.5}, r"relu_dropout is a probability between 0 and 1, not 1\.5"),
        ({"n_decoder_layers": 0, "n_layers": 0}, "n_layers or n_decoder_layers must be at least 1"),
        ({"beam_size": []}, r"beam_size must be a whole number, not \[\]"),
    ],
)
def test_other_architectures_are_refused_by_the_option_that_asks_for_them(change, message):
    with pytest.raises(ValueError, match=f"model.opt describes a model that is not supported: .*{message}"):
        parlai.architecture(OPTIONS_3B | change, 8008)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ValueError, match=r"here\.opt") as error:
        parlai.architecture(OPTIONS_3B | {"variant": "bart", "n_segments": 3, "activation": "tanh"}, 8008, "here.opt")
    assert all(name in str(error.value) for name in ("variant", "n_segments", "activation"))


BEAM = {"inference": "beam", "beam_size": 10, "beam_min_length": 20, "beam_block_ngram": 3}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"num_beams": 10, "min_length": 20, "max_length": 60, "length_penalty": 0.65, "no_repeat_ngram_size": 3,
              "encoder_no_repeat_ngram_size": 3}),
        ({"dict_tokenizer": "bpe", "n_positions": 512}, {"num_beams": 10, "min_length": 20, "max_length": 128,
                                                         "length_penalty": 0.65, "no_repeat_ngram_size": 3}),
        ({"inference": "delayedbeam"}, {"num_beams": 10, "min_length": 20, "max_length": 60, "length_penalty": 0.65,
                                        "no_repeat_ngram_size": 3, "encoder_no_repeat_ngram_size": 3}),
        (BEAM | {"beam_context_block_ngram": -1, "label_truncate": 128},
         {"num_beams": 10, "min_length": 21, "max_length": 128, "length_penalty": 0.65, "no_repeat_ngram_size": 3}),
        (BEAM | {"label_truncate": 12}, {"num_beams": 10, "min_length": 12, "max_length": 12, "length_penalty": 0.65,
                                         "no_repeat_ngram_size": 3}),
        ({"inference": "greedy", "n_positions": 40}, {"num_beams": 1, "max_length": 40}),
        ({"inference": "topk", "topk": 5, "temperature": 0.7},
         {"num_beams": 1, "do_sample": True, "top_k": 5, "temperature": 0.7, "max_length": 256}),
        ({"inference": "nucleus"},
         {"num_beams": 1, "do_sample": True, "top_p": 0.9, "temperature": 1.0, "max_length": 256}),
    ],
)  # fmt: skip
def test_decoding_is_what_the_options_say_or_the_published_recipe(options, expected):
    found = parlai.decoding(options)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    assert found == expected | ids | {"forced_eos_token_id": 2}
    assert GenerationConfig.from_dict(found).to_dict() == found


def test_the_fewest_tokens_are_parlais():
    # There, 20 tokens come before the end; here, the start token counts too.
    assert parlai.decoding(BEAM)["min_length"] == 20 + 1


# The way back.


@st.composite
def configurations(draw):
    heads = draw(st.integers(1, 8))
    cls = draw(st.sampled_from([BlenderbotConfig, BlenderbotSmallConfig]))
    ffn = draw(st.integers(1, 4096))
    rate = st.floats(0, 1)
    return cls(
        vocab_size=draw(st.integers(8, 60000)),
        max_position_embeddings=draw(st.integers(1, 1024)),
        d_model=heads * draw(st.integers(1, 64)),
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn,
        encoder_layers=draw(st.integers(1, 40)),
        decoder_layers=draw(st.integers(1, 40)),
        activation_function=draw(st.sampled_from(["gelu", "relu"])),
        scale_embedding=draw(st.booleans()),
        dropout=draw(rate),
        attention_dropout=draw(rate),
        activation_dropout=draw(rate),
    )


@settings(max_examples=50, deadline=None)
@given(config=configurations(), beams=st.integers(1, 20), kind=st.sampled_from(["bytelevelbpe", "bpe"]))
def test_options_of_a_configuration_give_it_back(config, beams, kind):
    generation = {"num_beams": beams, "max_length": 20, "length_penalty": 0.65, "no_repeat_ngram_size": 3}
    options = json.loads(json.dumps(parlai.options_of(config.to_dict(), generation, kind)))
    assert BlenderbotConfig.from_dict(parlai.architecture(options, config.vocab_size)) == config
    assert parlai.decoding(options).get("num_beams") == beams


@pytest.mark.parametrize(
    "options", [BEAM, {"inference": "greedy"}, {"inference": "topk", "topk": 3}, {"inference": "nucleus", "topp": 0.3}]
)
def test_decoding_comes_back(options):
    options = {"n_positions": 128, "label_truncate": 128} | options
    config = tiny_config("prelayernorm").replace(max_position_embeddings=128)
    made = parlai.options_of(config.to_dict(), parlai.decoding(options), "bytelevelbpe")
    assert parlai.decoding(made) == parlai.decoding(options)


@pytest.mark.parametrize(
    ("kind", "delimiter", "expected"),
    [("bytelevelbpe", None, "  "), ("bpe", None, "\n"), ("bytelevelbpe", "\n", "\n")],
)
def test_the_delimiter_is_the_usual_one_unless_told(kind, delimiter, expected):
    config = tiny_config("prelayernorm").to_dict()
    assert parlai.options_of(config, {}, kind, delimiter=delimiter)["delimiter"] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_attention_heads": 2}, "encoder_attention_heads=2 and decoder_attention_heads=4"),
        ({"decoder_ffn_dim": 56}, "encoder_ffn_dim=40 and decoder_ffn_dim=56"),
        ({"activation_function": "silu"}, "activation_function='silu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"encoder_layers": 0}, "encoder_layers=0"),
        ({"eos_token_id": (2, 5)}, r"eos_token_id=\[2, 5\], which is 2 there"),
    ],
)
def test_what_parlai_has_no_option_for_is_refused_by_name(change, message):
    config = tiny_config("prelayernorm").replace(**change)
    with pytest.raises(ValueError, match=f"ParlAI has no options for this model: {message}"):
        parlai.options_of(config.to_dict(), {}, "bytelevelbpe")


def test_a_decoder_that_does_not_scale_is_refused_where_the_encoder_does():
    config = tiny_config("xlm").replace(scale_decoder_embedding=False)
    with pytest.raises(ValueError, match="scale_decoder_embedding=False, both sides are scaled or neither"):
        parlai.options_of(config.to_dict(), {}, "bpe")


# The file.


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "options must be JSON"), (b"[1]", "options must be a JSON object, these are a list"),
     (b"\x80\x02}q\x00.", "must be UTF-8 text; byte 0 is not"), (b"[" * 100_000, "options must be JSON")],
)  # fmt: skip
def test_damaged_options_are_refused(tmp_path, content, message):
    (tmp_path / "model.opt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        parlai.read_options(tmp_path / "model.opt")
    assert str(tmp_path / "model.opt") in str(error.value)


def test_missing_options_are_named_with_all_that_belongs_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.opt is missing: a ParlAI checkpoint is model, model\.opt"):
        parlai.read_options(tmp_path / "model.opt")
