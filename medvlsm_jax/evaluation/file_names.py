"""The names of what an evaluation writes: for the program that writes it and the reports that read it."""

EVALUATION = "evaluation.json"  # what was evaluated, and how; written last
METRICS = "metrics.json"
CASES = "cases.csv"
PROBE, PROBE_PAGE = "probe.json", "probe.html"
CURVES = "curves.json"
PICTURES = "pictures"  # of the KINDS of cases, in folders by dataset and `pictures.file_name` of the condition
MASKS = "masks"
KINDS = ("best", "median", "worst")
# What a folder may hold of an older evaluation, which a new one replaces: what is written last goes first.
RESULTS = (EVALUATION, METRICS, CASES, PROBE, PROBE_PAGE, CURVES, PICTURES, MASKS)
