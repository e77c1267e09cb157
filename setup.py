"""Builds the kernels for x86 processors where there is a compiler; without them the package is whole, and slower."""

import platform
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup

FLAGS = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden"]
# The processor is asked for them before anything else of the library is called (`blenderbot_jax/native.py`).
INSTRUCTIONS = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma"]
# GCC's own headers leave registers undefined on purpose, and warn of it.
WARNINGS = ["-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]


def extensions() -> list[Extension]:
    """The library, if this is a machine that could run it; `optional` lets a failing compiler pass."""
    jaxlib = find_spec("jaxlib")
    if jaxlib is None or jaxlib.origin is None or sys.platform != "linux" or platform.machine() != "x86_64":
        return []
    headers = Path(jaxlib.origin).parent / "include"
    library = Extension(
        "_blenderbot_jax_native",
        sources=["native/handlers.cc"],
        depends=[f"native/{name}.h" for name in ("attention", "dense", "norms", "packing", "parallel", "products")],
        extra_compile_args=[*FLAGS, *INSTRUCTIONS, *WARNINGS, "-isystem", str(headers)],
        extra_link_args=["-static-libstdc++", "-static-libgcc", "-Wl,-s"],
        language="c++",
        optional=True,
    )
    return [library]


setup(ext_modules=extensions())
