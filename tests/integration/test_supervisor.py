"""The supervisor with real processes: order, restarts, stops and whole log lines."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from integration_server.supervisor import RestartBackoff
from tests.integration.supervised_program import LIES, LINES, PRINTED_LINES, VALID

ROOT = Path(__file__).parents[2]
DEADLINE = 60.0  # seconds; the machine may be busy


class Program:
    """A running `supervised_program`, whose output is read line by line. A timer ends one that hangs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def read_until(self, text: str) -> str:
        """The first further line that contains the text."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"{text!r} is not in {self.lines}")

    def end(self) -> int:
        """The exit code, once it has ended."""
        assert self.process.stderr is not None
        self.lines += self.process.stderr
        return self.process.wait(DEADLINE)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The log events so far."""
        return [json.loads(line) for line in self.lines if line.startswith('{"')]

    def names_of(self, event: str) -> list[str]:
        """The processes that logged an event, in order."""
        return [logged["process"] for logged in self.events if logged["event"] == event]


@contextmanager
def running(*arguments: str, **environment: str) -> Iterator[Program]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.integration.supervised_program", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'generated'}", **environment},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        timer = threading.Timer(DEADLINE, process.kill)
        timer.start()
        try:
            yield Program(process)
        finally:
            timer.cancel()
            process.kill()


