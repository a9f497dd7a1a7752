"""The demo's result as a page, as JSON and as a table."""

from cloud.report.model import DemoReport
from cloud.report.render import terminal_table, write

__all__ = ["DemoReport", "terminal_table", "write"]
