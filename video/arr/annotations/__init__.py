"""The annotation files of EPIC-KITCHENS-100, EGTEA Gaze+ and 50 Salads: read from the forms they are spread in."""
