"""TOFU's per-sample logs and the command that scores them, against float64 worked out apart."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from kd_jax.evaluation import tofu, tofu_command, tofu_logs

ROOT = Path(__file__).parents[2]
SIZES = {"retain": 12, "real_authors": 7, "world_facts": 9, "forget": 11}
WRONG = {"retain": 5, "real_authors": 3, "world_facts": 3, "forget": 5}


def raw(seed, sizes=SIZES):
    """The four sets as the authors write them; indices of two hosts, not in numeric order."""
    rng = np.random.default_rng(seed)
    logs = {}
    for name, n in sizes.items():
        keys = [str(i) for i in [*range(0, n, 2), *range(1, n, 2)]]

        def field(values, keys=keys):
            return dict(zip(keys, np.asarray(values).tolist(), strict=True))

        answer = rng.uniform(0.1, 3, n)
        other = answer if name in ("real_authors", "world_facts") else rng.uniform(0.1, 3, n)
        logs[tofu_logs.FILES[name]] = {
            "avg_gt_loss": field(answer),
            "avg_paraphrased_loss": field(other),
            "average_perturb_loss": field(rng.uniform(0.5, 4, (n, WRONG[name]))),
            "rougeL_recall": field(rng.uniform(0.2, 1, n)),
            "rouge1_recall": field(rng.uniform(0.2, 1, n)),
            "gt_loss": field(answer * 10),
            "num_token_gt": field([10] * n),
            "truth_ratio": field(rng.uniform(0, 2, n)),
            "generated_text": {i: [f"Question {i}", f"answer {i}", f"answer {i}"] for i in keys},
        }
    return logs


def save(folder, logs):
    folder.mkdir(exist_ok=True)
    (folder / tofu_logs.AGGREGATED).write_text(json.dumps(logs))
    return folder


def columns(log):
    order = sorted(log["avg_gt_loss"], key=int)
    names = ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall")
    return [np.array([log[name][i] for i in order]) for name in names]


def expected(logs):
    """The nine figures and the forget set's, written as the paper's aggregation script does."""
    found = {}
    for name, file in tofu_logs.FILES.items():
        answer, right, wrong, rouge = columns(logs[file])
        ratio = np.exp(-wrong.mean(1)) / np.exp(-right)
        if name in ("real_authors", "world_facts"):
            chance = np.exp(-answer) / (np.exp(-answer) + np.exp(-wrong).sum(1))
        else:
            chance = np.exp(-answer)
        truth = np.minimum(ratio, 1 / ratio) if name == "forget" else np.maximum(0, 1 - ratio)
        found |= {f"{name}/probability": chance.mean(), f"{name}/rouge": rouge.mean()}
        found |= {f"{name}/truth_ratio": truth.mean()}
    return found


def command(*arguments, capsys=None):
    code = tofu_command.main([str(x) for x in arguments])
    return (code, *capsys.readouterr()) if capsys else code


def test_the_figures_of_published_logs(tmp_path, capsys):
    ours, theirs = raw(0), raw(1)
    a, b = save(tmp_path / "ours", ours), save(tmp_path / "theirs", theirs)
    out = tmp_path / "out.json"
    code, printed, _ = command("--logs", a, "--retain-logs", b, "--json", out, capsys=capsys)
    assert code == 0
    found, wanted = json.loads(out.read_text()), expected(ours)
    for name, row in found["sets"].items():
        for metric in ("probability", "rouge", "truth_ratio"):
            np.testing.assert_allclose(row[metric], wanted[f"{name}/{metric}"], rtol=1e-9)
        assert (row["samples"], row["left_out"]) == (SIZES[name], 0)
    assert found["utility"] == {
        name: found["sets"][name.split("/")[0]][name.split("/")[1]] for name in tofu.UTILITY
    }
    nine = [wanted[name] for name in tofu.UTILITY]
    np.testing.assert_allclose(found["model_utility"], stats.hmean(nine), rtol=1e-9)
    ratios = [
        np.exp(right - wrong.mean(1))
        for _, right, wrong, _ in (
            columns(logs[tofu_logs.FILES["forget"]]) for logs in (ours, theirs)
        )
    ]
    statistic, p_value = stats.ks_2samp(*ratios)
    assert found["forget_quality"] == {
        "statistic": statistic,
        "p_value": p_value,
        "samples": SIZES["forget"],
    }
    assert f"{found['model_utility']:.4f}" in printed and "11 samples" in printed
    assert list(found) == sorted(found)
    assert [path.name for path in tmp_path.glob("out*")] == ["out.json"]


def test_conventions_are_named(tmp_path):
    found = tofu_command.scores(tofu_logs.read(save(tmp_path / "a", raw(0))))
    conventions = found["conventions"]
    assert set(conventions) == {"geometric", "arithmetic", "guarded"}
    assert conventions["geometric"]["model_utility"] == found["model_utility"]
    _, right, wrong, _ = columns(raw(0)[tofu_logs.FILES["retain"]])
    ratio = np.exp(-wrong).mean(1) / np.exp(-right)
    np.testing.assert_allclose(
        conventions["arithmetic"]["truth_ratio"]["retain"], np.maximum(0, 1 - ratio).mean()
    )
    # Wrong answers weigh more in an arithmetic mean (Jensen).
    assert conventions["arithmetic"]["model_utility"] < found["model_utility"]
    assert found["forget_quality"] is None


def test_a_model_is_like_itself(tmp_path):
    log = tofu_logs.read(save(tmp_path / "a", raw(0)))
    quality = tofu_command.scores(log, log)["forget_quality"]
    assert quality == {"statistic": 0.0, "p_value": 1.0, "samples": SIZES["forget"]}


def test_only_common_indices_are_compared(tmp_path):
    ours, theirs = raw(0), raw(1)
    forget = tofu_logs.FILES["forget"]
    for i in ("0", "3"):
        for field in theirs[forget].values():
            del field[i]
    for field in ours[forget].values():
        del field["7"]
    logs = [tofu_logs.read(save(tmp_path / n, x)) for n, x in (("a", ours), ("b", theirs))]
    quality = tofu_command.scores(*logs)["forget_quality"]
    kept = [str(i) for i in range(11) if i not in (0, 3, 7)]
    ratios = [
        [np.exp(x["avg_paraphrased_loss"][i] - np.mean(x["average_perturb_loss"][i])) for i in kept]
        for x in (ours[forget], theirs[forget])
    ]
    assert quality["samples"] == 8
    np.testing.assert_allclose(quality["p_value"], stats.ks_2samp(*ratios)[1], rtol=1e-12)


def test_a_sample_that_lacks_a_field_is_left_out(tmp_path):
    logs = raw(0)
    retain = logs[tofu_logs.FILES["retain"]]
    del retain["average_perturb_loss"]["4"], retain["num_token_gt"]["5"]
    found = tofu_logs.read(save(tmp_path / "a", logs))["retain"]
    assert found.index == tuple(str(i) for i in range(12) if i != 4)  # in numeric order
    assert found.left_out == 1 and found.answer_tokens is None
    np.testing.assert_array_equal(
        found.answer_loss, [retain["avg_gt_loss"][i] for i in found.index]
    )


def test_four_files_and_single_files(tmp_path):
    logs = raw(0)
    for file, content in logs.items():
        (tmp_path / file).write_text(json.dumps(content))
    whole = save(tmp_path / "whole", logs)
    wanted = tofu_command.scores(tofu_logs.read(whole))
    assert tofu_command.scores(tofu_logs.read(tmp_path)) == wanted
    assert tofu_command.scores(tofu_logs.read(whole / tofu_logs.AGGREGATED)) == wanted
    one = tofu_command.scores(tofu_logs.read(tmp_path / tofu_logs.FILES["forget"]))
    assert one["sets"] == {"forget": wanted["sets"]["forget"]}
    assert one["model_utility"] is None


def test_what_may_be_missing(tmp_path, capsys):
    logs = raw(0)
    for name in ("real_authors", "world_facts"):
        del logs[tofu_logs.FILES[name]]["avg_paraphrased_loss"]  # repeats avg_gt_loss
    del logs[tofu_logs.FILES["retain"]]["rougeL_recall"]  # worked out from the texts
    found = tofu_command.scores(tofu_logs.read(save(tmp_path / "a", logs)))
    wanted = expected(raw(0)) | {"retain/rouge": 1.0}
    for name, value in found["utility"].items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-9)
    del logs[tofu_logs.FILES["retain"]]["generated_text"]
    code, printed, _ = command("--logs", save(tmp_path / "b", logs), capsys=capsys)
    assert code == 0 and "not in the logs: retain/rouge" in printed


def test_what_is_written_is_read(tmp_path):
    before = tofu_logs.read(save(tmp_path / "a", raw(0)))
    path = tofu_logs.write(tmp_path / "made" / "b", before)
    after = tofu_logs.read(path.parent)
    assert list(after) == list(before)
    for name, samples in before.items():
        for ours, theirs in zip(samples, after[name], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    written = json.loads(path.read_text())["eval_log_forget.json"]
    original = raw(0)["eval_log_forget.json"]
    assert written["gt_loss"] == pytest.approx(original["gt_loss"])
    assert set(original) - set(written) == {"truth_ratio"}
    assert [p.name for p in path.parent.iterdir()] == [tofu_logs.AGGREGATED]


def broken(change):
    logs = raw(0)
    change(logs, logs["eval_log_forget.json"])
    return logs


CASES = {
    "no field": (lambda logs, f: f.pop("avg_gt_loss"), "eval_log_forget.json: has no avg_gt_loss"),
    "no paraphrase": (lambda logs, f: f.pop("avg_paraphrased_loss"), "has no avg_paraphrased_loss"),
    "empty field": (lambda logs, f: f["avg_gt_loss"].clear(), "has no avg_gt_loss"),
    "field no object": (
        lambda logs, f: f.update(average_perturb_loss=[1.0]),
        "eval_log_forget.json: average_perturb_loss: takes an object",
    ),
    "NaN": (
        lambda logs, f: f["avg_gt_loss"].update({"3": float("nan")}),
        "avg_gt_loss: sample 3: got nan, takes a finite number",
    ),
    "text": (lambda logs, f: f["avg_gt_loss"].update({"3": "low"}), "sample 3: got 'low'"),
    "no list": (
        lambda logs, f: f["average_perturb_loss"].update({"0": 1.0}),
        "average_perturb_loss: sample 0: got 1.0, takes a list",
    ),
    "uneven": (
        lambda logs, f: f["average_perturb_loss"].update({"1": [1.0]}),
        "sample 1: got 1 values, sample 0 has 5",
    ),
    "recall": (
        lambda logs, f: f["rougeL_recall"].update({"1": 1.5}),
        r"rougeL_recall: takes numbers in [0, 1]",
    ),
    "no common": (lambda logs, f: f.update(avg_gt_loss={"x": 1.0}), "no index has all"),
    "generated": (
        lambda logs, f: f["generated_text"].update({"1": ["a", "b"]}),
        "generated_text: sample 1: got ['a', 'b']",
    ),
    "set no object": (lambda logs, f: logs.update({"eval_log.json": 3}), "takes an object of"),
    "no sets": (lambda logs, f: logs.clear(), "has none of the sets"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_logs_end_in_one_line(case, tmp_path, capsys):
    change, message = CASES[case]
    out = tmp_path / "out.json"
    folder = save(tmp_path / "bad", broken(change))
    code, printed, error = command("--logs", folder, "--json", out, capsys=capsys)
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert message in error and str(folder) in error
    assert not out.exists()


def test_other_bad_input(tmp_path, capsys):
    good = save(tmp_path / "good", raw(0))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "eval_log.json").write_text('{"avg_gt_loss": {"0": ')
    (tmp_path / "empty").mkdir()
    no_forget = raw(1)
    del no_forget["eval_log_forget.json"]
    for arguments, message in (
        (("--logs", tmp_path / "absent"), "--logs: there is no"),
        (("--logs", tmp_path / "empty"), "has no eval_log_aggregated.json"),
        (("--logs", tmp_path / "cut"), "eval_log.json: not JSON"),
        (("--logs", good, "--json", tmp_path / "absent" / "out.json"), "No such file"),
        (
            ("--logs", good, "--retain-logs", save(tmp_path / "retain", no_forget)),
            "retain logs: forget quality needs eval_log_forget.json",
        ),
    ):
        code, printed, error = command(*arguments, capsys=capsys)
        assert (code, printed, error.count("\n")) == (2, "", 1), arguments
        assert message in error
    with pytest.raises(ValueError, match="sets: got"):
        tofu_logs.write(tmp_path, {"holdout": tofu_logs.read(good)["forget"]})
    short = tofu_logs.read(good)["forget"]._replace(rouge=np.ones(3))
    with pytest.raises(ValueError, match="rougeL_recall: got 3 values"):
        tofu_logs.write(tmp_path, {"forget": short})


@pytest.mark.slow
def test_as_a_program(tmp_path):
    folder = save(tmp_path / "a", raw(0))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "kd_jax.evaluation.tofu", "--logs", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "model utility" in done.stdout
