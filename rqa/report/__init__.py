"""report.html: plots and tables of results on one page."""
