"""Records, pipelines and the reading of images and videos."""