def wait_until_gone(pids: list[int]) -> None:
    """Wait until the processes have ended; an orphan fails the test. Zombies wait for their new parent."""
    found = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    left = [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    _, alive = psutil.wait_procs(left, timeout=DEADLINE)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_processes_start_in_order_and_stop_in_reverse_also_if_the_whole_group_is_signalled(number: int) -> None:
    with running("serve") as program:
        serving = json.loads(program.read_until('"serving", "process"'))
        assert set(serving["pids"]) == {"first", "second"}
        os.killpg(program.process.pid, number)  # as Ctrl-C and systemd do
        assert program.end() == 0
        # As it was printed, or in an event: the supervisor may have seen before that both serve.
        starts = re.findall(r"\w+ may start", "".join(program.lines))
        assert starts == ["first may start", "second may start"]
        assert sorted(program.names_of("draining")) == ["first", "second"]
        assert program.names_of("ending") == ["second", "first"]
        assert program.events[-1]["event"] == "stopped"
        wait_until_gone(list(serving["pids"].values()))


def test_sigterm_lets_all_drain_until_a_second_signal() -> None:
    with running("serve", DRAIN_SECONDS="3600") as program:
        serving = json.loads(program.read_until('"serving", "process"'))
        os.kill(program.process.pid, signal.SIGTERM)
        program.read_until('"draining", "process"')  # of one process, and of the supervisor
        program.read_until('"draining", "process"')
        program.read_until('"draining", "process"')
        assert sorted(program.names_of("draining")) == ["first", "second", "supervisor"]
        # It still runs, and restarts nothing.
        os.kill(serving["pids"]["second"], signal.SIGKILL)
        program.read_until("second has ended")
        assert program.names_of("stopping") == []
        os.kill(program.process.pid, signal.SIGTERM)
        assert program.end() == 1  # one of its processes was killed
        assert program.names_of("ending") == ["first"]
        assert program.names_of("process_died") == []
        wait_until_gone(list(serving["pids"].values()))


def test_the_drain_ends_by_itself() -> None:
    with running("serve", DRAIN_SECONDS="0.2") as program:
        program.read_until('"serving", "process"')
        os.kill(program.process.pid, signal.SIGTERM)
        assert program.end() == 0
        own = [event["event"] for event in program.events if event["process"] == "supervisor"]
        # A line that a process prints is an event if the supervisor has seen before that all serve.
        assert [name for name in own if name != "printed_line"] == ["serving", "draining", "stopping", "stopped"]


@pytest.mark.slow
def test_ctrl_c_and_a_stop_during_the_start_do_not_wait() -> None:
    with running("serve", DRAIN_SECONDS="3600") as program:
        program.read_until('"serving", "process"')
        os.kill(program.process.pid, signal.SIGINT)
        assert program.end() == 0
        assert sorted(program.names_of("draining")) == ["first", "second"]
    with running("second never starts", DRAIN_SECONDS="3600") as program:
        program.read_until("second may start")
        os.kill(program.process.pid, signal.SIGTERM)
        program.end()
        assert program.names_of("ending") == ["first"]


@pytest.mark.parametrize("behaviour", ["first fails", "first of three fails", "second fails"])
def test_a_process_that_cannot_start_ends_all_with_its_code_and_message(behaviour: str) -> None:
    with running(behaviour) as program:
        assert program.end() == 7
        assert "a message for the operator\n" in program.lines
        assert not any("Error" in line for line in program.lines), program.lines
        assert program.names_of("serving") == []
        # A process whose turn has not come begins nothing.
        assert ("second may start\n" in program.lines) == (behaviour == "second fails")


def test_a_process_that_dies_is_restarted_ever_more_slowly() -> None:
    with running("second dies") as program:
        program.read_until('"restart_in_seconds": 0.004')
        program.read_until('"process_restarted"')
        os.kill(program.process.pid, signal.SIGTERM)
        program.end()
    deaths = [event for event in program.events if event["event"] == "process_died"]
    assert [death["restart_in_seconds"] for death in deaths[:3]] == [0.001, 0.002, 0.004]
    assert {(death["name"], death["exit_code"]) for death in deaths} == {("second", -signal.SIGKILL)}
    pids = [event["pids"] for event in program.events if "pids" in event]
    assert len({started["first"] for started in pids}) == 1
    assert len({started["second"] for started in pids}) == len(pids)


def test_a_process_that_cannot_be_started_again_is_tried_later() -> None:
    with running("second cannot be forked") as program:
        program.read_until('"process_not_started"')
        program.read_until('"process_restarted"')
        os.kill(program.process.pid, signal.SIGTERM)
        program.end()
        assert program.names_of("ending") == ["first"]


@pytest.mark.slow
def test_the_first_of_a_group_starts_alone_the_others_together_and_all_stop_together() -> None:
    with running("workers") as program:
        serving = json.loads(program.read_until('"serving", "process"'))
        assert list(serving["pids"]) == ["first", "worker-1", "worker-2", "worker-3", "last"]
        os.kill(program.process.pid, signal.SIGTERM)
        assert program.end() == 0
        # As they were printed, or in events: the supervisor may have seen before that all serve.
        begun = re.findall(r"[\w-]+ (?:may start|is ready)", "".join(program.lines))
        assert begun[:3] == ["first may start", "worker-1 may start", "worker-1 is ready"]
        assert sorted(begun[3:5]) == ["worker-2 may start", "worker-3 may start"]
        assert sorted(begun[5:7]) == ["worker-2 is ready", "worker-3 is ready"]
        assert begun[7:] == ["last may start"]
        ends = program.names_of("ending")
        assert (ends[0], sorted(ends[1:4]), ends[4]) == ("last", ["worker-1", "worker-2", "worker-3"], "first")
        assert sorted(program.names_of("draining")) == sorted(serving["pids"])
        assert [name for name in serving["pids"] if f"{name} has ended\n" not in program.lines] == []
        wait_until_gone(list(serving["pids"].values()))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_before_a_process_has_read_its_config_stops_it(number: signal.Signals) -> None:
    with running("first starts late") as program:
        program.read_until("first is loading")
        os.kill(program.process.pid, number)
        assert program.end() == 0
    assert program.names_of("ending") == ["first"]
    assert program.names_of("process_killed") == []


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]])
def test_processes_that_are_killed_at_the_same_time_are_all_reaped(signals: list[signal.Signals]) -> None:
    with running("workers hang") as program:
        pids = json.loads(program.read_until('"serving", "process"'))["pids"]
        for number in signals:
            os.kill(program.process.pid, number)
        assert program.end() == 1
        assert sorted(line for line in program.lines if "has ended" in line) == [f"{name} has ended\n" for name in pids]


