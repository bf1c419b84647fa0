"""Turns errors of MLX into errors of a provider, which say what to do."""

from __future__ import annotations

import re

from ondine_core.errors import FatalError, ProviderError, RefusedError, TransientError

INSTALL = "pip install 'ondine-dagster[mlx]'"
_NO_MEMORY = re.compile(
    r"out of memory|insufficient memory|unable to allocate|maximum allowed buffer|resource limit|bad_alloc",
    re.IGNORECASE,
)


def load_error(name: str, error: BaseException) -> FatalError:
    """The error of a call if the model `name` (a folder or a repository) cannot be loaded."""
    if isinstance(error, FatalError):
        return error
    kinds = [kind.__name__ for kind in type(error).__mro__]  # by name, since huggingface_hub may not be imported
    message = str(error).strip().partition("\n")[0]
    if isinstance(error, ImportError):
        why = f"MLX cannot be imported ({message}): {INSTALL}"
    elif "GatedRepoError" in kinds:
        why = (
            f"access is restricted: accept its terms at https://huggingface.co/{name}, then set api_key or HF_TOKEN "
            "to a token of that account"
        )
    elif "RepositoryNotFoundError" in kinds:
        why = "Hugging Face has no such repository, or it is private: check the name, or set api_key or HF_TOKEN"
    elif "RevisionNotFoundError" in kinds:
        why = "the repository has no such revision; check params['revision']"
    elif "LocalEntryNotFoundError" in kinds or "OfflineModeIsEnabled" in kinds:
        why = (
            "it is not on this machine and Hugging Face cannot be reached; give the path of a folder, or fetch it "
            f"beforehand: hf download {name}"
        )
    elif "HfHubHTTPError" in kinds and getattr(getattr(error, "response", None), "status_code", 0) in (401, 403):
        why = "Hugging Face does not accept the token; check api_key or HF_TOKEN"
    elif _is_out_of_memory(error):
        why = "it does not fit into memory; take a smaller model or one with fewer bits"
    else:
        why = f"mlx-lm cannot load it ({type(error).__name__}: {message})"
    return FatalError(f"model='mlx/{name}': {why}.")


def generation_error(error: BaseException, calls: int) -> ProviderError:
    """The error of each of the `calls` that were being answered when MLX failed."""
    if not _is_out_of_memory(error):
        return FatalError(f"mlx-lm failed while it generated ({type(error).__name__}: {error}).")
    if calls > 1:
        return TransientError(f"Memory ran out with {calls} calls at once; lower max_concurrency.", kind="overloaded")
    return RefusedError("Memory ran out with this call alone; shorten the prompt or take a smaller model.")


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None
