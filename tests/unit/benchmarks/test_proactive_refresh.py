"""The timetable and the bound of the proactive-refresh benchmark."""

from datetime import UTC, datetime, timedelta

import pytest

from benchmarks.proactive_refresh import RefreshOutcomes, Timetable, timeliness_bound

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def test_all_tokens_expire_within_the_window_one_buffer_after_their_due_time() -> None:
    timetable = Timetable(BEGIN, spread=timedelta(minutes=4), buffer=timedelta(minutes=5), window=timedelta(minutes=1))

    first, *_, last = timetable.expire_times(1_000)

    assert timetable.lifetime == timedelta(minutes=40)
    assert first == BEGIN + timedelta(minutes=9)
    assert timedelta(0) < timetable.last_expire_time - last < timedelta(seconds=1)
    # docs/refreshing.md: due in the tenth of the lifetime before the refresh buffer.
    assert first - timetable.buffer - timetable.lifetime / 10 == BEGIN
    assert timetable.last_due_time == BEGIN + timedelta(minutes=5)


@pytest.mark.parametrize(
    ("outcome", "holds", "measured"),
    [
        (RefreshOutcomes(margins=[1, 300], missed_count=0), True, "0 were too late, 0 not refreshed at all"),
        (RefreshOutcomes(margins=[0, -1, 300], missed_count=0), False, "2 were too late, 0 not refreshed at all"),
        (RefreshOutcomes(margins=[1, 300], missed_count=1), False, "0 were too late, 1 not refreshed at all"),
        (
            RefreshOutcomes(margins=[], missed_count=3),
            False,
            "none was, although all were due: the background worker does not refresh",
        ),
    ],
    ids=["all", "late", "one-never", "none"],
)
def test_every_token_must_be_refreshed_in_time(outcome: RefreshOutcomes, holds: bool, measured: str) -> None:
    bound = timeliness_bound(3, outcome)

    assert (bound.holds, bound.measured) == (holds, measured)
