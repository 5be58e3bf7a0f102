"""The groups of options in --help."""

LARGE = "Tiles and test-time augmentation"
READING = "Reading images"
RESULTS = "Results"
MACHINE = "Machine"
NETWORK = "Network"
LIMITS = "Limits"

ORDER = (None, RESULTS, READING, LARGE, NETWORK, MACHINE, LIMITS)
"""The groups in the order of --help; options without a group (None) come first."""
