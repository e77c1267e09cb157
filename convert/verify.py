"""Compare a checkpoint here and in transformers: logits, and replies under its own recipe.

\b
    python convert/verify.py ./converted
    python convert/verify.py facebook/blenderbot-400M-distill --utterances questions.txt

The exit code is 0 if all agree and 1 if something differs. It needs PyTorch and transformers:
pip install torch 'transformers>=5.8'
"""

from blenderbot_jax.cli.errors import as_script
from blenderbot_jax.cli.verify import verify

main = as_script(verify, __doc__)

if __name__ == "__main__":
    main()
