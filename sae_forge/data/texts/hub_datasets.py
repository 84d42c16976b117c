"""Records of the ``datasets`` library: folders it saved, and ids on the Hub, streamed.

Nothing from a repository is ever run: the library's ``trust_remote_code`` is not passed on.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pyarrow as pa

from sae_forge.data.texts.formats import BATCH_ROWS, Choose, Placed, column_kinds, one_line
from sae_forge.errors import DataError
from sae_forge.store import hub_errors
from sae_forge.store.hub_errors import READING, Asked


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``datasets`` wrote this folder with ``save_to_disk``."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("dataset_info.json", "state.json")
    )


def read_saved_dataset(folder: Path, split: str, choose: Choose | None) -> Placed:
    """The rows of a ``save_to_disk`` folder; ``split`` matters only where there are several.

    Raises:
        DataError: the folder is damaged, or has no such split.
    """
    from datasets import Dataset, load_from_disk

    try:
        data = load_from_disk(str(folder))
        if not isinstance(data, Dataset):
            if split not in data:
                raise DataError(
                    f"{folder} has no split {split!r}; choose one of {', '.join(map(str, data))} with --split"
                )
            data = dict(data)[split]
        schema = data.features.arrow_schema
        if choose is not None:
            data = data.select_columns(list(choose(column_kinds(schema))))
        numbers = itertools.count(1)
        for batch in data.with_format("arrow").iter(BATCH_ROWS):
            yield from ((f"row {next(numbers)}", record) for record in cast("pa.Table", batch).to_pylist())
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{folder} cannot be read as a saved dataset: {one_line(error)}") from error


def read_hub(name: str, config: str | None, split: str, choose: Choose | None, *, instead: str = "") -> Placed:
    """The rows of a ``datasets`` id, streamed; nothing in the repository is ever run.

    Args:
        instead: What else could be done where it cannot be had, for the message.

    Raises:
        DataError: there is no such dataset, configuration or split.
        RemoteError: the Hub could not be reached, or refused.
    """
    from datasets import load_dataset

    with _hub_told(name, instead):
        rows = load_dataset(name, config, split=split, streaming=True)
        if choose is not None and rows.features is not None:
            rows = rows.select_columns(list(choose(column_kinds(rows.features.arrow_schema))))
        for number, record in enumerate(rows, 1):
            yield f"row {number}", record


def rows(name: str, config: str | None, split: str) -> int:
    """How many rows a split on the Hub has, as its repository says.

    Raises:
        DataError: it does not say, or there is no such dataset.
    """
    from datasets import load_dataset_builder

    with _hub_told(name):
        known = load_dataset_builder(name, config).info.splits or {}
    if split not in known:
        raise DataError(
            f"dataset {name!r} does not say how many rows {split!r} has; give numbers of rows, not percentages"
        )
    return known[split].num_examples


@contextmanager
def _hub_told(name: str, instead: str = "") -> Iterator[None]:
    """Tell a dataset that is not there from a Hub that is not."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    shown, fetched = (
        f"dataset {name!r}",
        "{name} could not be fetched: {error}; check the network, or give a local file{instead}",
    )
    asked = Asked(
        name=shown,
        page=f"huggingface.co/datasets/{name}",
        flag="its name",
        instead=instead,
        words={**READING, "network": fetched, "other": fetched},
    )
    try:
        yield
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise hub_errors.told(error, asked, "gated") from error
        raise DataError(
            f"{shown} is neither a file or folder here nor on the Hub (private ones need a login){instead}"
        ) from error
    except (DatasetsError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise DataError(f"{shown} cannot be read: {one_line(error)}") from error
    except (OSError, HTTPError) as error:
        raise hub_errors.told(error, asked) from error
