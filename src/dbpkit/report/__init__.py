"""Run directories become tables, figures and one self-contained HTML page; nothing here runs a network."""

from dbpkit.report.analyses import console_findings
from dbpkit.report.page import write_report
from dbpkit.report.picture import write_strip_png
from dbpkit.report.tables import console_flags, console_table

__all__ = ["console_findings", "console_flags", "console_table", "write_report", "write_strip_png"]
