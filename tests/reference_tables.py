"""What the transformers page of BlenderBot offers, as tables: each name with its default, new name or refusal."""

import inspect
from dataclasses import dataclass
from typing import Any

from blenderbot_jax.outputs import CausalLMOutput, Seq2SeqLMOutput, Seq2SeqModelOutput

CLASSES = {
    f"Blenderbot{size}{kind}"
    for size in ("", "Small")
    for kind in ("Config", "Tokenizer", "TokenizerFast", "Model", "ForConditionalGeneration", "ForCausalLM")
}


@dataclass(frozen=True)
class Here:
    """Present, with this default."""

    default: Any = None


@dataclass(frozen=True)
class Renamed:
    """Present under another name."""

    name: str


@dataclass(frozen=True)
class Refused:
    """A value that asks for something is refused in these words; `neutral` ones, which ask for nothing, are not."""

    value: Any
    words: str
    neutral: tuple[Any, ...] = ()


NO_ARGUMENT = "takes no argument '{name}'"
HEAD_MASK = Refused(((1.0,),), "out_proj/kernel", (None,))

CONFIG = {
    "vocab_size": 8008, "max_position_embeddings": 128, "encoder_layers": 2, "encoder_ffn_dim": 10240,
    "encoder_attention_heads": 32, "decoder_layers": 24, "decoder_ffn_dim": 10240, "decoder_attention_heads": 32,
    "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "use_cache": True, "is_encoder_decoder": True,
    "activation_function": "gelu", "d_model": 2560, "dropout": 0.1, "attention_dropout": 0.0, "activation_dropout": 0.0,
    "init_std": 0.02, "decoder_start_token_id": 1, "scale_embedding": False, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "encoder_no_repeat_ngram_size": 3, "forced_eos_token_id": 2, "is_decoder": False,
    "tie_word_embeddings": True,
}  # fmt: skip
SMALL_CONFIG = CONFIG | {
    "vocab_size": 50265, "max_position_embeddings": 512, "encoder_layers": 8, "encoder_ffn_dim": 2048,
    "encoder_attention_heads": 16, "decoder_layers": 8, "decoder_ffn_dim": 2048, "decoder_attention_heads": 16,
    "d_model": 512, "encoder_no_repeat_ngram_size": 0,
}  # fmt: skip
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
# What every configuration of transformers takes: read from a file and written back, and without effect.
INHERITED = {
    "transformers_version": "5.23.0", "architectures": ["BlenderbotModel"], "output_hidden_states": True,
    "return_dict": False, "dtype": "float16", "chunk_size_feed_forward": 4, "id2label": {"0": "a"},
    "label2id": {"a": 0}, "problem_type": "regression",
}  # fmt: skip

FORWARD_OPTIONS = {
    "use_cache": Refused(1, "use_cache", (None, True, False)),
    "past_key_values": Refused((), "encode, prefill and decode_step", (None,)),
    "output_attentions": Here(False),
    "output_hidden_states": Here(False),
    "return_dict": Refused(False, "always a record", (None, True)),
    "position_ids": Refused([[0, 1]], "counted from the mask", (None,)),
    "decoder_position_ids": Refused([[0, 1]], "counted from the mask", (None,)),
    "cache_position": Refused([0], "a cache knows its own length", (None,)),
    "num_items_in_batch": Refused(3, "scale the loss yourself", (None,)),
    **dict.fromkeys(("head_mask", "decoder_head_mask", "cross_attn_head_mask"), HEAD_MASK),
    "output_router_logits": Refused(True, "experts", (None, False)),
    "is_causal": Refused(True, "the decoder is causal", (None,)),
    **dict.fromkeys(
        ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"),
        Refused(1, "not packed", (None,))),
}  # fmt: skip
INPUTS = dict.fromkeys(("input_ids", "attention_mask", "inputs_embeds"), Here())
DECODER_INPUTS = dict.fromkeys(
    ("decoder_input_ids", "decoder_attention_mask", "encoder_outputs", "decoder_inputs_embeds"), Here()
)
HEAD = {"labels": Here(), "logits_to_keep": Here(0)}
STATES = {"encoder_hidden_states": Here(), "encoder_attention_mask": Here()}
ABSENT = Refused([[1]], NO_ARGUMENT)
FORWARD = {
    "Model": {**INPUTS, **DECODER_INPUTS, **FORWARD_OPTIONS, "labels": ABSENT},
    "ForConditionalGeneration": {**INPUTS, **DECODER_INPUTS, **HEAD, **FORWARD_OPTIONS},
    "ForCausalLM": {**INPUTS, **STATES, **HEAD, **FORWARD_OPTIONS, "decoder_input_ids": ABSENT},
}
# A cache is handed on by decode_step, so no result holds one.
OUTPUTS = {
    Seq2SeqModelOutput: "last_hidden_state decoder_hidden_states decoder_attentions cross_attentions "
    "encoder_last_hidden_state encoder_hidden_states encoder_attentions",
    Seq2SeqLMOutput: "loss logits decoder_hidden_states decoder_attentions cross_attentions encoder_last_hidden_state "
    "encoder_hidden_states encoder_attentions",
    CausalLMOutput: "loss logits hidden_states attentions cross_attentions",
}

