"""What a run that stands still is said to wait for, from a table of what each process does."""

import pytest

from mvlm_jax.training.activity import (
    CHECKPOINT,
    COMPILE,
    DISPATCH,
    EVALUATION,
    INPUT,
    STEP,
    WORK,
    Activity,
    Whereabouts,
)
from mvlm_jax.training.stall import StallReports, find_stall

NAMES = ["a", "b", "c", "d"]


def message(*rows, after=120.0):
    stall = find_stall(dict(enumerate(rows)), names=NAMES, after=after)
    return stall.message if stall else None


IN_STEP = Whereabouts(STEP, 1200, 1200, 120.4)
READING = Whereabouts(INPUT, 1200, 1199, 121.0)


@pytest.mark.parametrize("rows, said", [
    ([IN_STEP, IN_STEP, IN_STEP, READING],
     "process 3 (d) has waited 121 s for its input pipeline (the batch of step 1200); 3 processes wait for step 1200"),
    ([READING, IN_STEP, READING, IN_STEP],
     "process 0 (a) and process 2 (c) have waited 121 s for their input pipelines (the batch of step 1200); "
     "2 processes wait for step 1200"),
    ([READING] * 4, "all processes have waited 121 s for their input pipelines (the batch of step 1200)"),
    ([IN_STEP] * 4,
     "all processes entered step 1200; it has not ended for 120 s: a collective or a device is stuck"),
    # One is still in the call of the step's program, another has called the next one.
    ([IN_STEP, Whereabouts(DISPATCH, 1200, 1200, 130.0), Whereabouts(INPUT, 1202, 1201, 3.0), IN_STEP],
     "all processes entered step 1200; it has not ended for 120 s: a collective or a device is stuck"),
    # The step before has ended for one of them, which is late itself.
    ([IN_STEP, Whereabouts(WORK, 1199, 1199, 90.0), IN_STEP, IN_STEP],
     "process 1 (b) has been at work of its own after step 1199 for 90 s; 3 processes wait for step 1200"),
    ([Whereabouts(EVALUATION, 1199, 1199, 300.0), IN_STEP, IN_STEP, Whereabouts(CHECKPOINT, 1199, 1199, 200.0)],
     "process 0 (a) has been evaluating step 1199 for 300 s; "
     "process 3 (d) has been saving the checkpoint of step 1199 for 200 s; 2 processes wait for step 1200"),
    ([Whereabouts(COMPILE, 1, 0, 400.0), Whereabouts(STEP, 1, 1, 121.0)],
     "process 0 (a) has been compiling the training step for 400 s; 1 process waits for step 1"),
    ([Whereabouts(EVALUATION, 1200, 1200, 1201.0)] * 4, "all processes have been evaluating step 1200 for 1201 s"),
])  # fmt: skip
def test_what_a_run_waits_for_is_named(rows, said):
    assert message(*rows) == said


@pytest.mark.parametrize("rows", [
    [],
    [IN_STEP._replace(seconds=119.0)] * 4,
    [READING._replace(seconds=119.0), IN_STEP._replace(seconds=118.0)],
    [Whereabouts(EVALUATION, 1200, 1200, 1199.0)] * 4,  # may take long
    [Whereabouts(EVALUATION, 1200, 1200, 5000.0), Whereabouts(STEP, 1200, 1200, 1.0)],
])  # fmt: skip
def test_nothing_is_said_while_the_run_may_still_go_on(rows):
    assert message(*rows) is None


def test_many_processes_are_counted():
    stall = find_stall({**dict.fromkeys(range(7), READING), 7: IN_STEP}, names=(), after=120.0)
    assert stall.message.startswith("process 0, process 1, process 2, process 3 and 3 more have waited 121 s for their")


def test_a_stall_is_told_again_when_it_has_become_twice_as_long():
    reports = StallReports(names=NAMES, after=10.0)
    told = []
    for seconds in (5.0, 10.0, 15.0, 20.0, 39.0, 41.0, 1.0, 12.0):
        rows = {process: IN_STEP._replace(seconds=seconds) for process in range(4)}
        told.append(reports.due(rows, longest_step=0.0) is not None)
    assert told == [False, True, False, True, False, True, False, True]


def test_a_run_of_long_steps_is_not_stuck_in_each():
    rows = dict.fromkeys(range(4), IN_STEP)
    assert StallReports(names=NAMES, after=10.0).due(rows, longest_step=41.0) is None
    assert StallReports(names=NAMES, after=10.0).due(rows, longest_step=39.0)


def test_activity_tells_where_a_process_is_and_what_it_spent():
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    activity = Activity(clock=lambda: now[0])
    with activity.phase(COMPILE, 1):
        sleep(50.0)
        assert activity.whereabouts() == Whereabouts(COMPILE, 1, 0, 50.0)
    activity.take()
    with activity.phase(INPUT, 2):
        sleep(2.0)
    with activity.phase(DISPATCH, 2):
        sleep(0.5)
        assert activity.whereabouts() == Whereabouts(DISPATCH, 2, 2, 0.5)
    with pytest.raises(ValueError), activity.phase(STEP, 1):
        sleep(3.0)
        raise ValueError
    sleep(0.25)
    assert activity.whereabouts() == Whereabouts(WORK, 1, 2, 0.25)
    spent = activity.take()
    assert (spent[INPUT], spent[DISPATCH], spent[STEP], spent[WORK], spent[COMPILE]) == (2.0, 0.5, 3.0, 0.25, 0.0)
    assert activity.longest(STEP) == 3.0
    assert sum(activity.take().values()) == 0.0


def test_whereabouts_survive_the_way_to_the_other_processes():
    assert Whereabouts.decode(READING.encode()) == READING
