"""Tables, plots and the HTML page of a run."""

from qat.report.page import ReportData, write_report
from qat.report.results import Result, markdown, table

__all__ = ["ReportData", "Result", "markdown", "table", "write_report"]
