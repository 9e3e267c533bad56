"""The figures as files."""

from pathlib import Path

from stack.bench.figures import Document
from stack.bench.plots import write_plots
from stack.bench.report import markdown


def write_results(document: Document, folder: Path, json_file: Path | None) -> str:
    """Write bench.json, bench.md and the plots into the folder; returns the Markdown.

    `json_file` gets the JSON, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = document.model_dump_json(indent=2) + "\n"
    for file in filter(None, (folder / "bench.json", json_file)):
        file.write_text(text, encoding="utf-8")
    page = markdown(document)
    (folder / "bench.md").write_text(page, encoding="utf-8")
    if document.runs:
        write_plots(document.runs, folder)
    return page