LOADING = {
    "pretrained_model_name_or_path": Renamed("name_or_folder"),
    "config": Refused({}, "config.json is read", (None,)),
    "cache_dir": Here(),
    "ignore_mismatched_sizes": Refused(True, "resize_token_embeddings", (None, False)),
    "force_download": Refused(True, "hub cache", (None, False)),
    "local_files_only": Here(),
    "token": Here(),
    "revision": Here(),
    "use_safetensors": Refused(3, "use_safetensors", (None, True, False)),
    "weights_only": Refused(False, "nothing in a checkpoint is ever executed", (None, True)),
    "fusion_config": Refused({}, "XLA fuses", (None,)),
    "disable_mmap": Refused(3, "disable_mmap", (None, True, False)),
    "device_map": Refused("auto", r"mesh=make_mesh", (None,)),
    "torch_dtype": Refused("float16", r"dtype=jnp\.bfloat16", (None,)),
    "attn_implementation": Refused("sdpa", "one implementation", (None, "eager")),
    "quantization_config": Refused({}, "keeps kernels in 8 bits", (None,)),
    "low_cpu_mem_usage": Refused(3, "low_cpu_mem_usage", (None, True, False)),
    "trust_remote_code": Refused(True, "no code of a checkpoint", (None, False)),
    "state_dict": Refused({}, "model.apply", (None,)),
    "from_tf": Refused(True, "safetensors", (None, False)),
    "from_flax": Refused(3, "from_flax", (None, True, False)),
    "output_loading_info": Refused(True, "names the tensor", (None, False)),
    "subfolder": Refused("here", "own path", (None, "")),
    "proxies": Refused({}, "HTTPS_PROXY", (None,)),
}
GENERATE = {
    "inputs": Refused([[5]], "input_ids", (None,)),
    "generation_config": Refused({}, "config=GenerationConfig", (None,)),
    "logits_processor": Refused([], "processors=", (None,)),
    "stopping_criteria": Refused([], "stop_sequences=", (None,)),
    "prefix_allowed_tokens_fn": Here(),
    "synced_gpus": Refused(True, "leave it out", (None, False)),
    "assistant_model": Refused(3, "leave it out", (None,)),
    "streamer": Refused(3, "decode in pieces", (None,)),
    "negative_prompt_ids": Refused([[5]], "processors=", (None,)),
    "negative_prompt_attention_mask": Refused([[1]], "processors=", (None,)),
    "custom_generate": Refused("here", "encode, prefill and decode_step", (None,)),
    "num_beams": Refused(4, r"GenerationConfig\(num_beams=\.\.\.\)"),
    "decoder_attention_mask": Refused([[1]], "one length", (None,)),
    "past_key_values": Refused((), "as decoder_input_ids", (None,)),
}

_SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>"}
TOKENIZER = {
    **{name: Here(token) for name, token in _SPECIALS.items()},
    "pad_token": Here("<pad>"),
    "mask_token": Here("<mask>"),
    "add_prefix_space": Here(True),
    "vocab": Here(inspect.Parameter.empty),
    "merges": Here(inspect.Parameter.empty),
}
SMALL_TOKENIZER = {
    "vocab_file": Renamed("vocab"),
    "merges_file": Renamed("merges"),
    "bos_token": Here("__start__"),
    "eos_token": Here("__end__"),
    "unk_token": Here("__unk__"),
    "pad_token": Here("__null__"),
}
# Lists are padded here unless told otherwise, so None is no False.
CALL = {
    "text": Here(inspect.Parameter.empty),
    "text_pair": Refused("b", "join turns with Conversation", (None,)),
    "text_target": Refused("b", "supports {name}=", (None,)),
    "text_pair_target": Refused("b", "supports {name}=", (None,)),
    "add_special_tokens": Here(True),
    "padding": Here(None),
    "truncation": Here(None),
    "max_length": Here(None),
    "stride": Refused(2, "supports {name}=", (0,)),
    "is_split_into_words": Refused(True, "supports {name}=", (False,)),
    "pad_to_multiple_of": Here(None),
    "padding_side": Here(None),
    "return_tensors": Refused("pt", "numpy arrays of return_tensors='np'", (None, "np", "jax")),
    "return_token_type_ids": Refused(True, "return_token_type_ids=False only", (None, False)),
    "return_attention_mask": Refused(False, "return_attention_mask=True only", (None, True)),
    "return_overflowing_tokens": Refused(True, "supports {name}=", (False,)),
    "return_special_tokens_mask": Refused(True, "supports {name}=", (False,)),
    "return_offsets_mapping": Refused(True, "supports {name}=", (False,)),
    "return_length": Refused(True, "supports {name}=", (False,)),
    "verbose": Refused(3, "verbose", (True, False)),
    "tokenizer_kwargs": Refused({}, "supports {name}=", (None,)),
}
# Method of a tokenizer -> its arguments here, in transformers' order; the options of `encode` are those of a call.
METHODS = {
    "encode": "text",
    "decode": "token_ids skip_special_tokens clean_up_tokenization_spaces",
    "batch_decode": "sequences skip_special_tokens clean_up_tokenization_spaces",
    "tokenize": "text add_special_tokens",
    "convert_tokens_to_ids": "tokens",
    "convert_ids_to_tokens": "ids skip_special_tokens",
    "convert_tokens_to_string": "tokens",
    "get_vocab": "",
    "save_pretrained": "folder",
    "from_pretrained": "name_or_folder revision cache_dir local_files_only token",
}
ATTRIBUTES = ("all_special_ids", "all_special_tokens", "padding_side", "truncation_side", "vocab_size")
# What a tokenizer or a model of transformers can beside -> a word of what to do here instead.
TOKENIZER_INSTEAD = {
    "save_pretrained": "save_vocabulary",
    "get_vocab": "vocab",
    "the tokenizer's call": "pad prepare_for_model prepare_for_tokenization truncate_sequences "
    "set_truncation_and_padding build_inputs_with_special_tokens max_len_sentences_pair max_len_single_sentence",
    "Conversation": "apply_chat_template save_chat_templates get_chat_template encode_message_with_chat_template "
    "parse_response get_response_parser",
    "decode": "clean_up_tokenization",
    "tokenize": "bpe",
    "all_special_ids": "special_tokens_map get_special_tokens_mask num_special_tokens_to_add",
    "resize_token_embeddings": "add_tokens add_special_tokens added_tokens_decoder added_tokens_encoder "
    "get_added_vocab convert_added_tokens train_new_from_iterator decoder",
    "no token types": "create_token_type_ids_from_sequences pad_token_type_id",
    "it is fixed": "add_bos_token add_eos_token update_post_processor backend_tokenizer is_fast model "
    "model_input_names vocab_files_names slow_tokenizer_class can_save_slow_tokenizer convert_to_native_format "
    "pretrained_vocab_files_map SPECIAL_TOKENS_ATTRIBUTES",
    "huggingface_hub": "push_to_hub register_for_auto_class",
}
MODEL_INSTEAD = {
    "generate\\(model, params": "generate",
    "save_pretrained\\(folder": "save_pretrained",
    "resize_token_embeddings\\(model": "resize_token_embeddings",
    "embedding": "get_input_embeddings set_input_embeddings get_output_embeddings",
    "rngs": "eval train",
    "device_put": "to cuda",
    "clone\\(dtype": "half",
    "holds no weights": "state_dict parameters num_parameters",
    "model.apply": "forward get_encoder",
}
NOT_HERE = {name for names in TOKENIZER_INSTEAD.values() for name in names.split()}