def test_what_keeps_a_group_from_starting_is_reported_once() -> None:
    with running("workers fail") as program:
        assert program.end() == 7
        assert program.lines.count("a message for the operator\n") == 1


@pytest.mark.slow
def test_a_process_whose_event_loop_hangs_is_replaced_and_the_others_continue() -> None:
    with running("second stops beating") as program:
        serving = json.loads(program.read_until('"serving", "process"'))
        assert json.loads(program.read_until('"process_hangs"'))["pid"] == serving["pids"]["second"]
        restarted = json.loads(program.read_until('"process_restarted"'))
        assert restarted["pids"]["first"] == serving["pids"]["first"]
        program.process.kill()


@pytest.mark.slow
def test_negative_control_without_beats_a_process_hangs_for_ever() -> None:
    with running("second stops beating", "unwatched") as program:
        program.read_until("no more beats")
        for _ in range(3):
            program.read_until("the supervisor has checked")
        program.process.kill()
    assert program.names_of("process_hangs") == []


def test_the_pause_before_a_restart_doubles_up_to_a_limit() -> None:
    backoff = RestartBackoff(first=timedelta(seconds=0.5), longest=timedelta(seconds=30))
    assert [backoff.pause(failures) for failures in (1, 2, 3, 6, 7, 1000)] == [0.5, 1, 2, 16, 30, 30]


@pytest.mark.parametrize("number", range(len(LIES)))
def test_a_process_that_reports_anything_else_is_killed_and_the_others_are_unharmed(number: int) -> None:
    with running(f"second lies {number}") as program:
        program.read_until('"invalid_report"')
        if LIES[number][0] == VALID:  # it was ready before, so that it is restarted
            os.kill(program.process.pid, signal.SIGTERM)
            program.end()
        else:
            assert program.end() == 1
        assert program.names_of("ending") == ["first"]
    assert "Traceback" not in "".join(program.lines)
    assert "forged" not in "".join(program.lines)


def test_a_process_that_does_not_stop_is_killed_and_the_others_stop_as_usual() -> None:
    with running("second hangs") as program:
        serving = json.loads(program.read_until('"serving", "process"'))
        os.kill(program.process.pid, signal.SIGTERM)
        assert program.end() == 1
        assert [event["name"] for event in program.events if event["event"] == "process_killed"] == ["second"]
        assert program.names_of("ending") == ["first"]
        wait_until_gone(list(serving["pids"].values()))


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["serve", "second hangs"])
def test_no_process_outlives_the_supervisor(behaviour: str) -> None:
    with running(behaviour) as program:
        pids = json.loads(program.read_until('"serving", "process"'))["pids"]
        program.process.kill()
        program.end()
        wait_until_gone(list(pids.values()))


def test_what_a_process_prints_is_bounded_and_its_events_are_all_written() -> None:
    """Clients make gRPC's C core print lines. The negative control is the next test: all events are written."""
    with running("second prints") as program:
        program.read_until('"printed", "process"')
        os.kill(program.process.pid, signal.SIGTERM)
        assert program.end() == 0
    assert len([line for line in program.lines if "the same" in line]) == 1 < PRINTED_LINES
    lines = [event for event in program.events if event["event"] == "printed_line" and event["name"] == "second"]
    printed = [event["text"] for event in lines if event["text"].startswith("x")]
    assert 16 * 1024 - 1_000 < sum(map(len, printed)) < 20 * 1024 < sum(range(500))


def broken_lines(lines: list[str]) -> list[str]:
    return [line for line in lines if "beginning" in line and line != "{beginning end}\n"]


@pytest.mark.slow
def test_the_lines_of_two_processes_are_never_mixed() -> None:
    with running("write") as program:
        program.read_until('"serving", "process"')
        os.kill(program.process.pid, signal.SIGTERM)
        assert program.end() == 0
    assert broken_lines(program.lines) == []
    assert program.lines.count("{beginning end}\n") == 2 * LINES


def test_negative_control_processes_that_share_a_log_mix_their_lines() -> None:
    with running("write", "unsupervised") as program:
        assert program.end() == 0
    assert broken_lines(program.lines)
