"""Whether and when a worker that died is started again. The processes: tests/e2e/test_workers."""

from engine.serving.worker_process import Restarts


def test_the_delay_doubles_until_it_gives_up(clock):
    restarts = Restarts(clock.now_s)
    delays = []
    for _ in range(6):
        restarts.served()
        clock.advance(1)
        delays.append(restarts.delay_s())
    assert delays == [0.5, 1, 2, 4, 8, None]


def test_a_worker_that_served_for_a_minute_starts_anew(clock):
    restarts = Restarts(clock.now_s)
    assert [restarts.delay_s() for _ in range(3)] == [0.5, 1, 2]
    restarts.served()
    clock.advance(60)
    assert restarts.delay_s() == 0.5


def test_time_spent_loading_is_no_time_spent_serving(clock):
    restarts = Restarts(clock.now_s)
    restarts.served()
    clock.advance(60)
    assert restarts.delay_s() == 0.5
    clock.advance(60)  # it never serves again
    assert restarts.delay_s() == 1
