"""What a dashboard asks of a table: one event, pages, totals, series, menus, metrics, counters."""
