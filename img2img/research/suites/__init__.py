"""Methods side by side: a suite of stored runs becomes tables, figures and one page."""
