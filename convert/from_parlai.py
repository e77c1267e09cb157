"""Convert a checkpoint of ParlAI into a folder that this library and transformers load: safetensors, in any dtype.

\b
    python convert/from_parlai.py BST9B.tgz blenderbot-9b
    python convert/from_parlai.py data/models/blender/blender_90M blenderbot-90m --dtype float32

SOURCE is a folder with model, model.opt, model.dict and the files of the tokenizer, the file of the weights under
whatever name, or a .tgz of them. Nothing in it is executed, the state of an optimizer is not read, and neither torch
nor ParlAI is needed. TARGET then holds config.json, model.safetensors, and the files of tokenizer and generation.
ParlAI's options and dictionary go along, so that convert/to_parlai.py gives them back as they were.
"""

from blenderbot_jax.cli.convert import convert
from blenderbot_jax.cli.errors import as_script

main = as_script(convert, __doc__)

if __name__ == "__main__":
    main()
