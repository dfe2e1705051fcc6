"""Names of files and folders in a folder of results. Imports nothing, so that readers stay light."""

MAP_FILE = "world.wsmap"
RESULTS_FILE = "results.json"  # what was observed and imagined, and which poses are blocked
OBSERVED_FOLDER, IMAGINED_FOLDER = "observed", "imagined"  # posed sequences

# What `write_results` and the saved map beside it take, for `io.results_folder.ResultsFolder`.
RESULT_NAMES = (
    IMAGINED_FOLDER, OBSERVED_FOLDER, "contact_sheet.png", "imagined.mp4", "cloud.ply", "cloud.png", MAP_FILE,
    RESULTS_FILE,
)  # fmt: skip
