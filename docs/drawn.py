"""Formulas and graphs of the pages as SVG, drawn when the site is built: a browser needs no script for them."""

import html
import re
from typing import Any

import numpy as np
from grandalf.graphs import Edge, Graph, Vertex
from grandalf.layouts import SugiyamaLayout, VertexViewer
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath

_EM = 0.068
"""Em per unit of matplotlib's outlines at this font size."""
_SIZE = 16.0
_REWRITTEN = {r"\bigl": "", r"\bigr": "", r"\qquad": r"\quad\quad", r"\varnothing": r"\emptyset"}
"""What matplotlib does not know of TeX."""
_COMMANDS = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C", Outline.CLOSEPOLY: "Z"}
_LETTER_PX, _BOX_PX, _GAP_PX = 7.6, 30, 34
_HEAD = (
    '<defs><marker id="head" viewBox="0 0 6 6" refX="1" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
    '<path d="M0 0L6 3L0 6z"/></marker></defs>'
)
"""The head of an arrow."""


def formulas(page: str) -> str:
    """Every $...$ and $$...$$ of a page as a picture with the TeX as its text; blocks of code stay."""
    parts = re.split(r"(^ *```.*?^ *```|`[^`\n]*`)", page, flags=re.MULTILINE | re.DOTALL)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"\$\$(.+?)\$\$", lambda found: f'<div class="formula">{formula(found[1])}</div>', parts[i])
        parts[i] = re.sub(r"\$([^$\n]+)\$", lambda found: formula(found[1]), parts[i])
    return "".join(parts)


def formula(tex: str) -> str:
    """A formula as SVG in the colour of the text around it, on its baseline."""
    plain = tex
    for old, new in _REWRITTEN.items():
        plain = re.sub(rf"{re.escape(old)}(?![a-zA-Z])", lambda _, new=new: new, plain)
    outline = TextPath((0, 0), f"${plain.strip()}$", size=_SIZE, prop=FontProperties(math_fontfamily="cm"))
    (left, low), (right, high) = outline.get_extents().get_points() if len(outline.vertices) else np.zeros((2, 2))
    left, low, right, high = left - 0.5, low - 0.5, right + 0.5, high + 0.5
    size = f'width="{(right - left) * _EM:.3f}em" height="{(high - low) * _EM:.3f}em"'
    box = f'viewBox="{left:.2f} {-high:.2f} {right - left:.2f} {high - low:.2f}"'
    label = f'role="img" aria-label="{html.escape(tex, quote=True)}"'
    style = f'style="vertical-align:{low * _EM:.3f}em"'
    return f'<svg class="formula" {size} {box} {style} {label}><path d="{_d(outline)}"/></svg>'


def _d(outline: Outline) -> str:
    """A path of matplotlib as one of SVG, whose y points down."""
    parts = list[str]()
    for points, code in outline.iter_segments(simplify=False):
        places = points.reshape(-1, 2) if code != Outline.CLOSEPOLY else []
        parts.append(_COMMANDS[code] + " ".join(f"{x:.2f} {-y:.2f}" for x, y in places))
    return "".join(parts)


def graphs(page: str) -> str:
    """Every block of mermaid on a page as a picture."""
    return re.sub(r"```mermaid\n(.*?)```", lambda found: graph(found[1]), page, flags=re.DOTALL)


def graph(text: str) -> str:
    """A flowchart as SVG, from top to bottom, without the words on its arrows.

    text: lines such as `a --> b`, `a -- words --> b` and `a[title] --> b`.
    """
    arrows = re.findall(r"^\s*(\w+)(?:\[\(?([^\])]+)\)?\])? --(?:.* --)?> (\w+)$", text, flags=re.MULTILINE)
    titles = {name: name for start, _, end in arrows for name in (start, end)}
    titles |= {start: title for start, title, _ in arrows if title}
    vertices = {name: Vertex(name) for name in titles}
    for name, vertex in vertices.items():
        vertex.view = VertexViewer(w=len(titles[name]) * _LETTER_PX + 20, h=_BOX_PX)
    whole = Graph(list(vertices.values()), [Edge(vertices[start], vertices[end]) for start, _, end in arrows])
    layouts = [_laid_out(core) for core in sorted(whole.C, key=lambda core: -core.order())]
    drawn, width = list[str](), 0.0
    for corners, core in layouts:
        (left, top), (right, _) = corners
        drawn.append(f'<g transform="translate({width - left:.0f} {-top:.0f})">{_drawn(core, titles)}</g>')
        width += right - left + _GAP_PX
    height = max(bottom - top for ((_, top), (_, bottom)), _ in layouts)
    label = html.escape(", ".join(f"{titles[start]} to {titles[end]}" for start, _, end in arrows), quote=True)
    box = f'viewBox="-2 -2 {width - _GAP_PX + 4:.0f} {height + 4:.0f}" style="max-width:{width:.0f}px"'
    return f'<svg class="graph" role="img" aria-label="{label}" {box}>{_HEAD}{"".join(drawn)}</svg>'


def _laid_out(core: Any) -> tuple[Any, Any]:
    """The corners of a connected graph, and the graph, whose parts have places now (Sugiyama et al. 1981)."""
    for edge in core.E():
        edge.view = _Line()
    layout = SugiyamaLayout(core)
    layout.xspace, layout.yspace = _GAP_PX, _GAP_PX
    layout.init_all(optimize=True)
    layout.draw()
    middles = np.array([vertex.view.xy for vertex in core.V()])
    halves = np.array([(vertex.view.w / 2, vertex.view.h / 2) for vertex in core.V()])
    bends = np.array([point for edge in core.E() for point in edge.view.points])
    low, high = np.vstack([middles - halves, bends]).min(0), np.vstack([middles + halves, bends]).max(0)
    return (low, high), core


class _Line:
    """Where an edge runs."""

    points: list[tuple[float, float]]

    def setpath(self, points: list[tuple[float, float]]) -> None:
        self.points = points


def _drawn(core: Any, titles: dict[str, str]) -> str:
    """Lines and boxes of a graph that is laid out."""
    half, parts = _BOX_PX / 2, list[str]()
    for edge in core.E():
        (x, y), *bends, (end_x, end_y) = edge.view.points
        points = [(x, y + half), *bends, (end_x, end_y - half - 5)]
        parts.append(f'<polyline points="{" ".join(f"{x:.0f},{y:.0f}" for x, y in points)}"/>')
    for vertex in core.V():
        (x, y), width = vertex.view.xy, vertex.view.w
        box = f'x="{x - width / 2:.0f}" y="{y - half:.0f}" width="{width:.0f}" height="{_BOX_PX}"'
        parts.append(f'<rect {box} rx="5"/>')
        parts.append(f'<text x="{x:.0f}" y="{y + 5:.0f}">{html.escape(titles[vertex.data])}</text>')
    return "".join(parts)
