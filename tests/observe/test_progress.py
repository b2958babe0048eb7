"""Progress: plain lines outside a terminal, one bar in it, nothing where it is off."""

from __future__ import annotations

import io

from rich.console import Console

from megarl.observe.progress import Progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def plain_console():
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def test_plain_lines_come_at_intervals_and_at_the_end():
    console, clock = plain_console(), Clock()
    with Progress("train", 4, console=console, every_s=10, clock=clock) as bar:
        for step in range(4):
            clock.now += 6
            bar.advance(reward=0.25 * step, tokens_per_s=5123.4)
    assert console.file.getvalue().splitlines() == [
        "train 2/4 (0:12 left)  reward 0.25  tokens/s 5,123",
        "train 4/4 (done)  reward 0.75  tokens/s 5,123",
    ]


def test_figures_stay_until_given_again():
    console = plain_console()
    bar = Progress("[pretrain]", 2, console=console, every_s=0)
    bar.advance(loss=1.5)
    bar.advance()
    assert console.file.getvalue().splitlines()[1] == "[pretrain] 2/2 (done)  loss 1.5"


def test_a_terminal_gets_a_bar_with_the_figures():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Progress("train", 3, console=console) as bar:
        bar.advance(3, reward=0.5)
    text = console.file.getvalue()
    assert "3/3" in text and "reward 0.5" in text and "━" in text


def test_off_is_silent():
    console = plain_console()
    with Progress("train", 1, enabled=False, console=console, every_s=0) as bar:
        bar.advance(reward=1)
    assert console.file.getvalue() == ""
