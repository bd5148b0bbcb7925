"""Reports of a run: text for a terminal, one self-contained HTML file for the eyes."""

from .html import render as render_html
from .story import Story
from .text import render as render_text

__all__ = ["Story", "render_html", "render_text"]
