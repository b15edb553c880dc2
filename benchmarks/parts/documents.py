"""Tables in documents, between two markers."""

from pathlib import Path


def insert(document: Path, text: str, begin: str, end: str) -> None:
    """Puts text between two markers of a document."""
    before, _, rest = document.read_text().partition(begin)
    _, _, after = rest.partition(end)
    document.write_text(f"{before}{begin}\n{text}\n{end}{after}")
