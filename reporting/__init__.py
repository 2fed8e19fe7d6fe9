"""The report page of a run: rows.py reads what the model said, each section has a file of its own, and page.py writes
the page from page.html.jinja, page.css and page.js."""
