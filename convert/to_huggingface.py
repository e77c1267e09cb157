"""Convert a checkpoint into a folder for transformers: config.json, model.safetensors, tokenizer, generation settings.

\b
    python convert/to_huggingface.py ./my-checkpoint for-transformers --dtype float16
    python -c "import transformers; transformers.AutoModelForSeq2SeqLM.from_pretrained('for-transformers')"

What save_pretrained writes here is such a folder already; this changes its dtype, or makes one of a checkpoint in
another form (.bin, Flax). The weights are written as safetensors only: transformers reads nothing more readily, and a
.bin is a pickle, which others should not have to trust. It is convert/from_huggingface.py by another name, for the
layout is the same.
"""

from blenderbot_jax.cli.convert import convert
from blenderbot_jax.cli.errors import as_script

main = as_script(convert, __doc__)

if __name__ == "__main__":
    main()
