"""A chest film world made on the spot: frontal radiographs with 13 findings, and reports that say what is seen."""
