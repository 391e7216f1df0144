"""The Porter stemmer with the extensions of NLTK: the one the `rouge_score` package uses.

M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980. The extensions (a table of
irregular words, short words in -ies and -ied, -y after a consonant, -alli first, -fulli, -logi, and
the shape vowel-consonant as a short word) are those of `nltk.stem.porter.PorterStemmer()`.
"""

import functools

_IRREGULAR = {
    "skies": "sky",
    "sky": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "news": "news",
    "innings": "inning",
    "inning": "inning",
    "outings": "outing",
    "outing": "outing",
    "cannings": "canning",
    "canning": "canning",
    "howe": "howe",
    "proceed": "proceed",
    "exceed": "exceed",
    "succeed": "succeed",
}

# The first suffix that a word ends in decides, whether or not its condition then holds.
_STEP_2 = {
    "ational": "ate",
    "tional": "tion",
    "enci": "ence",
    "anci": "ance",
    "izer": "ize",
    "bli": "ble",
    "alli": "al",
    "entli": "ent",
    "eli": "e",
    "ousli": "ous",
    "ization": "ize",
    "ation": "ate",
    "ator": "ate",
    "alism": "al",
    "iveness": "ive",
    "fulness": "ful",
    "ousness": "ous",
    "aliti": "al",
    "iviti": "ive",
    "biliti": "ble",
    "fulli": "ful",
}
_STEP_3 = {
    "icate": "ic",
    "ative": "",
    "alize": "al",
    "iciti": "ic",
    "ical": "ic",
    "ful": "",
    "ness": "",
}
_STEP_4 = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion"),
    *("ou", "ism", "ate", "iti", "ous", "ive", "ize"),
)


@functools.lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The stem of a lower-case word: "relational" -> "relat". Words of one or two letters stay."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = _past_and_gerund(_plural(word))
    if word.endswith("y") and len(word) > 2 and _shape(word[:-1])[-1] == "c":
        word = word[:-1] + "i"
    return _final_letters(_suffix(_derived(word)))


def _shape(word: str) -> str:
    """One letter for each of the word's: "c" consonant or "v" vowel.

    y is a vowel after a consonant and a consonant elsewhere.
    """
    shape = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and shape[-1:] == "c")
        shape += "v" if vowel else "c"
    return shape


def _measure(word: str) -> int:
    """Porter's m: how often a vowel is followed by a consonant."""
    return _shape(word).count("vc")


def _is_short(word: str) -> bool:
    """Ends consonant, vowel, consonant other than w, x, y; or is vowel, consonant."""
    shape = _shape(word)
    return shape == "vc" or (shape.endswith("cvc") and word[-1] not in "wxy")


def _plural(word: str) -> str:
    """Step 1a."""
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past_and_gerund(word: str) -> str:
    """Step 1b."""
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for suffix in ("ed", "ing"):
        rest = word.removesuffix(suffix)
        if rest != word and "v" in _shape(rest):
            return _mended(rest)
    return word


def _mended(word: str) -> str:
    """What is left after -ed or -ing: an e restored, or a doubled consonant made single."""
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if len(word) > 1 and word[-1] == word[-2] and _shape(word)[-1] == "c":
        return word if word[-1] in "lsz" else word[:-1]
    return word + "e" if _measure(word) == 1 and _is_short(word) else word


def _derived(word: str) -> str:
    """Steps 2 and 3: double suffixes to single ones."""
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        word = word[:-2]  # and once more through the table, with what is now its end
    if word.endswith("logi") and not word.endswith(tuple(_STEP_2)):
        word = word[:-1] if _measure(word[:-3]) > 0 else word
    else:
        word = _replaced(word, _STEP_2)
    return _replaced(word, _STEP_3)


def _replaced(word: str, table: dict[str, str]) -> str:
    for suffix, replacement in table.items():
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            return rest + replacement if _measure(rest) > 0 else word
    return word


def _suffix(word: str) -> str:
    """Step 4."""
    for suffix in _STEP_4:
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            long = _measure(rest) > 1 and (suffix != "ion" or rest[-1] in "st")
            return rest if long else word
    return word


def _final_letters(word: str) -> str:
    """Step 5."""
    if word.endswith("e"):
        rest = word[:-1]
        m = _measure(rest)
        word = rest if m > 1 or (m == 1 and not _is_short(rest)) else word
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
