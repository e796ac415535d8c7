"""Statistical tests and intervals over paired results, with the same digits on every machine.

docs/formats/evaluation.md describes each of them.
"""
