"""Side-by-side measurements: this library and others on the same weights, prompts and decoding rules."""
