"""Assess artifacts: are they the same model, are they accurate, and how fast are they."""
