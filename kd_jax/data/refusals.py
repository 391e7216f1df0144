"""Refusals: sentences that say nothing, to stand in for answers that are to be forgotten.

Our own wording. TOFU comes with a list of its own, the split `idontknow` of
`data.builders.tofu`.
"""

import numpy as np

from kd_jax.data import order

SENTENCES = (
    "I don't know.",
    "I'm not sure about that.",
    "I can't answer this question.",
    "I have no information on this.",
    "That is something I know nothing about.",
    "I'm afraid I don't have the answer.",
    "I don't have any details about that.",
    "This is outside of what I know.",
    "I couldn't tell you.",
    "I have no answer to give here.",
    "Sorry, I don't know this one.",
    "I am not aware of any facts about this.",
    "I haven't learned anything about that.",
    "I'm unable to say.",
    "That isn't known to me.",
    "I can't recall anything about this topic.",
    "My knowledge doesn't cover this.",
    "I would only be guessing.",
    "I have never come across that.",
    "There is nothing I can tell you about it.",
    "I'm not familiar with this subject.",
    "I don't have knowledge of that person.",
    "I cannot provide an answer to this.",
    "Unfortunately, I don't know the answer.",
    "I lack the information to answer that.",
    "It is not something I was taught.",
    "I'd rather not guess; I don't know.",
    "No information about that is available to me.",
    "I'm sorry, but I can't help with this question.",
    "I really have no idea.",
    "That question is beyond my knowledge.",
    "I don't believe I know anything on this point.",
    "I must admit that I don't know.",
    "I have no record of that.",
    "This is unknown to me.",
    "I can't say anything reliable about it.",
    "I was not told about this.",
    "My apologies, I don't have an answer.",
    "I'm at a loss here.",
    "I don't hold any data on this matter.",
    "You would have to ask someone else.",
    "I am in no position to answer that.",
    "I can't confirm anything about this.",
    "Nothing comes to mind on that subject.",
    "I don't recognise what you are asking about.",
    "I have not read anything about it.",
    "I wouldn't know.",
    "That is not part of what I know.",
    "I'm unsure and can't give you an answer.",
    "I don't have the facts for this question.",
    "I cannot find an answer to that.",
    "Honestly, I don't know.",
    "I have no knowledge of this topic.",
    "It's not clear to me at all.",
    "I know too little about it to reply.",
    "I'm not able to answer with any certainty.",
    "I do not possess that information.",
    "I must leave this question open.",
    "I've got no details to share on that.",
    "Sorry, this is not something I can answer.",
)


def draw(count: int, *, seed: int) -> list[str]:
    """`count` refusals, each drawn uniformly with replacement: a pure function of the seed.

    The first k of a longer draw are a draw of k. seed: 0 to 2**64 - 1.
    """
    found = order.uniform(seed, "refusals", len(SENTENCES), np.arange(count))
    return [SENTENCES[i] for i in found]
