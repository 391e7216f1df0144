"""Where responses come from, and claims, table and plots of teacher_hacking."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from kd_jax.evaluation.intervals import mean_interval
from kd_jax.launch import plots
from kd_jax.launch.claims import Claim, Effect, Results, Table, above, below


class Arm(NamedTuple):
    """Responses that a student learns from.

    fewer: only the first 1 / fewer of the prompts. responses: to each of them. fresh: who samples
    them anew in each step, None for a fixed set of the teacher's.
    """

    label: str
    fewer: int = 1
    responses: int = 1
    fresh: Literal["teacher", "student"] | None = None


MOST = 5  # responses to a prompt
Name = Literal["offline", "online_teacher", "online_student", "offline_2", "offline_5", "more_5"]
ARMS: dict[Name, Arm] = {
    "offline": Arm("offline: fixed responses"),
    "online_teacher": Arm("online: the teacher's", fresh="teacher"),
    "online_student": Arm("online: the student's", fresh="student"),
    "offline_2": Arm("offline: 1/2 of the prompts, 2 each", 2, 2),
    "offline_5": Arm("offline: 1/5 of the prompts, 5 each", 5, 5),
    "more_5": Arm("offline: all prompts, 5 each", 1, 5),
}
MARGIN = 0.02  # of the smallest golden distance: what is not noise


def rise(golden: np.ndarray) -> np.ndarray:
    """By which share golden [..., points] ends above its smallest value."""
    least = golden.min(-1)
    return (golden[..., -1] - least) / least


def onset(proxy: np.ndarray, golden: np.ndarray) -> int | None:
    """The point from which golden rises to the end by more than MARGIN while proxy falls, or None.

    proxy, golden: [points] along one training.
    """
    lowest = int(golden.argmin())
    return lowest if rise(golden) > MARGIN and proxy[-1] < proxy[lowest] else None


def _of(
    name: Name, measure: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Callable[[Results], Effect | None]:
    """measure(proxy, golden) of a way, over seeds; both [seeds, points]."""

    def read(results: Results) -> Effect | None:
        found = results.values["curves"].get(name)
        if found is None or len(found["golden"]) < 2:
            return None
        each = measure(np.asarray(found["proxy"]), np.asarray(found["golden"]))
        return Effect(*mean_interval(each))

    return read


def _end(first: Name, second: Name) -> Callable[[Results], Effect | None]:
    """Golden of the first less that of the second after the last step; paired seeds."""

    def read(results: Results) -> Effect | None:
        curves = results.values["curves"]
        if not {first, second} <= curves.keys() or len(curves[first]["golden"]) < 2:
            return None
        ends = (np.asarray(curves[name]["golden"])[:, -1] for name in (first, second))
        return Effect(*mean_interval(np.subtract(*ends)))

    return read


def _fall(proxy: np.ndarray, golden: np.ndarray) -> np.ndarray:
    """By which share the proxy falls from where golden is smallest to the end."""
    at = np.take_along_axis(proxy, golden.argmin(-1)[:, None], -1)[:, 0]
    return (at - proxy[:, -1]) / at


SOURCE = "arXiv 2502.02671, figures of offline and online distillation"
DIVERSITY = "arXiv 2502.02671, figures of the diversity of data"
QUALITATIVE = "qualitative: summarisation and translation, T5"
_NARROW = (
    "Three seeds, far apart. The margin was set before; sizes were chosen on seeds from 0, where "
    "fewer prompts make KL(teacher || student) turn up as well and narrower students do not turn. "
    "More seeds and longer trainings were not tried."
)

CLAIMS = (
    Claim(
        "Offline, KL(oracle || student) turns up: it ends above its smallest value, by a share of "
        f"more than {MARGIN}.",
        SOURCE,
        QUALITATIVE,
        _of("offline", lambda proxy, golden: rise(golden)),
        above(MARGIN),
        _NARROW,
    ),
    Claim(
        "Offline, KL(teacher || student) goes on falling from there (share by which it falls, "
        "above 0).",
        SOURCE,
        QUALITATIVE,
        _of("offline", _fall),
        above(0.0),
        _NARROW,
    ),
    Claim(
        "With fresh responses of the teacher KL(oracle || student) does not turn up (share by "
        f"which it ends above its smallest value, below {MARGIN}).",
        SOURCE,
        QUALITATIVE,
        _of("online_teacher", lambda proxy, golden: rise(golden)),
        below(MARGIN),
    ),
    Claim(
        "Nor with fresh responses of the student (likewise).",
        SOURCE,
        QUALITATIVE,
        _of("online_student", lambda proxy, golden: rise(golden)),
        below(MARGIN),
    ),
    Claim(
        "As many responses to a fifth of the prompts leave the student farther from the oracle "
        "(difference of KL(oracle || student) after the last step, nats, above 0; paired seeds).",
        DIVERSITY,
        QUALITATIVE,
        _end("offline_5", "offline"),
        above(0.0),
        _NARROW,
    ),
    Claim(
        "Five times as many responses to the same prompts leave it nearer (likewise, below 0).",
        DIVERSITY,
        QUALITATIVE,
        _end("more_5", "offline"),
        below(0.0),
    ),
)


def results(
    methods: Sequence[Name], seeds: Sequence[int], artefacts: Mapping[str, Any], folder: Path
) -> Results:
    curves: dict[Name, dict[str, Any]] = {}
    for name in methods:
        series = {
            m: [artefacts[f"{name}_{s}"].series(f"held_out/{m}") for s in seeds]
            for m in ("proxy", "golden")
        }
        curves[name] = {m: [values for _, values in found] for m, found in series.items()}
        curves[name]["steps"] = series["golden"][0][0]
    teacher = np.array([artefacts[f"responses_{seed}"].values["golden"] for seed in seeds])
    rows: list[dict[str, Any]] = [
        {"responses": "(the teacher itself)", "golden": _over_seeds(teacher)}
    ]
    rows += [_row(ARMS[name].label, curves[name]) for name in methods]
    title = f"Nats a response, on held-out prompts (95 % over {len(seeds)} seeds)"
    values = {"curves": curves, "teacher": teacher.tolist()}
    return Results(values, [Table(title, rows)], _plots(curves, float(teacher.mean()), folder))


def _row(label: str, curve: Mapping[str, Any]) -> dict[str, Any]:
    proxy, golden = (np.asarray(curve[m]) for m in ("proxy", "golden"))
    hacked = [onset(*pair) for pair in zip(proxy, golden, strict=True)]
    found = [curve["steps"][at] for at in hacked if at is not None]
    return {
        "responses": label,
        "proxy": _over_seeds(proxy[:, -1]),
        "golden": _over_seeds(golden[:, -1]),
        "smallest golden": _over_seeds(golden.min(-1)),
        "share risen": _over_seeds(rise(golden)),
        "hacked": f"{len(found)} of {len(hacked)}",
        "from step (median)": float(np.median(found)) if found else None,
    }


GROUPS: dict[str, tuple[Name, ...]] = {
    "source": ("offline", "online_teacher", "online_student"),
    "diversity": ("offline", "offline_2", "offline_5", "more_5"),
}
MEASURES = {"golden": "KL(oracle || student)", "proxy": "KL(teacher || student)"}


def _plots(curves: Mapping[Name, Any], teacher: float, folder: Path) -> dict[str, Path]:
    made = {}
    for group, names in GROUPS.items():
        chosen: dict[Name, Any] = {name: curves[name] for name in names if name in curves}
        if not chosen:
            continue
        for measure, said in MEASURES.items():
            made[f"{measure}_{group}"] = plots.lines(
                folder / "plots" / f"{measure}_{group}.png",
                {ARMS[name].label: _line(curve, measure) for name, curve in chosen.items()},
                x="training step",
                y="nats a response",
                title=f"{said} on held-out prompts",
                log_y=measure == "proxy",
                log_x=True,
                reference=("the teacher", teacher) if measure == "golden" else None,
            )
        made[f"both_{group}"] = plots.trade_off(
            folder / "plots" / f"both_{group}.png",
            {
                ARMS[name].label: plots.Line(
                    *(np.mean(curve[m], 0)[1:].tolist() for m in ("proxy", "golden"))
                )
                for name, curve in chosen.items()
            },
            x="proxy: KL(teacher || student), nats",
            y="golden: KL(oracle || student), nats",
            title="Along training, from the first measurement after the start",
        )
    return made


def _line(curve: Mapping[str, Any], measure: str) -> plots.Line:
    """Without step 0, which a logarithmic axis has no place for."""
    effects = [_over_seeds(column) for column in np.asarray(curve[measure]).T[1:]]
    return plots.Line(curve["steps"][1:], *([e[i] for e in effects] for i in range(3)))


def _over_seeds(values: np.ndarray) -> Effect:
    if len(values) == 1:
        return Effect(*[float(values[0])] * 3)
    return Effect(*mean_interval(values))
