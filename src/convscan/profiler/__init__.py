"""Measures every implementation of an operator over real model shapes: latency, peak memory, error; names the champion.

``convscan profile`` is the command (cli.py); ``session.run(Options(...))`` the same from Python, which returns a
`records.Report`. A rival is a file in ``peers/``. How each number is taken is in measure.py, problem.py and machine.py.
"""
