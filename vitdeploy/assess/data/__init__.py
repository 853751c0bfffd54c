"""Labelled data sets and folders of images, and how they are loaded."""
