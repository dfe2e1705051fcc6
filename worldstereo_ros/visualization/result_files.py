"""Names of files and folders in a folder of results. Imports nothing, so that readers stay light."""

MAP_FILE = "world.wsmap"
RESULTS_FILE = "results.json"  # what was observed and imagined, and which poses are blocked
OBSERVED_FOLDER, IMAGINED_FOLDER = "observed", "imagined"  # posed sequences
