from spqlm.cache import KEPT_RUNS, RunState, cache_directory


def test_a_run_that_is_through_leaves_nothing():
    run = RunState()
    for stage in ("budget", "distill"):
        directory = run.directory(stage, "key")
        directory.mkdir(parents=True)
        (directory / "file").write_text("finished")
    run.forget()
    assert not cache_directory().exists()


def test_what_others_keep_stays():
    run, other = RunState(), RunState()
    mine, theirs = run.directory("budget", "mine"), other.directory("budget", "theirs")
    for directory in (mine, theirs):
        directory.mkdir(parents=True)
    run.forget()
    assert theirs.is_dir() and not mine.exists()
    # Its own work is gone already, or was never begun.
    run.forget()


def test_work_that_nobody_goes_on_with_does_not_pile_up():
    for number in range(KEPT_RUNS + 5):
        RunState().directory("budget", f"{number}").mkdir(parents=True)
    assert len(list(cache_directory().glob("run-*"))) == KEPT_RUNS + 1
