"""A stream of requests: stages in a row, each of which starts from what the one before it made.

Forgetting on request does not end with one request (the sustainability of MUSE, arXiv 2407.06460).
Each request is a round of stages; its result is an artefact like any other.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kd_jax.launch.stages import Stage


class Request(NamedTuple):
    """A place in a stream. number: from 0. start: the stage whose result this request starts from;
    result: the name of the stage that makes its own."""

    number: int
    start: str
    result: str


def stream(
    start: str, results: Sequence[str], stages: Callable[[Request], Sequence[Stage]]
) -> tuple[Stage, ...]:
    """The stages of all requests, in order: stages(Request(i, before, results[i])) for each i.

    before is `start` for the first request and results[i - 1] for the others. One of a request's
    stages is called `result` and needs the stage `start`; it may need others, a score of the start
    as a reference or an earlier round's, but no later one.

    A result is kept under the hash of what it depends on: a stream that was killed goes on in the
    request where it was, one that has grown keeps the requests it had, and an edited request is
    made anew with all that come after it. That asks of a request's `depends` to name nothing of
    later requests.

    ValueError for no results, and for a request whose stages lack the result or its need.
    """
    if not results:
        raise ValueError("results: got none, takes a name for each request")
    found: list[Stage] = []
    for number, (before, result) in enumerate(zip((start, *results), results, strict=False)):
        made = stages(Request(number, before, result))
        needs = {stage.name: stage.needs for stage in made}
        if before not in needs.get(result, ()):
            raise ValueError(
                f"request {number}: got stages {', '.join(needs) or 'none'}, takes one called "
                f"{result} that needs {before}"
            )
        found += made
    return tuple(found)
