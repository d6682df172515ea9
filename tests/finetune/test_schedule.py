"""Schedules follow Zhu & Gupta's cubic at the steps at which they are due, and refuse what makes no sense."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from graphprune.errors import RecipeError
from graphprune.finetune import Schedule


def test_the_cubic_of_zhu_and_gupta():
    schedule = Schedule(0.9, initial=0.1, begin=20, end=120, frequency=10)
    for step in range(20, 121, 10):
        # Equation 1 of the paper, with n = 10 and dt = 10.
        assert schedule.at(step) == pytest.approx(0.9 + (0.1 - 0.9) * (1 - (step - 20) / (10 * 10)) ** 3, abs=1e-12)
    assert schedule.at(20) == pytest.approx(0.1, abs=1e-12)
    assert schedule.at(120) == schedule.at(10_000) == 0.9
    assert schedule.at(19) == schedule.at(0) == 0.0
    assert schedule.at(39) == schedule.at(30) < schedule.at(40)


def test_due_every_so_many_steps_and_at_the_end():
    schedule = Schedule(0.5, begin=3, end=12, frequency=4)
    assert [step for step in range(20) if schedule.due(step)] == [3, 7, 11, 12]
    assert schedule.at(12) == 0.5
    values = [schedule.at(step) for step in range(20)]
    assert values == sorted(values)
    changes = {step for step in range(1, 20) if values[step] != values[step - 1]}
    assert changes <= {3, 7, 11, 12}


def test_one_shot_and_constant():
    shot = Schedule.one_shot(0.75, at=5)
    assert [shot.at(step) for step in (0, 4, 5, 6)] == [0.0, 0.0, 0.75, 0.75]
    assert [step for step in range(10) if shot.due(step)] == [5]
    assert Schedule.one_shot(0.75) == Schedule(0.75)
    assert Schedule(0.75).due(0)
    constant = Schedule.constant(0.5, begin=2, end=8, frequency=3)
    assert [constant.at(step) for step in (1, 2, 5, 8, 9)] == [0.0, 0.5, 0.5, 0.5, 0.5]
    assert [step for step in range(10) if constant.due(step)] == [2, 5, 8]


def test_numbers_of_numpy_become_plain_ones():
    schedule = Schedule(np.float64(0.5), end=np.int64(10))
    assert type(schedule.final) is float
    assert type(schedule.end) is int


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"final": 1.0}, "final must be at least 0 and below 1, not 1.0"),
        ({"final": -0.1}, "final must be"),
        ({"final": float("nan")}, "final must be"),
        ({"final": "half"}, "final must be"),
        ({"final": True}, "final must be"),
        ({"final": 0.5, "initial": 0.6}, "initial must be at most final"),
        ({"final": 0.5, "begin": -1}, "begin must be a whole number, at least 0"),
        ({"final": 0.5, "end": 1.5}, "end must be a whole number"),
        ({"final": 0.5, "begin": 5, "end": 4}, "end must be at least begin"),
        ({"final": 0.5, "frequency": 0}, "frequency must be a whole number, at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(values, words):
    with pytest.raises(RecipeError, match=words):
        Schedule(**values)


def test_the_schedule_itself_needs_no_torch():
    code = (
        "import importlib.util as u, sys; sys.modules['torch'] = None\n"
        "spec = u.spec_from_file_location('schedule', 'graphprune/finetune/schedule.py')\n"
        "module = sys.modules['schedule'] = u.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(module.Schedule(0.5).at(0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0.5\n"), done.stderr
