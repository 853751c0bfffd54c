"""Turn results into tables, plots, HTML, Markdown and JUnit XML."""
