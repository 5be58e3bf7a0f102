"""The groups that --help shows options in."""

LARGE = "Tiles and test-time augmentation"
READING = "Reading images"
RESULTS = "Results"
MACHINE = "Machine"
NETWORK = "Network"
LIMITS = "Limits"

ORDER = (None, RESULTS, READING, LARGE, NETWORK, MACHINE, LIMITS)
"""What has no group stands first."""
