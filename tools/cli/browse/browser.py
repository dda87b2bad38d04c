"""The terminal UI of `refledger browse`: a list, what is said of its highlighted line, and a filter. Thin over
tools/cli/browse/nodes.py."""

from __future__ import annotations

from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from storage.errors import RefledgerError
from tools.cli.browse.nodes import Node, matching
from tools.text import clean, fit

SHOWN = 1000
"""Lines of the list: whoever wants others types a part of them."""
DETAIL, CHARACTERS = 2000, 50_000
"""Lines that are said of one thing, at most, and characters: an event may have a million in one line, and laying them
out takes half a minute."""


class _Level:
    """One node that was gone into: what is in it, what the filter says, and which line is highlighted."""

    def __init__(self, node: Node, nodes: list[Node]) -> None:
        self.node = node
        self.nodes = nodes
        self.text = ""
        self.at = 0
        self.shown: list[Node] = []


class Browser(App[None]):
    """Walks the tree below `top`. The filter keeps the focus, so that typing filters everywhere."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #way { text-style: bold; height: 1; }
    #list { height: 1fr; border: none; padding: 0; text-wrap: nowrap; text-overflow: ellipsis; }
    #detail { height: 1fr; border-top: solid $primary; }
    #filter { height: 1; border: none; padding: 0; }
    #keys { height: 1; color: $text-muted; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move('cursor_up')", priority=True),
        Binding("down", "move('cursor_down')", priority=True),
        Binding("pageup", "move('page_up')", priority=True),
        Binding("pagedown", "move('page_down')", priority=True),
        Binding("enter", "enter", priority=True),
        Binding("escape", "leave", priority=True),
        Binding("ctrl+up", "scroll(-1)", priority=True),
        Binding("ctrl+down", "scroll(1)", priority=True),
        Binding("ctrl+c", "quit", priority=True),
    ]

    def __init__(self, top: Node) -> None:
        super().__init__()
        self._levels: list[_Level] = [_Level(top, list(top.children()))]

    def compose(self) -> ComposeResult:
        """The parts, from above."""
        yield Static(id="way", markup=False)
        yield OptionList(id="list", markup=False)
        with VerticalScroll(id="detail", can_focus=False):
            yield Static(id="said", markup=False)
        yield Input(id="filter", placeholder="type to filter")
        yield Static("↑↓ move  enter open  esc back  ctrl+↑↓ scroll  ^c leave", id="keys", markup=False)

    def on_mount(self) -> None:
        """Show the first level."""
        self.query_one("#list").can_focus = False
        self.query_one(Input).focus()
        self._show()

    # ------------------------------------------------------------ keys

    def action_move(self, how: str) -> None:
        """Another line."""
        getattr(self.query_one(OptionList), f"action_{how}")()

    def action_scroll(self, lines: int) -> None:
        """More of what is said."""
        self.query_one("#detail", VerticalScroll).scroll_relative(y=3 * lines, animate=False)

    def action_enter(self) -> None:
        """Into the highlighted line."""
        node = self._highlighted()
        if node is None or node.leaf:
            return
        try:
            nodes = list(node.children())
        except (RefledgerError, OSError) as error:
            self._say([f"ERROR: {clean(str(error))}"])
            return
        self._levels.append(_Level(node, nodes))
        self._show()

    def action_leave(self) -> None:
        """Without the filter; else up; at the top, nowhere."""
        level = self._levels[-1]
        if level.text:
            level.text, level.at = "", 0
        elif len(self._levels) > 1:
            self._levels.pop()
        self._show()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter as it is typed."""
        level = self._levels[-1]
        if event.value != level.text:
            level.text, level.at = event.value, 0
            self._fill()

    def on_option_list_option_highlighted(self, _event: OptionList.OptionHighlighted) -> None:
        """Tell of the line. The message may be late, of another level even: the list knows where it is."""
        self._tell()

    def on_option_list_option_selected(self, _event: OptionList.OptionSelected) -> None:
        """A click is as good as enter."""
        self.action_enter()

    def on_resize(self, _event: Resize) -> None:
        """What is said is laid out for the width."""
        if self.query("#said"):
            self.call_after_refresh(self._fill)

    # ------------------------------------------------------------ showing

    def _highlighted(self) -> Node | None:
        level, at = self._levels[-1], self.query_one(OptionList).highlighted
        if at is None or at >= len(level.shown):
            return None
        level.at = at
        return level.shown[at]

    def _show(self) -> None:
        self.query_one(Input).value = self._levels[-1].text
        self._fill()

    def _fill(self) -> None:
        level = self._levels[-1]
        found = matching(level.nodes, level.text)
        level.shown = found[:SHOWN]
        level.at = min(level.at, max(len(level.shown) - 1, 0))
        at = level.at
        rows = self.query_one(OptionList)
        rows.clear_options()
        rows.add_options([Option(Content(self._cut(node.title))) for node in level.shown])
        if level.shown:
            rows.highlighted = at
        way = " > ".join(item.node.name for item in self._levels)
        count = f"{len(found)} of {len(level.nodes)}" if level.text else str(len(level.nodes))
        more = f", the first {SHOWN} shown" if len(found) > SHOWN else ""
        self.query_one("#way", Static).update(Content(self._cut_left(way, f"  ({count}{more})")))
        self._tell()

    def _tell(self) -> None:
        node = self._highlighted()
        if node is None:
            self._say(["nothing matches" if self._levels[-1].text else "nothing is in here"])
            return
        lines: list[str] = []
        room = CHARACTERS
        try:
            for line in node.lines(max(self.size.width - 2, 20)):
                lines.append(line[:room])
                room -= len(line)
                if len(lines) >= DETAIL or room <= 0:
                    lines.append("…")
                    break
        except (RefledgerError, OSError) as error:
            lines.append(f"ERROR: {clean(str(error))}")
        self._say(lines)

    def _say(self, lines: list[str]) -> None:
        self.query_one("#said", Static).update(Content("\n".join(line.expandtabs(8) for line in lines)))
        self.query_one("#detail", VerticalScroll).scroll_home(animate=False)

    def _cut(self, text: str) -> str:
        return fit(text, max(self.size.width - 2, 10))

    def _cut_left(self, way: str, count: str) -> str:
        """The end of a long way says where one is."""
        room = max(self.size.width - len(count) - 1, 10)
        return (way if len(way) <= room else "…" + way[1 - room :]) + count
