"""docs/saes.md names every format, architecture and refusal that the tables hold, and no other."""

from pathlib import Path

from sae_forge.sae.architectures.table import ARCHITECTURES
from sae_forge.sae.formats import table
from sae_forge.sae.formats.refused import REFUSED

PAGE = (Path(__file__).parents[2] / "docs" / "saes.md").read_text()


def rows(head: str) -> list[list[str]]:
    """The cells of the table under a head."""
    below = PAGE.split(f"| {head} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in below]


def test_every_format_stands_there_with_its_files_and_whether_it_is_written():
    listed = {cells[0].split(" (")[0]: cells for cells in rows("format")}
    assert list(listed) == [entry.name for entry in table.FORMATS]
    for entry in table.FORMATS:
        _, weights, beside, _, written = listed[entry.name]
        assert weights == f"`{entry.weights}`"
        assert all(name in beside for name in (*entry.beside, *entry.perhaps))
        assert (written == "yes") == (entry.writer is not None)


def test_every_format_that_is_written_stands_there_with_what_it_can_say():
    said = [[f"`{table.flag(entry)}`", ", ".join(entry.writer.architectures), ", ".join(entry.writer.sites)]
            for entry in table.WRITTEN if entry.writer]  # fmt: skip
    assert rows("`--to`") == said


def test_every_architecture_and_every_refusal_stands_there():
    assert [cells[0] for cells in rows("architecture")] == [f"`{name}`" for name in ARCHITECTURES]
    refused = " ".join(cells[0] for cells in rows("what"))
    assert all(entry.name in refused for entry in REFUSED)
