from dbpkit.results.executed import executed

CPU = {"device": "cpu", "micro_batch": 32, "memory_bytes": 2 * 2**30, "threads": 2, "deterministic": False}


def test_sessions_that_were_executed_alike_are_said_once() -> None:
    assert executed([CPU, {**CPU, "examples": 7}]) == (
        "on cpu, 32 rows at a time, 2.0 GiB for graphs, 2 threads"
    )


def test_threads_are_of_the_cpu_only_and_every_setting_is_said() -> None:
    session = {**CPU, "device": "cuda:1", "micro_batch": 1, "memory_bytes": 0, "deterministic": True}
    assert executed([session]) == "on cuda:1, 1 row at a time, every step replayed, deterministic"


def test_other_sessions_are_said_in_order_and_old_ones_counted() -> None:
    sessions = [{**CPU, "threads": count} for count in (1, 2, 3)]
    assert executed(sessions) == (
        "on cpu, 32 rows at a time, 2.0 GiB for graphs, 2 threads;"
        " then on cpu, 32 rows at a time, 2.0 GiB for graphs, 3 threads; 1 more before"
    )


def test_a_run_without_sessions_says_nothing() -> None:
    assert executed([]) == ""
