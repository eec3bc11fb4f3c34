"""The line that counts up."""

import io

from pcls.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_line_on_a_terminal_and_nothing_elsewhere(monkeypatch):
    for stream, expected in ((Terminal(), "\r600 of 1,200 records (50%)\r\x1b[K"), (io.StringIO(), "")):
        monkeypatch.setattr("sys.stderr", stream)
        progress = Progress(1200)
        progress.advance(600)
        progress.advance(6)  # Too soon for another.
        progress.close()
        assert stream.getvalue() == expected
