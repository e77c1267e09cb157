"""Convert a checkpoint into the form that ParlAI loads: model, model.opt, model.dict, and the files of the tokenizer.

\b
    python convert/to_parlai.py ./my-checkpoint for-parlai
    parlai interactive -mf for-parlai/model

SOURCE is any checkpoint that convert/from_huggingface.py or convert/from_parlai.py takes. The weights are written as
torch.save writes them, without torch. What ParlAI's form cannot say, such as sides of different width, is refused by
name.
"""

from blenderbot_jax.cli.convert import to_parlai
from blenderbot_jax.cli.errors import as_script

main = as_script(to_parlai, __doc__)

if __name__ == "__main__":
    main()
