"""Why no project, or no pipeline of a table, can be made, with what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.addresses import public
from headrace.errors import HeadraceError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NOTHING = "Nothing was written."


class Unreadable(HeadraceError):
    """The table cannot be read."""

    def __init__(self, data: str, reason: str) -> None:
        self.data, self.reason = public(data), reason
        super().__init__(f"`{self.data}` cannot be read: {reason.strip()}. {NOTHING}")


class BadName(HeadraceError):
    """A pipeline cannot be called so."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(f"A pipeline cannot be called `{name}`: {reason}. {NOTHING} Choose another name.")


class NoSuchColumn(HeadraceError):
    """A column was named that the table does not have."""

    def __init__(self, option: str, column: str, known: Sequence[str]) -> None:
        self.option, self.column, self.known = option, column, tuple(known)
        super().__init__(
            f"`{option} {column}`: there is no such column.{did_you_mean(column, known)} {NOTHING} "
            f"The table has {', '.join(known)}."
        )


class BadColumn(HeadraceError):
    """A query names a column as no model's input can be called."""

    def __init__(self, column: str, better: str) -> None:
        self.column = column
        super().__init__(f"The query returns a column `{column}`. {NOTHING} Name it `AS {better}`.")


class NoDatabase(HeadraceError):
    """A query was given, and no database to ask; or the other way round."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason}. {NOTHING} A query takes both: `--data 'SELECT …' --database '$SHOP_DATABASE'`; the "
            "variable holds an SQLAlchemy URL."
        )


class NoTime(HeadraceError):
    """Several columns may say when a row was known."""

    def __init__(self, found: Sequence[str]) -> None:
        self.found = tuple(found)
        super().__init__(
            f"Several columns hold times, {', '.join(found)}: name with `--time` the one that says when the "
            f"question is asked. {NOTHING}"
        )


class BadTime(HeadraceError):
    """The column of times cannot be read as such."""

    def __init__(self, column: str, reason: str) -> None:
        self.column = column
        super().__init__(f"`--time {column}` cannot be read as instants: {reason}. {NOTHING}")


class BadTarget(HeadraceError):
    """What is to be predicted is none of the questions that there are."""

    def __init__(self, column: str, reason: str) -> None:
        self.column = column
        super().__init__(f"`{column}` cannot be predicted: {reason}. {NOTHING}")


class BadEntity(HeadraceError):
    """What history is to be kept of is not told apart by its column."""

    def __init__(self, column: str, reason: str) -> None:
        self.column = column
        super().__init__(f"`--entity {column}`: {reason}. {NOTHING} Name another column, or none.")


class TooLittle(HeadraceError):
    """There are too few rows to learn from and to judge by."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason} {NOTHING} Bring more rows, or a longer span of time.")


class NothingLeft(HeadraceError):
    """All columns were left out."""

    def __init__(self, reasons: Sequence[str]) -> None:
        told = "\n".join(f"  - {reason}" for reason in reasons)
        super().__init__(
            f"No column is left to predict from:\n{told}\n{NOTHING} `--keep` takes one all the same."
        )


class FileExists(HeadraceError):
    """A file that would be written is there already."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = tuple(files)
        super().__init__(
            f"{', '.join(f'`{file}`' for file in files)}: there already. {NOTHING} "
            "Choose another name, or delete what was written before, and its part of `prefect.yaml`."
        )


class BadProjectName(HeadraceError):
    """A project cannot be called so."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"A project cannot be called `{name}`: a name is letters, digits, `-` and `_`, and begins with a "
            f"letter. {NOTHING} Give the folder another name."
        )


class NotEmpty(HeadraceError):
    """A project was to be made where something is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(f"`{folder}` is not empty. {NOTHING} Name a folder that is not there yet.")


class NotATemplate(HeadraceError):
    """A project cannot be brought to a newer headrace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(
            f"`{folder}` was not made by `headrace init`, so nothing says which of its files are headrace's. "
            "Nothing was changed. Compare flows/ and deployments/ with those of a new project."
        )
