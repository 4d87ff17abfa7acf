"""Measures arms against each other: runs, records, statistics, reports.

Nothing else imports this package but the commands (edge_client/cli.py, app.py).
What every number means stands in docs/methods.md.
"""
