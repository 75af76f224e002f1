"""Reading and writing files: atomically, under a lock, and with bounds where a file may be a stranger's."""
