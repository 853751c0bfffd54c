"""Run the images of a data set into one file: resumable, in bounded memory."""
