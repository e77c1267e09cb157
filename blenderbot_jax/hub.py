"""From what a user calls a checkpoint to a folder on disk: a path, the bundled model, or a Hugging Face Hub name.

The folder is in the published layout, whatever the checkpoint's own: one of ParlAI is told anew in it, weights aside.
"""

import os
from importlib import resources
from pathlib import Path

from blenderbot_jax import parlai

DEMO = "demo"
SMALL_FILES = ("*.json", "*.txt")
SAFETENSORS = ("*.safetensors",)
TORCH_FILES = ("pytorch_model*.bin",)
FLAX_FILES = ("flax_model*.msgpack",)


class CheckpointNotFoundError(FileNotFoundError):
    """No folder of that name, and no model of that name could be had."""


def locate(
    name_or_folder: str | os.PathLike[str],
    patterns: tuple[str, ...],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """The folder that holds a checkpoint's files, downloading them if need be.

    Args:
        name_or_folder: an existing folder, "demo" for the bundled model, or a hub name such as
            "facebook/blenderbot-400M-distill". `./demo` means a folder of that name. A checkpoint of ParlAI is a folder
            with `model` and `model.opt`, the path of `model` itself, or a `.tgz` of them; see `parlai.published`.
        patterns: the files wanted of a hub repository; those already in the cache are not fetched again.
        revision: branch, tag or commit on the hub.
        cache_dir: the hub cache; the usual one if None.
        local_files_only: never use the network. `HF_HUB_OFFLINE=1` in the environment does the same.
        token: for private repositories.

    Raises:
        CheckpointNotFoundError: saying what was looked for and what else can be given.
        FileNotFoundError, ValueError: a checkpoint of ParlAI that is incomplete, damaged, or of another architecture.
    """
    name = os.fspath(name_or_folder)
    if name == DEMO and isinstance(name_or_folder, str):
        return Path(str(resources.files("blenderbot_jax").joinpath("demo")))
    found = parlai.find(Path(name)) if name else None
    if found is not None:
        return parlai.published(found, weights=not set(patterns) <= set(SMALL_FILES))
    if name and Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise CheckpointNotFoundError(
            f"{name} is a file: give the folder that holds it (config.json and weights), or of ParlAI the file of the "
            "weights with its .opt beside it, or a .tgz"
        )
    if not _is_hub_name(name):
        raise CheckpointNotFoundError(
            f'there is no folder {name!r}: give an existing folder, a hub name like "owner/model", or "demo"'
        )
    return _download(name, patterns, revision, cache_dir, local_files_only, token)


def _is_hub_name(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if name.startswith((".", "/", "~")):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _download(
    name: str,
    patterns: tuple[str, ...],
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
    token: str | bool | None,
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=list(patterns),
                revision=revision,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                local_files_only=local_files_only,
                token=token,
            )
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        reason = "it is not in the local cache, and the hub was not asked or could not be reached"
        raise CheckpointNotFoundError(_not_had(name, reason)) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointNotFoundError(_not_had(name, f"the hub answered: {reason}")) from error


def _not_had(name: str, reason: str) -> str:
    return (
        f"{name!r} could not be had: {reason}. Give a folder that holds config.json and the weights, check the name "
        'and the network, or use "demo", the model that comes with the package'
    )
