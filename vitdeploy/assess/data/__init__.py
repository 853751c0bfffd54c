"""Labelled data sets, folders of images, and the data loader."""
