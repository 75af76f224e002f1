"""From results to pictures and one page: what a run leaves for people to read."""
