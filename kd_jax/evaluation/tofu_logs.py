"""TOFU's per-sample logs, in the JSON layout that its authors publish (locuslab/tofu).

A folder holds `eval_log_aggregated.json`, an object of the four sets under the names of `FILES`, or
each set as a file of that name. A set is an object of fields, a field an object from a sample's
index (a string) to its value. `avg` and `average` are means over the tokens of an answer, in nats;
`gt` is the answer itself.
"""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.evaluation.rouge import rouge_l_recall

AGGREGATED = "eval_log_aggregated.json"
FILES = {
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
    "forget": "eval_log_forget.json",
}
# The sets whose questions come with a paraphrase of the answer.
PARAPHRASED = ("retain", "forget")


class Samples(NamedTuple):
    """One set of a run: N samples in the order of their index, P wrong answers each.

    index: N strings. answer_loss [N], wrong_loss [N, P], paraphrased_loss [N]: mean negative
    log-likelihoods of a token, in nats. What follows may be absent: rouge and rouge1 [N], recalls
    of ROUGE-L and ROUGE-1 in [0, 1]; answer_tokens [N], wrong_tokens [N, P], paraphrased_tokens
    [N]; texts, N times (prompt, generated, reference). left_out: how many indices of the log are
    no samples here, because one of the fields that are scored lacks them.
    """

    index: tuple[str, ...]
    answer_loss: np.ndarray
    wrong_loss: np.ndarray
    paraphrased_loss: np.ndarray | None = None
    rouge: np.ndarray | None = None
    rouge1: np.ndarray | None = None
    answer_tokens: np.ndarray | None = None
    wrong_tokens: np.ndarray | None = None
    paraphrased_tokens: np.ndarray | None = None
    texts: tuple[tuple[str, str, str], ...] | None = None
    left_out: int = 0

    @property
    def right_loss(self) -> np.ndarray:
        """[N]: of the paraphrased answer, and of the answer itself where it has no paraphrase."""
        return self.answer_loss if self.paraphrased_loss is None else self.paraphrased_loss

    def at(self, index: Sequence[str]) -> "Samples":
        """The samples of these indices, in their order; KeyError for one that is not there."""
        place = {key: i for i, key in enumerate(self.index)}
        rows = np.asarray([place[key] for key in index], np.int64)
        columns = {
            name: column[rows]
            for name, column in self._asdict().items()
            if isinstance(column, np.ndarray)
        }
        texts = None if self.texts is None else tuple(self.texts[row] for row in rows)
        return self._replace(index=tuple(index), texts=texts, **columns)


# A column of `Samples` and its field. Those of _SCORED say which samples there are.
_SCORED = {
    "answer_loss": "avg_gt_loss",
    "wrong_loss": "average_perturb_loss",
    "paraphrased_loss": "avg_paraphrased_loss",
    "rouge": "rougeL_recall",
}
_BESIDE = {
    "rouge1": "rouge1_recall",
    "answer_tokens": "num_token_gt",
    "wrong_tokens": "num_token_perturb",
    "paraphrased_tokens": "num_token_paraphrased",
}
_TEXTS = "generated_text"
_LISTS = ("wrong_loss", "wrong_tokens")


def read(path: str | os.PathLike) -> dict[str, Samples]:
    """{set: its samples} of a folder, of an aggregated file, or of one set's file.

    Sets that are not there are left out. In each, only indices that all scored fields have (losses
    and `rougeL_recall`) are samples. `avg_gt_loss` and `average_perturb_loss` are needed, and
    `avg_paraphrased_loss` of the forget and retain sets; real authors and world facts have no
    paraphrase, and their logs repeat `avg_gt_loss` there. A missing `rougeL_recall` is worked out
    from `generated_text`. Of the other fields, those that lack a sample are left out.

    ValueError of one line names the file and the field. OSError where it cannot be read.
    """
    found = _in_folder(Path(path)) if Path(path).is_dir() else _in_file(Path(path))
    return {name: _samples(name, origin, content) for name, (origin, content) in found.items()}


def write(folder: str | os.PathLike, sets: Mapping[str, Samples]) -> Path:
    """Writes `eval_log_aggregated.json` into the folder, whole or not at all; its path.

    Sums (`gt_loss`, `perturb_loss`) are written where token counts are known. The per-sample
    `truth_ratio` is not: it follows from the losses, and conventions differ.
    """
    unknown = set(sets) - set(FILES)
    if unknown or not sets:
        raise ValueError(f"sets: got {sorted(sets)}, takes some of {sorted(FILES)}")
    logs = {FILES[name]: _fields(samples) for name, samples in sets.items()}
    path = Path(folder) / AGGREGATED
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, logs)
    return path


