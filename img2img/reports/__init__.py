"""From results to images and one page: what a run leaves for people to read."""
