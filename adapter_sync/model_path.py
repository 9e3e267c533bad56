"""Where a base model's weights are: the one rule that adapter_sync and the engine share.

Standard library only: Triton's Python backend imports it.
"""

from pathlib import Path


def resolve_model(model: str, models_dir: Path) -> str:
    """A folder below `models_dir`, else an existing path, else the Hugging Face id it must be."""
    for candidate in (models_dir / model, Path(model)):
        if candidate.is_dir():
            return str(candidate.resolve())
    return model
