"""The adapters that scripts/bench loads while serving."""

from pathlib import Path

import pytest
from stack.bench.hot_load import write_adapter
from stack.bench.servers import MODEL_JSON, TOKENIZER

from adapter_sync.base_models import read_base_model
from adapter_sync.validation import check_adapter


@pytest.mark.parametrize("size_mb", [1, 20])
def test_an_adapter_of_about_the_size_asked_for_fits_the_base_model(
    tmp_path: Path, size_mb: int
) -> None:
    adapter = write_adapter(tmp_path / "adapter", size_mb)
    base = read_base_model(MODEL_JSON.parent.parent, models_dir=TOKENIZER.parent)
    facts = check_adapter(
        adapter.weights, config=adapter.config.read_bytes(), lora_alpha=None, base=base
    )
    assert facts.warnings == ()
    assert facts.rank <= base.max_lora_rank
    assert adapter.mb == pytest.approx(size_mb, rel=0.35)
