"""Compression: the same model in fewer bits, with fewer weights, or a smaller one that learnt from it.

Begin with `compress.recipes`; the command is `python -m course_lib compress --model runs/ID --recipe int8`.
"""
