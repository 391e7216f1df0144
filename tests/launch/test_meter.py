import json

import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.launch import meter as module
from kd_jax.launch.meter import MEASURED, Meter, tokens_of
from kd_jax.launch.writers import Jsonl

TEXT = {
    "inputs": np.zeros((8, 16), np.int32),
    "targets": np.zeros((8, 16), np.int32),
    "weights": np.ones((8, 16), np.float32),
}


class Clock:
    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


class Feed:
    """Batches that take `seconds` each to come."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def __next__(self):
        self.clock.now += self.seconds
        return TEXT


class Device:
    """Takes `seconds` a step, one after the other."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.free = clock, seconds, 0.0

    def run(self):
        self.free = max(self.clock.now, self.free) + self.seconds
        return {"loss": Loss(self.clock, self.free)}

    def block(self):
        self.clock.now = max(self.clock.now, self.free)


class Loss:
    """A number that is there from a time on; whoever reads it before waits."""

    def __init__(self, clock, finished):
        self.clock, self.finished = clock, finished

    def is_ready(self):
        return self.clock.now >= self.finished

    def block_until_ready(self):
        self.clock.now = max(self.clock.now, self.finished)
        return self

    def __float__(self):
        self.block_until_ready()
        return 0.5


class Shown:
    def __init__(self):
        self.calls = []

    def update(self, *args):
        self.calls.append(args)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def run(clock, tmp_path, *, batch=TEXT, steps, wait, work, each=None, **settings):
    """The lines of a loop with `wait` seconds between batches and `work` seconds a step."""
    writer = Jsonl(tmp_path / "metrics.jsonl")
    meter = Meter(writer, None, start=0, log_every=2, batch_size=8, **settings)
    feed, device = Feed(clock, wait), Device(clock, work)
    for step in range(1, steps + 1):
        meter.draw(feed)
        if step == 1:
            clock.now += 7.0
            meter.compiled(7.0, batch)
        meter.add(step, device.run())
        if each is not None:
            each(step, meter, device)
    meter.catch_up(last=True)
    writer.close()
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_the_speed_is_that_of_the_device_where_the_input_is_faster(clock, tmp_path):
    found = run(clock, tmp_path, steps=6, wait=0.5, work=2.0, flops=3e9, peak=5e9)
    assert [line["step"] for line in found] == [2, 4, 6]
    assert [line.pop("compile_seconds", None) for line in found] == [7.0, None, None]
    for line in found:
        assert line == {
            "step": line["step"],
            "loss": 0.5,
            "rows_per_second": 4.0,
            "tokens_per_second": 64.0,
            "step_seconds": 2.0,
            "input_wait": 0.0,  # the waits were hidden
            "mfu": 0.3,
        }
        assert set(line) - {"step", "loss"} == set(MEASURED) - {"compile_seconds"}


def test_the_speed_is_that_of_the_input_where_the_device_is_faster(clock, tmp_path):
    found = run(clock, tmp_path, steps=9, wait=0.5, work=0.125)
    assert [line["step"] for line in found] == [2, 4, 6, 8, 9]
    assert [line["step_seconds"] for line in found[:3]] == [0.5] * 3
    assert [line["input_wait"] for line in found[:3]] == [1.0] * 3
    # At the end, two steps in 1/2 + 1/8 s: the last waited for no further batch.
    assert [line["step_seconds"] for line in found[3:]] == [0.3125] * 2


def test_images_have_no_tokens_and_no_peak_gives_no_utilisation(clock, tmp_path):
    images = {"inputs": np.zeros((8, 4, 4, 1), np.uint8), "labels": np.zeros(8, np.int32)}
    for line in run(clock, tmp_path, batch=images, steps=4, wait=0.5, work=1.0, flops=1e9):
        assert set(line) & set(MEASURED) - {"compile_seconds"} == {
            "rows_per_second",
            "step_seconds",
            "input_wait",
        }


def test_tokens_are_those_of_every_array_of_inputs():
    assert tokens_of(TEXT) == 128
    assert tokens_of({"chosen": TEXT, "rejected": {"inputs": jnp.zeros((8, 4), jnp.int32)}}) == 160
    assert tokens_of({"inputs": np.zeros((8, 16), np.float32)}) == 0


@pytest.mark.parametrize(("wait", "work"), [(0.5, 0.25), (0.25, 0.5)])
def test_what_happens_between_steps_does_not_count(clock, tmp_path, wait, work):
    def each(step, meter, device):
        if step == 5:
            meter.catch_up()
            clock.now += 50.0
            meter.restart()
        if step == 9:
            device.block()
            clock.now += 20.0
            meter.exclude(20.0)

    found = run(clock, tmp_path, steps=14, wait=wait, work=work, each=each)
    assert [line["step"] for line in found] == list(range(2, 15, 2))
    for line in found:  # up to the time in which the device fills up or runs empty
        assert line["step_seconds"] == pytest.approx(0.5, abs=0.26)
        assert line["input_wait"] == pytest.approx(1.0 if wait > work else 0.0, abs=0.5)


def test_nothing_is_fetched_before_the_next_interval_is_complete(clock, tmp_path):
    meter = Meter(None, None, start=0, log_every=2, batch_size=8)
    device = Device(clock, 10.0)
    for step in range(1, 4):
        meter.draw(Feed(clock, 0.5))
        meter.add(step, device.run())
        assert clock.now == 100.0 + 0.5 * step
    meter.draw(Feed(clock, 0.5))
    meter.add(4, device.run())
    assert clock.now == 100.5 + 20.0  # step 2 of the interval before


def test_the_bar_shows_tokens_where_there_are_any(clock):
    for batch, expected in (
        (TEXT, (128.0, "tokens")),
        ({"inputs": jnp.ones((8, 2))}, (8.0, "rows")),
    ):
        shown = Shown()
        meter = Meter(None, shown, start=0, log_every=1, batch_size=8)
        meter.compiled(1.0, batch)
        device = Device(clock, 1.0)
        for step in (1, 2):
            meter.add(step, device.run())
        meter.catch_up()
        step, loss, rate, seconds, unit = shown.calls[-1]
        assert (step, loss, seconds) == (2, 0.5, 1.0)
        assert (rate, unit) == expected
