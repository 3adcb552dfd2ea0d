"""Run directories become tables, figures and one self-contained HTML page; nothing here runs a network."""

from dbpkit.report.analyses import console_analysis, console_findings, write_charts
from dbpkit.report.page import write_report
from dbpkit.report.picture import write_replay_png, write_strip_png
from dbpkit.report.tables import console_flags, console_table, replay_table

__all__ = [
    "console_analysis",
    "console_findings",
    "console_flags",
    "console_table",
    "replay_table",
    "write_charts",
    "write_replay_png",
    "write_report",
    "write_strip_png",
]
