"""What scripts/bench loads while serving, and how it tells where the time went."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from stack.bench.hot_load.adapter import rank_of, write_adapter, write_base_model
from stack.bench.hot_load.upload import stages
from stack.bench.servers import TOKENIZER

from adapter_sync.base_models import read_base_model
from adapter_sync.validation import check_adapter


@pytest.mark.parametrize("size_mb", [1, 50])
def test_an_adapter_of_about_the_size_asked_for_fits_the_base_model(
    tmp_path: Path, size_mb: int
) -> None:
    adapter = write_adapter(tmp_path / "adapter", size_mb)
    model_json = write_base_model(tmp_path, [size_mb])
    base = read_base_model(model_json.parent.parent, models_dir=TOKENIZER.parent)
    facts = check_adapter(
        adapter.weights, config=adapter.config.read_bytes(), lora_alpha=None, base=base
    )
    assert facts.warnings == ()
    assert facts.rank <= base.max_lora_rank
    assert adapter.mb == pytest.approx(size_mb, rel=0.35)


def test_the_engine_takes_the_largest_adapter_that_may_be_uploaded(tmp_path: Path) -> None:
    model_json = write_base_model(tmp_path, [1, 500])
    assert rank_of(1) == 1
    assert rank_of(500) <= json.loads(model_json.read_text())["max_lora_rank"] == 512


def test_the_stages_are_told_by_the_servers_log_and_fill_the_time() -> None:
    def line(seconds: float, event: str, **more: object) -> str:
        timestamp = datetime.fromtimestamp(1_000_000 + seconds, UTC).isoformat()
        return json.dumps({"event": event, "timestamp": timestamp, **more})

    lines = [
        "a line that is no event",
        line(0.5, "lora_map.committed"),
        line(1.0, "adapter.accepted", adapter_id="adp_1", check_s=0.25, store_s=0.5),
        line(1.25, "adapter.installed", adapter_id="adp_2"),
        line(1.5, "adapter.installed", adapter_id="adp_1"),
        'I1125 14:00:00.1 7 companion.py:45] "lora_map.handed_over revision=3 took_s=0.500"',
        line(2.25, "lora_map.committed"),
    ]
    told = stages(lines, "adp_1", sent_at=1_000_000, ready_at=1_000_003)
    assert told == {
        "receive": 0.25,
        "validate": 0.25,
        "place": 1.0,
        "commit": 0.25,
        "engine": 0.5,
        "ready": 0.75,
    }
    assert sum(told.values()) == 3
