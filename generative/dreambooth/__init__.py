"""DreamBooth: a text-to-image model learns one person from a few photos (Ruiz et al., CVPR 2023, arXiv 2208.12242)."""
