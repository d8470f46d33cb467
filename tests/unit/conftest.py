"""Fixtures of the unit tests."""

import sys

import pytest

from command import Edge, Ended
from edgekit import cli


@pytest.fixture
def edge(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Edge:
    """``edge("run", DIR, ...)`` -> exit code, stdout and stderr."""

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["edge", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.app(list(arguments), prog_name="edge")
        shown = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 1, shown.out, shown.err)

    return run
