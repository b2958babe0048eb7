"""Draws the two pictures of docs/architecture.md."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

BLUE, GREEN, ORANGE, GREY, RED = "#dbe9f6", "#ddf1dd", "#fdebd0", "#eeeeee", "#f8dcdc"
DOCS = Path(__file__).parent.parent / "docs"


class Sheet:
    """A figure in units of its own grid."""

    def __init__(self, width: float, height: float) -> None:
        self._figure = Figure(figsize=(width, height), dpi=110)
        FigureCanvasAgg(self._figure)
        self._axes = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set_xlim(0, width)
        self._axes.set_ylim(0, height)
        self._axes.axis("off")

    def box(
        self, x: float, y: float, w: float, h: float, text: str, color: str, *, top: bool = False
    ) -> None:
        """A rounded box; `top` puts its text at the upper edge."""
        shape = FancyBboxPatch(
            (x, y), w, h, boxstyle="round,pad=0.02,rounding_size=0.08", fc=color, ec="#555555"
        )
        self._axes.add_patch(shape)
        at, vertical = (y + h - 0.12, "top") if top else (y + h / 2, "center")
        self._axes.text(x + w / 2, at, text, ha="center", va=vertical, fontsize=9)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
        """An arrow with a label beside its middle."""
        self._axes.annotate(
            "", end, start, arrowprops={"arrowstyle": "-|>", "color": "#333333", "lw": 1.2}
        )
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.1)
        self._axes.text(*middle, text, ha="center", va="bottom", fontsize=8)

    def note(self, x: float, y: float, text: str) -> None:
        """Plain text."""
        self._axes.text(x, y, text, ha="left", va="center", fontsize=8.5, color="#333333")

    def save(self, name: str) -> None:
        """Write docs/<name>."""
        self._figure.savefig(DOCS / name)


def draw_universe() -> None:
    """Universe, pools and roles, and the way of one batch."""
    sheet = Sheet(11, 5.6)
    sheet.box(
        0.2, 0.2, 10.6, 5.2, "universe: ranks 0-5, one gloo group beside the pools", GREY, top=True
    )
    sheet.box(
        0.5, 0.5, 6.6, 4.3, "pool 0: ranks 0-3 (default group of these ranks)", BLUE, top=True
    )
    sheet.box(7.5, 0.5, 3.0, 4.3, "pool 1: ranks 4-5", BLUE, top=True)
    sheet.box(4.1, 3.2, 2.7, 1.0, "rollout\nvLLM TP2, 2 replicas", GREEN)
    sheet.box(0.8, 3.2, 2.5, 1.0, "reference\nTP2 x PP2", ORANGE)
    sheet.box(4.1, 0.8, 2.7, 1.0, "actor\nTP2 x PP2", ORANGE)
    sheet.box(7.8, 2.0, 2.4, 1.0, "critic\nPP2", ORANGE)
    sheet.arrow((4.1, 3.7), (3.3, 3.7), "1 rows")
    sheet.arrow((4.7, 3.2), (4.7, 1.8))
    sheet.note(4.08, 2.5, "1 rows")
    sheet.arrow((6.8, 3.6), (8.2, 3.0))
    sheet.note(7.55, 3.5, "1 rows")
    sheet.arrow((2.0, 3.2), (4.1, 1.5))
    sheet.note(1.75, 2.3, "2 log-probs")
    sheet.arrow((7.8, 2.5), (6.8, 1.6))
    sheet.note(6.95, 2.35, "2 values")
    sheet.arrow((6.8, 1.1), (8.8, 2.0))
    sheet.note(8.1, 1.5, "3 returns")
    sheet.arrow((6.1, 1.8), (6.1, 3.2))
    sheet.note(5.05, 2.5, "4 weights\n(reshard)")
    sheet.save("universe.png")


def draw_bucket() -> None:
    """The way of one parameter bucket, from Megatron's buffer to vLLM's parameter."""
    sheet = Sheet(11, 3.4)
    sheet.box(
        0.2, 1.9, 2.2, 1.1, "Megatron's DDP buffer\nlinear_qkv [q..q k v]\nper query group", ORANGE
    )
    sheet.box(3.0, 1.9, 2.2, 1.1, "bucket to rank 2\npacked, cast to bf16", BLUE)
    sheet.box(5.8, 1.9, 2.2, 1.1, "bucket on rank 2\nas it arrived", BLUE)
    sheet.box(8.6, 1.9, 2.2, 1.1, "vLLM's parameter\nqkv_proj [q; k; v]\nwritten in place", GREEN)
    sheet.arrow((2.4, 2.45), (3.0, 2.45), "pack")
    sheet.arrow((5.2, 2.45), (5.8, 2.45), "wire")
    sheet.arrow((8.0, 2.45), (8.6, 2.45), "unpack")
    sheet.box(0.2, 0.3, 2.2, 0.9, "digest of each region\nas bf16", RED)
    sheet.box(8.6, 0.3, 2.2, 0.9, "digest of each region\nafter it was written", RED)
    sheet.arrow((1.3, 1.9), (1.3, 1.2))
    sheet.arrow((9.7, 1.9), (9.7, 1.2))
    sheet.arrow((2.4, 0.75), (8.6, 0.75), "equal, or the run stops and names tensor, box and ranks")
    sheet.save("bucket.png")


if __name__ == "__main__":
    draw_universe()
    draw_bucket()
