"""docs/promises.md names tests: each has to be there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "promises.md").read_text()


def test_each_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 30
    for file, function in named:
        text = (ROOT / file).read_text()
        assert re.search(rf"^(async )?def {function}\(", text, re.MULTILINE) or not function, (
            f"{file} has no {function}"
        )


def test_each_promise_names_a_test_or_what_measures_it() -> None:
    rows = [row for row in PAGE.splitlines() if row.startswith("| ") and "promise |" not in row]
    assert all("`tests/" in row or "measured by `scripts/" in row for row in rows)
