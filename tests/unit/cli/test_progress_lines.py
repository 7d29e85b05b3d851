"""What a command says of its progress where nobody watches."""

from __future__ import annotations

import pytest

from fedbench.cli._progress import lines


def test_a_line_a_minute_says_that_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([0.0, 59.0, 60.0, 60.0, 90.0, 120.0, 120.0])
    tell = lines(lambda: next(seconds))
    for done in range(4):
        tell("scoring base", 1000 * done, 4000)
    assert capsys.readouterr().err == "scoring base: 1,000 of 4,000\nscoring base: 3,000 of 4,000\n"
