"""A folder of images that is embedded once and then searched."""
