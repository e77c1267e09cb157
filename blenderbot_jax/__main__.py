"""`python -m blenderbot_jax` is the command `blenderbot-jax`."""

from blenderbot_jax.cli import main

if __name__ == "__main__":
    main()
