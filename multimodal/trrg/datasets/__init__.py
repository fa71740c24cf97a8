"""Radiology reports and their films: one reader per layout, and the table where all of them end.

tables   studies and films, to records and back
films    one film: read, checked, brought to size
"""
