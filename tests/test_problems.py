"""Reports of what was skipped: no duplicates, long lists shortened, an exit code."""

from __future__ import annotations

from vitpose_fast.problems import print_problems, shortened


def test_problems_are_shortened():
    assert shortened(["a", "b", "a"]) == ["a", "b"]
    assert shortened([str(i) for i in range(30)]) == [*map(str, range(20)), "10 more problems"]


def test_what_was_skipped_is_printed_to_stderr(capsys):
    assert print_problems([]) == 0 and capsys.readouterr().err == ""
    assert print_problems(["a.json: damaged", "b.json: damaged", "a.json: damaged"]) == 1
    assert capsys.readouterr().err == "skipped: a.json: damaged\nskipped: b.json: damaged\n"