def write_json(path: Path, data: Any) -> None:
    """Legal JSON with sorted keys, there in full or not at all."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        new.write_text(text + "\n", encoding="utf-8")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)  # there only where writing failed


def _fields(samples: Samples) -> dict[str, Any]:
    columns: dict[str, Any] = {
        field: getattr(samples, name) for name, field in (_SCORED | _BESIDE).items()
    }
    for sums, mean, tokens in (
        ("gt_loss", samples.answer_loss, samples.answer_tokens),
        ("perturb_loss", samples.wrong_loss, samples.wrong_tokens),
    ):
        columns[sums] = None if tokens is None else mean * tokens
    columns[_TEXTS] = samples.texts
    found = {}
    for field, column in columns.items():
        if column is None:
            continue
        if len(column) != len(samples.index):
            raise ValueError(
                f"{field}: got {len(column)} values, takes one for each of "
                f"{len(samples.index)} indices"
            )
        values = column.tolist() if isinstance(column, np.ndarray) else map(list, column)
        found[field] = dict(zip(samples.index, values, strict=True))
    return found


def _in_folder(folder: Path) -> dict[str, tuple[str, Any]]:
    found = _in_file(folder / AGGREGATED) if (folder / AGGREGATED).exists() else {}
    for name, file in FILES.items():
        if name not in found and (folder / file).exists():
            found |= _in_file(folder / file)
    if not found:
        raise ValueError(f"{folder}: has no {AGGREGATED} and none of {', '.join(FILES.values())}")
    return found


def _in_file(path: Path) -> dict[str, tuple[str, Any]]:
    """{set: (what to call it in a message, its fields)}."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    for name, file in FILES.items():
        if path.name == file:
            return {name: (str(path), content)}
    found = {}
    if isinstance(content, dict):
        found = {
            name: (f"{path}: {file}", content[file])
            for name, file in FILES.items()
            if file in content
        }
    if not found:
        raise ValueError(f"{path}: has none of the sets {', '.join(FILES.values())}")
    return found


def _samples(name: str, origin: str, content: Any) -> Samples:
    if not isinstance(content, dict):
        raise ValueError(f"{origin}: takes an object of fields")
    fields = {field: _field(origin, field, content) for field in content}
    needed = [_SCORED["answer_loss"], _SCORED["wrong_loss"]]
    if name in PARAPHRASED:
        needed.append(_SCORED["paraphrased_loss"])
    for field in needed:
        if not fields.get(field):
            raise ValueError(f"{origin}: has no {field}")
    rouge = _SCORED["rouge"]
    if not fields.get(rouge) and fields.get(_TEXTS):
        texts = {i: _text(origin, i, value) for i, value in fields[_TEXTS].items()}
        fields[rouge] = {i: rouge_l_recall(text[1], text[2]) for i, text in texts.items()}
    scored = [set(fields[field]) for field in _SCORED.values() if fields.get(field)]
    common = set.intersection(*scored)
    if not common:
        raise ValueError(f"{origin}: no index has all of its fields {', '.join(needed)}")
    index = sorted(common, key=lambda i: (int(i) if i.isdecimal() else math.inf, i))
    columns = {
        column: _numbers(origin, field, fields[field], index, lists=column in _LISTS)
        for column, field in (_SCORED | _BESIDE).items()
        if common <= set(fields.get(field, ()))
    }
    for column in ("rouge", "rouge1"):
        if column in columns and (abs(columns[column] - 0.5) > 0.5).any():
            raise ValueError(f"{origin}: {(_SCORED | _BESIDE)[column]}: takes numbers in [0, 1]")
    texts = None
    if common <= set(fields.get(_TEXTS, ())):
        texts = tuple(_text(origin, i, fields[_TEXTS][i]) for i in index)
    left_out = len(set.union(*scored)) - len(index)
    return Samples(index=tuple(index), texts=texts, left_out=left_out, **columns)


def _field(origin: str, field: str, content: Mapping[str, Any]) -> Mapping[str, Any]:
    values = content[field]
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{origin}: {field}: takes an object from index to value")
    return values


def _numbers(
    origin: str, field: str, values: Mapping[str, Any], index: Sequence[str], *, lists: bool
) -> np.ndarray:
    """[N], or [N, P] of lists, float64."""
    rows = [values[i] if lists else [values[i]] for i in index]
    takes = "a list of finite numbers" if lists else "a finite number"
    for i, row in zip(index, rows, strict=True):
        if not isinstance(row, list) or not row or not all(map(_is_finite, row)):
            raise ValueError(f"{origin}: {field}: sample {i}: got {values[i]!r:.60}, takes {takes}")
        if len(row) != len(rows[0]):
            raise ValueError(
                f"{origin}: {field}: sample {i}: got {len(row)} values, sample {index[0]} has "
                f"{len(rows[0])}"
            )
    array = np.asarray(rows, np.float64)
    return array if lists else array[:, 0]


def _is_finite(x: Any) -> bool:
    number = isinstance(x, int | float) and not isinstance(x, bool)
    return number and abs(x) <= sys.float_info.max


def _text(origin: str, i: str, value: Any) -> tuple[str, str, str]:
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(x, str) for x in value):
        raise ValueError(
            f"{origin}: {_TEXTS}: sample {i}: got {value!r:.60}, takes [prompt, generated, "
            "reference]"
        )
    return value[0], value[1], value[2]
