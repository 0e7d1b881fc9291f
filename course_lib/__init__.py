"""course_lib: the thin, real training library behind *One GPU, One Day*.

Importing this package loads neither torch nor transformers and touches no network: a reader can ask
for help, list datasets or read an error message before the heavy parts are even installed.
"""

__version__ = "0.1.0"
