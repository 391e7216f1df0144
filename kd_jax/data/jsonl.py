"""A user's own data: JSON lines of prompts and answers, texts or preferences.

UTF-8, one JSON object a line, with or without a byte-order mark, a carriage return or a newline at
the end of the last line; blank lines are skipped and other fields ignored. Any fault is a
ValueError that names the file, the line and the field.
"""

import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple


class PromptAnswer(NamedTuple):
    prompt: str
    answer: str


class Preference(NamedTuple):
    prompt: str
    chosen: str
    rejected: str


def read_prompt_answers(
    path: str | os.PathLike[str], *, prompt: str = "prompt", answer: str = "answer"
) -> list[PromptAnswer]:
    """The pairs of a file; `prompt` and `answer` name its fields."""
    return [PromptAnswer(*row) for row in _read_fields(path, (prompt, answer))]


def read_texts(path: str | os.PathLike[str], *, text: str = "text") -> list[str]:
    """The texts of a file; `text` names its field."""
    return [row[0] for row in _read_fields(path, (text,))]


def read_preferences(
    path: str | os.PathLike[str],
    *,
    prompt: str = "prompt",
    chosen: str = "chosen",
    rejected: str = "rejected",
) -> list[Preference]:
    """The preferences of a file; the arguments name its fields."""
    return [Preference(*row) for row in _read_fields(path, (prompt, chosen, rejected))]


def read_objects(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line that is not blank."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {name}: takes a file of JSON lines") from None
    except IsADirectoryError:
        raise ValueError(f"{name} is a folder: takes a file of JSON lines") from None
    # Bytes are split, not text: JSON strings may hold U+2028 and the like as they are.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}, line {number}: not UTF-8 ({error.reason})") from None
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{name}, line {number}: not JSON ({error.msg}, column {error.colno})"
            ) from None
        except ValueError as error:  # an integer of too many digits
            raise ValueError(f"{name}, line {number}: not JSON ({error})") from None
        except RecursionError:
            raise ValueError(f"{name}, line {number}: nested too deeply") from None
        if not isinstance(value, dict):
            raise ValueError(
                f"{name}, line {number}: of type {type(value).__name__}, takes an object"
            )
        yield number, value


def string(name: str, number: int, record: dict[str, Any], field: str) -> str:
    """record[field], a string that UTF-8 can hold; ValueError names file, line and field."""
    if field not in record:
        raise ValueError(
            f"{name}, line {number}: no field {field!r} among {', '.join(map(repr, record))}"
        )
    value = record[field]
    if not isinstance(value, str):
        raise ValueError(
            f"{name}, line {number}: field {field!r} is of type {type(value).__name__}, takes str"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{name}, line {number}: field {field!r} holds half of a surrogate pair"
        ) from None
    return value


def _read_fields(path: str | os.PathLike[str], fields: tuple[str, ...]) -> list[tuple[str, ...]]:
    name = os.fspath(path)
    rows = [
        tuple(string(name, number, record, field) for field in fields)
        for number, record in read_objects(path)
    ]
    if not rows:
        raise ValueError(f"{name} holds no records: takes one JSON object a line")
    return rows
