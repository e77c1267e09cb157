"""What objects of transformers can and ours cannot, on purpose: each name with what to do instead.

Whoever comes from transformers writes `model.generate(...)` first; the error should say where it is.
"""

from collections.abc import Mapping
from typing import NoReturn

MODEL: dict[str, str] = {
    "generate": "call generate(model, params, input_ids, attention_mask, config=...)",
    "save_pretrained": "call save_pretrained(folder, model.config, params)",
    "resize_token_embeddings": "call resize_token_embeddings(model, params, vocab_size, key)",
    "forward": 'call model.apply({"params": params}, ...)',
    "get_encoder": 'call model.apply({"params": params}, ids, mask, method="encode")',
    "get_decoder": "use BlenderbotForCausalLM, which takes the same parameters",
    **dict.fromkeys(
        ("get_input_embeddings", "set_input_embeddings", "get_output_embeddings", "set_output_embeddings"),
        'the table is params["model"]["shared"]["embedding"]; parameters are an argument of model.apply',
    ),
    **dict.fromkeys(
        ("state_dict", "load_state_dict", "parameters", "named_parameters", "num_parameters"),
        "a model holds no weights: they are the second result of from_pretrained, a nested dict",
    ),
    **dict.fromkeys(
        ("eval", "train", "training"), 'dropout is on exactly when model.apply is given rngs={"dropout": key}'
    ),
    **dict.fromkeys(("to", "cuda", "cpu", "device"), "place the parameters with jax.device_put"),
    **dict.fromkeys(("half", "bfloat16", "float"), "compute in another dtype with model.clone(dtype=...)"),
    **dict.fromkeys(("gradient_checkpointing_enable", "gradient_checkpointing_disable"), "say model.clone(remat=True)"),
    "push_to_hub": "save the model, then upload the folder with huggingface_hub",
}
_A_CALL = "the tokenizer's call does it: tokenizer(texts, padding=..., truncation=..., max_length=...)"
_CONVERSATION = "Conversation joins turns as the models were trained: Conversation().add('user', text)"
_FIXED = "the vocabulary of a checkpoint is fixed here: make a tokenizer of another one, then resize_token_embeddings"
_SPECIALS = "see all_special_tokens and all_special_ids"
_ALWAYS = "it is fixed"
TOKENIZER: dict[str, str] = {
    "save_vocabulary": "save_pretrained(folder) writes it",
    "vocab": "get_vocab() gives a copy",
    "clean_up_tokenization": "decode(..., clean_up_tokenization_spaces=True) does it",
    "bpe": "tokenize(text) gives the tokens",
    **dict.fromkeys(
        ("pad", "prepare_for_model", "prepare_for_tokenization", "truncate_sequences", "set_truncation_and_padding",
         "build_inputs_with_special_tokens", "max_len_sentences_pair", "max_len_single_sentence"),
        _A_CALL,
    ),
    **dict.fromkeys(
        ("apply_chat_template", "save_chat_templates", "get_chat_template", "encode_message_with_chat_template",
         "parse_response", "get_response_parser"),
        _CONVERSATION,
    ),
    **dict.fromkeys(("special_tokens_map", "get_special_tokens_mask", "num_special_tokens_to_add"), _SPECIALS),
    **dict.fromkeys(
        ("add_tokens", "add_special_tokens", "added_tokens_decoder", "added_tokens_encoder", "get_added_vocab",
         "convert_added_tokens", "train_new_from_iterator", "decoder"),
        _FIXED,
    ),
    **dict.fromkeys(
        ("create_token_type_ids_from_sequences", "pad_token_type_id"), "these models have no token types"
    ),
    **dict.fromkeys(
        ("add_bos_token", "add_eos_token", "update_post_processor", "backend_tokenizer", "is_fast", "model",
         "model_input_names", "vocab_files_names", "slow_tokenizer_class", "can_save_slow_tokenizer",
         "convert_to_native_format", "pretrained_vocab_files_map", "SPECIAL_TOKENS_ATTRIBUTES"),
        _ALWAYS,
    ),
    **dict.fromkeys(
        ("push_to_hub", "register_for_auto_class"), "save the tokenizer, then upload the folder with huggingface_hub"
    ),
}  # fmt: skip


def refuse_attribute(owner: str, name: str, instead: Mapping[str, str]) -> NoReturn:
    """Say that an attribute is not here, and what to do instead if its name is known.

    Raises:
        AttributeError: always.
    """
    hint = f": {instead[name]}" if name in instead else ""
    raise AttributeError(f"{owner} has no {name!r}{hint}")
