"""What papers are reproduced with: comparison methods, suites and their reports, ImpressLearn's study, the Decathlon.

Nothing of the library imports it. Comparison methods are found by name, see `training.strategy`.
"""
