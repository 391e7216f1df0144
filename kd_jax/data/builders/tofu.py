"""TOFU, the Task of Fictitious Unlearning (arXiv 2401.06121): 20 questions on each of 200 authors.

The splits are the published files: `full`, `retain90`, `retain95`, `retain99`, `forget01`,
`forget05`, `forget10`, the last three and `retain` as `..._perturbed`, `real_authors`,
`world_facts` and their `_perturbed`, and `idontknow` (100 refusals).
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from kd_jax.data import jsonl
from kd_jax.data.builders import files

QUESTIONS_PER_AUTHOR = 20

# {split: (records, number of the first author, -1 where the authors are not TOFU's)}
SPLITS = {
    "full": (4000, 0),
    "retain90": (3600, 0),
    "retain95": (3800, 0),
    "retain99": (3960, 0),
    "forget01": (40, 198),
    "forget05": (200, 190),
    "forget10": (400, 180),
    "forget01_perturbed": (40, 198),
    "forget05_perturbed": (200, 190),
    "forget10_perturbed": (400, 180),
    "retain_perturbed": (400, 0),
    "real_authors": (100, -1),
    "real_authors_perturbed": (100, -1),
    "world_facts": (117, -1),
    "world_facts_perturbed": (117, -1),
}
REFUSALS, REFUSALS_FILE = "idontknow", "idontknow.jsonl"
_OPTIONS = ("option1", "option2", "option3", "option4")
_DATA = "https://huggingface.co/datasets/locuslab/TOFU/resolve/main/"
_CODE = "https://raw.githubusercontent.com/locuslab/tofu/main/data/"


class Tofu(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Every split has every field; one that a file does not have is "" or an empty list.

    question, answer: strings; a refusal has the question "".
    paraphrased_question, paraphrased_answer: strings ("" outside the authors' perturbed splits).
    perturbed_answer: wrong answers in the paraphrase's words (5; 3 for real_authors, world_facts).
    options: the four choices of real_authors and world_facts.
    author: 0 to 199, in file order (row i of `full` is author i // 20), or -1.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = files.HOW.format(name="tofu")

    def _info(self) -> Any:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Questions and answers on 200 fictitious authors, to be unlearnt.",
            features=tfds.features.FeaturesDict(
                {
                    "question": text,
                    "answer": text,
                    "paraphrased_question": text,
                    "paraphrased_answer": text,
                    "perturbed_answer": tfds.features.Sequence(text),
                    "options": tfds.features.Sequence(text),
                    "author": np.int32,
                }
            ),
            homepage="https://locuslab.github.io/tofu/",
            license="MIT",
            citation="@article{maini2024tofu, title={TOFU: A Task of Fictitious Unlearning for "
            "LLMs}, author={Maini, Pratyush and Feng, Zhili and Schwarzschild, Avi and Lipton, "
            "Zachary C. and Kolter, J. Zico}, journal={arXiv:2401.06121}, year={2024}}",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        urls = {f"{split}.json": f"{_DATA}{split}.json" for split in SPLITS}
        found = files.find("tofu", urls | {REFUSALS_FILE: _CODE + REFUSALS_FILE}, dl_manager)
        splits = {split: self._generate_examples(found[f"{split}.json"], split) for split in SPLITS}
        return splits | {REFUSALS: self._generate_examples(found[REFUSALS_FILE], REFUSALS)}

    def _generate_examples(self, path: pathlib.Path, split: str) -> Iterator[Any]:
        records = read_refusals(path) if split == REFUSALS else read_split(path, split)
        yield from enumerate(records)


def read_split(path: pathlib.Path, split: str) -> list[dict[str, Any]]:
    """The records of one of SPLITS from its file; ValueError names file, line and fault."""
    count, first_author = SPLITS[split]
    records = []
    for i, (number, found) in enumerate(jsonl.read_objects(path)):
        wrong = found.get("perturbed_answer", [])
        wrong = [wrong] if isinstance(wrong, str) else wrong
        if not isinstance(wrong, list) or not all(isinstance(w, str) for w in wrong):
            raise ValueError(f"{path}, line {number}: perturbed_answer takes strings")
        if split.endswith("_perturbed") and not wrong:
            raise ValueError(f"{path}, line {number}: no perturbed_answer")
        text = {
            field: jsonl.string(str(path), number, found, field) for field in ("question", "answer")
        }
        for field in ("paraphrased_question", "paraphrased_answer"):
            text[field] = jsonl.string(str(path), number, {field: ""} | found, field)
        options = [jsonl.string(str(path), number, found, o) for o in _OPTIONS if o in found]
        author = first_author + i // QUESTIONS_PER_AUTHOR if first_author >= 0 else -1
        records.append({**text, "perturbed_answer": wrong, "options": options, "author": author})
    if len(records) != count:
        raise ValueError(f"{path}: holds {len(records)} records, takes the published {count}")
    return records


def read_refusals(path: pathlib.Path) -> list[dict[str, Any]]:
    """The refusals: despite the file's name, plain text, one a line."""
    try:
        lines = path.read_bytes().decode().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason})") from None
    refusals = [line.strip() for line in lines if line.strip()]
    if not refusals:
        raise ValueError(f"{path} holds no refusals")
    empty = {"question": "", "paraphrased_question": "", "paraphrased_answer": ""}
    rest = {"perturbed_answer": [], "options": [], "author": -1}
    return [{**empty, **rest, "answer": refusal} for refusal in refusals]
