"""Convert published weights into a folder this library loads at once: safetensors, in the dtype you want.

\b
    python convert/from_huggingface.py facebook/blenderbot-400M-distill blenderbot-400m --dtype bfloat16

SOURCE is a folder or a hub name: safetensors, .bin of any version of PyTorch, or Flax weights, whole or in shards.
Nothing in a .bin is executed, and torch is not needed. TARGET then holds config.json, model.safetensors, and the files
of tokenizer and generation as they were; it loads here with from_pretrained(TARGET), and in transformers too.
"""

from blenderbot_jax.cli.convert import convert
from blenderbot_jax.cli.errors import as_script

main = as_script(convert, __doc__)

if __name__ == "__main__":
    main()
