"""Tables, plots and the HTML page of a run."""

from qat.report.page import ReportData, write_report
from qat.report.results import Result, markdown, score_name
from qat.report.tables import cost_table, result_table

__all__ = ["ReportData", "Result", "cost_table", "markdown", "result_table", "score_name", "write_report"]
